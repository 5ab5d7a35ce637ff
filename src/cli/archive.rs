//! `bsz pack`, `unpack`, `verify` and `info`: archives made, undone, checked and described.

use super::progress::Bar;
use super::report::{self, Output, Row, Summary};
use super::tree::{self, Entry};
use super::{complain, for_each, size};
use crate::codec;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::Naming;
use crate::pack::{self, Action, FileReport, Options};
use crate::read::{self, Archive};
use clap::Args;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Compress models without loss
#[derive(Args)]
#[command(after_help = "Examples:
  bsz pack model.safetensors              writes model.bsz beside it
  bsz pack model.safetensors -o /archive  writes /archive/model.bsz
  bsz pack llama/ -o llama-packed/        the directory, every .safetensors packed, the rest copied
  bsz pack llama/ --in-place              replaces each .safetensors once its archive is verified")]
pub struct PackArgs {
    /// Files, or directories with .safetensors files
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    /// Where to write: a .bsz path or a directory
    #[arg(short, long, value_name = "OUT", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Replace each file by its archive, after verifying that
    #[arg(long)]
    in_place: bool,
    /// Overwrite what is there
    #[arg(long, conflicts_with = "in_place")]
    force: bool,
    /// Bytes decoded at once when the archive is read, such as 256KiB or 1M
    #[arg(long, value_name = "SIZE", value_parser = size::parse_chunk)]
    chunk_size: Option<u32>,
    #[command(flatten)]
    common: Common,
}

/// Restore the originals, byte for byte
#[derive(Args)]
#[command(after_help = "Examples:
  bsz unpack model.bsz                       writes model.safetensors beside it
  bsz unpack model.bsz -o copy.safetensors   writes that file
  bsz unpack llama-packed/ -o llama/         a whole directory, the rest copied")]
pub struct UnpackArgs {
    /// An archive, or a directory with archives
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The file or directory to write
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Overwrite what is there
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    common: Common,
}

/// Decode everything, check every checksum and the original's SHA-256; write nothing
#[derive(Args)]
#[command(after_help = "Examples:
  bsz verify model.bsz
  bsz verify llama-packed/ more.bsz   every archive inside, then one more
  bsz verify --json llama-packed/     the outcome for a program to read")]
pub struct VerifyArgs {
    /// Archives, or directories with archives
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    #[command(flatten)]
    common: Common,
}

/// Show what is inside: every tensor with its dtype, shape, size and coding
#[derive(Args)]
#[command(after_help = "Examples:
  bsz info model.bsz           a line per tensor
  bsz info llama-packed/       a line per archive
  bsz info --json model.bsz    all of it for a program to read")]
pub struct InfoArgs {
    /// An archive, or a directory with archives
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Common {
    /// Threads to use; all cores when absent
    #[arg(short = 'j', long = "jobs", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    jobs: Option<u16>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

impl Common {
    /// Build the global thread pool, which happens once per process.
    fn start_threads(&self) -> Result<()> {
        let threads = self.jobs.map_or(0, usize::from);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("bsz-{i}"));
        pool.build_global().map_err(|e| Error::invalid(e.to_string()).about("threads"))
    }
}

/// Refuse to write over something that is there, unless `force`. An empty directory may be filled.
fn refuse_to_overwrite(path: &Path, force: bool) -> Result<()> {
    let Ok(metadata) = fs::symlink_metadata(path) else { return Ok(()) };
    if force || metadata.is_dir() && tree::entries(path)?.is_empty() {
        return Ok(());
    }
    Err(Error::invalid("is there already; --force overwrites it").about(path.display()))
}

fn name_of(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().ok_or_else(|| Error::invalid("has no name to go by").about(path.display()))
}

/// Pack every source; of several, a failure does not stop the rest.
pub fn pack(args: PackArgs, quiet: bool) -> Result<()> {
    args.common.start_threads()?;
    if let (Some(output), true) = (&args.output, args.sources.len() > 1) {
        fs::create_dir_all(output).about_path(output)?;
    }
    let mut options = Options { in_place: args.in_place, ..Options::default() };
    options.chunk_size = args.chunk_size.unwrap_or(options.chunk_size);
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    let check = |path: &Path, _: &dyn pack::Progress| watch.verify(path);

    let outcome = for_each("pack", &args.sources, |source| {
        let target = pack_target(&args, source)?;
        let is_dir = fs::metadata(source).about_path(source)?.is_dir();
        if !args.in_place {
            if is_dir {
                tree::refuse_inside(source, &target)?;
            }
            refuse_to_overwrite(&target, args.force)?;
        }
        if is_dir {
            let report = pack::tree(source, &target, &options, &check, &watch)?;
            report.warnings.into_iter().for_each(|warning| watch.warn(warning));
            Ok(())
        } else {
            pack::file(source, &target, &options, &check, &watch).map(drop)
        }
    });
    watch.finish(outcome)
}

/// Where `source` goes.
fn pack_target(args: &PackArgs, source: &Path) -> Result<PathBuf> {
    let is_dir = fs::metadata(source).about_path(source)?.is_dir();
    let many = args.sources.len() > 1;
    let wrong = |why: &str, about: &Path| Err(Error::invalid(why).about(about.display()));
    match &args.output {
        None if is_dir && args.in_place => Ok(source.into()),
        None if is_dir => wrong("a directory needs -o OUT, or --in-place to replace its files", source),
        None => Ok(source.with_file_name(Naming::archive_name(name_of(source)?))),
        Some(out) if is_dir && many => Ok(out.join(name_of(source)?)),
        Some(out) if is_dir => Ok(out.clone()),
        Some(out) if out.is_dir() => Ok(out.join(Naming::archive_name(name_of(source)?))),
        Some(out) if out.extension().is_some_and(|e| e == "bsz") => Ok(out.clone()),
        Some(out) => wrong("neither a .bsz path nor a directory that is there", out),
    }
}

/// Follows one command's files: the bar while they run, a line and a row when they end.
struct Watch {
    bar: Bar,
    output: Output,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    running: HashMap<PathBuf, Instant>,
    rows: Vec<Row>,
    warnings: Vec<String>,
}

impl Watch {
    fn new(output: Output, quiet: bool) -> Self {
        Self { bar: Bar::new(quiet), output, begun: Instant::now(), state: Mutex::default() }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Decode an archive with the decoder that defines the format, and compare every checksum.
    fn verify(&self, path: &Path) -> Result<()> {
        let archive = Archive::open(path)?;
        self.bar.start("verifying", path, archive.footer().original_len);
        read::verify(&archive, &*codec::reference(), &|bytes| self.bar.advance(bytes)).about_path(path)
    }

    fn add(&self, row: Row) {
        if let Some(line) = row.line() {
            self.bar.aside(|| self.output.line(line));
        }
        self.state().rows.push(row);
    }

    fn warn(&self, warning: String) {
        self.bar.aside(|| complain(&Error::invalid(warning.as_str()).about("warning")));
        self.state().warnings.push(warning);
    }

    /// The sum, and the JSON where that was asked for, also of what came before a failure.
    fn finish(self, outcome: Result<()>) -> Result<()> {
        let state = self.state.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        drop(self.bar);
        let summary = Summary::new(state.rows, state.warnings, self.begun.elapsed());
        if summary.files.len() > 1 || summary.files.is_empty() && outcome.is_ok() {
            self.output.line(summary.line());
        }
        outcome.and(self.output.finish(&summary))
    }
}

impl pack::Progress for Watch {
    fn begin(&self, path: &Path, bytes: u64) {
        self.state().running.insert(path.into(), Instant::now());
        self.bar.start("packing", path, bytes);
    }

    fn advance(&self, bytes: u64) {
        self.bar.advance(bytes);
    }

    fn end(&self, outcome: &FileReport) {
        let took = self.state().running.remove(&outcome.path).map_or(Duration::ZERO, |begun| begun.elapsed());
        let (action, why) = match &outcome.action {
            Action::Packed => ("packed", None),
            Action::Copied => ("copied", None),
            Action::Linked => ("linked", None),
            Action::AlreadyPacked => ("already packed", None),
            Action::Skipped(why) => ("skipped", Some(why.clone())),
        };
        self.add(Row {
            path: outcome.path.clone(),
            output: Some(outcome.output.clone()),
            action,
            why,
            original: outcome.original,
            stored: outcome.stored,
            seconds: took.as_secs_f64(),
        });
    }
}

/// Restore one archive, or every archive of a directory.
pub fn unpack(args: UnpackArgs, quiet: bool) -> Result<()> {
    args.common.start_threads()?;
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    let outcome = unpack_source(&args, &watch);
    watch.finish(outcome)
}

fn unpack_source(args: &UnpackArgs, watch: &Watch) -> Result<()> {
    let source = &args.source;
    if fs::metadata(source).about_path(source)?.is_dir() {
        let why = "a directory needs -o OUT";
        let output = args.output.as_ref().ok_or_else(|| Error::invalid(why).about(source.display()))?;
        tree::refuse_inside(source, output)?;
        refuse_to_overwrite(output, args.force)?;
        return match unpack_tree(source, output, watch)? {
            0 => Ok(()),
            n => Err(Error::corrupt(format!("{n} archives were not restored")).about(source.display())),
        };
    }
    let archive = Archive::open(source)?;
    let output = match &args.output {
        Some(output) if output.is_dir() => output.join(tree::original_name(&archive, source)?),
        Some(output) => output.clone(),
        None => source.with_file_name(tree::original_name(&archive, source)?),
    };
    refuse_to_overwrite(&output, args.force)?;
    unpack_file(source, &archive, &output, watch)
}

fn unpack_file(source: &Path, archive: &Archive, output: &Path, watch: &Watch) -> Result<()> {
    let begun = Instant::now();
    watch.bar.start("unpacking", source, archive.footer().original_len);
    read::unpack(archive, output, &*codec::fastest(), &|bytes| watch.bar.advance(bytes))
        .about_path(source)?;
    watch.add(row("unpacked", source, Some(output), archive.footer().original_len, begun)?);
    Ok(())
}

/// Restore `source` into `output`: archives unpacked, links kept as they are, the rest copied. An archive
/// that is damaged does not stop the rest; how many are is returned.
fn unpack_tree(source: &Path, output: &Path, watch: &Watch) -> Result<usize> {
    fs::create_dir_all(output).about_path(output)?;
    let mut failed = 0;
    for path in tree::entries(source)? {
        let to = output.join(name_of(&path)?);
        let begun = Instant::now();
        match tree::classify(&path)? {
            Entry::Directory => failed += unpack_tree(&path, &to, watch)?,
            Entry::Link => {
                tree::copy_link(&path, &to)?;
                watch.add(Row { original: 0, ..row("linked", &path, Some(&to), 0, begun)? });
            }
            Entry::Plain => {
                let bytes = tree::copy(&path, &to)?;
                watch.add(row("copied", &path, Some(&to), bytes, begun)?);
            }
            Entry::Special => watch.warn(format!("{}: neither file nor directory, left out", path.display())),
            Entry::Archive => match unpack_entry(&path, output, watch) {
                Err(e) if e.kind() != ErrorKind::Io => {
                    watch.bar.aside(|| complain(&e));
                    failed += 1;
                }
                outcome => outcome?,
            },
        }
    }
    let permissions = fs::metadata(source).about_path(source)?.permissions();
    fs::set_permissions(output, permissions).about_path(output)?;
    Ok(failed)
}

/// Restore one archive of a directory into `output`.
fn unpack_entry(path: &Path, output: &Path, watch: &Watch) -> Result<()> {
    let archive = Archive::open(path)?;
    let name = tree::original_name(&archive, path)?;
    // Where both are there, the plain file is the one that a mount shows.
    if fs::symlink_metadata(path.with_file_name(&name)).is_ok() {
        watch.warn(format!("{}: left out, {} is beside it", path.display(), name.display()));
        return Ok(());
    }
    unpack_file(path, &archive, &output.join(name), watch)
}

/// A row about the file at `path`, whose size is looked up.
fn row(
    action: &'static str,
    path: &Path,
    output: Option<&Path>,
    original: u64,
    begun: Instant,
) -> Result<Row> {
    Ok(Row {
        path: path.into(),
        output: output.map(PathBuf::from),
        action,
        why: None,
        original,
        stored: fs::symlink_metadata(path).about_path(path)?.len(),
        seconds: begun.elapsed().as_secs_f64(),
    })
}

/// Verify every archive; one that is damaged does not hide the next.
pub fn verify(args: VerifyArgs, quiet: bool) -> Result<()> {
    args.common.start_threads()?;
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    let mut archives = Vec::new();
    for source in &args.sources {
        let found = tree::archives(source)?;
        if found.is_empty() {
            return Err(Error::invalid("holds no archives").about(source.display()));
        }
        archives.extend(found);
    }
    let outcome = for_each("verify", &archives, |path| {
        let begun = Instant::now();
        let outcome = Archive::open(path).and_then(|archive| {
            watch.bar.start("verifying", path, archive.footer().original_len);
            read::verify(&archive, &*codec::fastest(), &|bytes| watch.bar.advance(bytes)).about_path(path)?;
            Ok(archive.footer().original_len)
        });
        match outcome {
            Ok(bytes) => watch.add(row("verified", path, None, bytes, begun)?),
            Err(e) => {
                // The JSON lists it; people see the error itself.
                let damaged = row("damaged", path, None, 0, begun)?;
                watch.state().rows.push(Row { why: Some(e.to_string()), ..damaged });
                return Err(e);
            }
        }
        Ok(())
    });
    watch.finish(outcome)
}

/// One archive's path beside its description.
#[derive(serde::Serialize)]
struct Described {
    path: PathBuf,
    #[serde(flatten)]
    description: read::Description,
}

/// Describe one archive by tensor, or a directory by archive.
pub fn info(args: InfoArgs) -> Result<()> {
    let output = Output::new(args.json, false);
    let describe = |path: PathBuf| {
        let description =
            Archive::open(&path).and_then(|archive| read::describe(&archive)).about_path(&path)?;
        Ok(Described { path, description })
    };
    if !fs::metadata(&args.source).about_path(&args.source)?.is_dir() {
        let one = describe(args.source)?;
        info_lines(&one).iter().for_each(|line| output.line(line));
        return output.finish(&one);
    }
    let all: Vec<Described> =
        tree::archives(&args.source)?.into_iter().map(describe).collect::<Result<_>>()?;
    let mut rows = vec![["archive", "original", "stored", "ratio", "tensors"].map(String::from).to_vec()];
    rows.extend(all.iter().map(|Described { path, description: d }| {
        let path = path.strip_prefix(&args.source).unwrap_or(path).display().to_string();
        let sizes = [report::bytes(d.original), report::bytes(d.stored), report::ratio(d.stored, d.original)];
        [vec![report::printable(&path).into_owned()], sizes.to_vec(), vec![d.tensors.len().to_string()]]
            .concat()
    }));
    report::table(&rows, &[1, 2, 3, 4]).iter().for_each(|line| output.line(line));
    output.finish(&serde_json::json!({ "archives": all }))
}

fn info_lines(Described { path, description: d }: &Described) -> Vec<String> {
    let mut rows = vec![["tensor", "dtype", "shape", "size", "ratio", "coding"].map(String::from).to_vec()];
    rows.extend(d.tensors.iter().map(|t| {
        let shape: Vec<String> = t.shape.iter().map(u64::to_string).collect();
        vec![
            report::printable(&t.name).into_owned(),
            t.dtype.to_string(),
            shape.join("x"),
            report::bytes(t.bytes),
            report::ratio(t.stored, t.bytes),
            t.coding.to_string(),
        ]
    }));
    let head = format!(
        "{}: {} -> {} ({}), {} chunks of up to {} KiB, {} tensors",
        report::printable(&path.display().to_string()),
        report::bytes(d.original),
        report::bytes(d.stored),
        report::ratio(d.stored, d.original),
        d.chunks,
        d.chunk_size >> 10,
        d.tensors.len()
    );
    [vec![head, format!("SHA-256 of the original: {}", d.sha256)], report::table(&rows, &[3, 4])].concat()
}
