//! `bsz pack`, `unpack`, `verify` and `info`: archives made, undone, checked and described.

use super::interrupt::clean_up_when_interrupted;
use super::progress::Watch;
use super::report::{self, Output, Row};
use super::tree::{self, Entry};
use super::{for_each, size};
use crate::codec;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::format::{DEFAULT_CHUNK, Naming};
use crate::pack::{self, Options};
use crate::read::{self, Archive, Coded};
use clap::Args;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

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
    /// Bytes decoded at once when the archive is read, a multiple of 64KiB up to 4MiB
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
  bsz verify --quick llama-packed/    as often as you like: finds any damage of the disk
  bsz verify llama-packed/ more.bsz   every archive inside, then one more
  bsz verify --json llama-packed/     the outcome for a program to read")]
pub struct VerifyArgs {
    /// Archives, or directories with archives
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    /// Check every chunk's checksum (XXH3-64), and leave out the SHA-256, which takes longer than decoding
    #[arg(long)]
    quick: bool,
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

fn name_of(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().ok_or_else(|| Error::invalid("has no name to go by").about(path.display()))
}

/// Pack every source; of several, a failure does not stop the rest.
pub fn pack(args: PackArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
    args.common.start_threads()?;
    if let (Some(output), true) = (&args.output, args.sources.len() > 1) {
        fs::create_dir_all(output).about_path(output)?;
    }
    let chunk_size = args.chunk_size.unwrap_or(DEFAULT_CHUNK);
    let options = Options { chunk_size, in_place: args.in_place, force: args.force };
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    // Where the original goes, its SHA-256 is what is left of it.
    let check = |path: &Path, p: &dyn pack::Progress| check(path, !args.in_place, p);
    let outcome = for_each("pack", &args.sources, |source| {
        let target = pack_target(&args, source)?;
        if !fs::metadata(source).about_path(source)?.is_dir() {
            return pack::file(source, &target, &options, &check, &watch).map(drop);
        }
        let report = pack::tree(source, &target, &options, &check, &watch)?;
        report.warnings.into_iter().for_each(|warning| watch.warn(warning));
        Ok(())
    });
    watch.finish(outcome)
}

/// A packer's [`pack::Check`]. If `quick`, of checksums alone: these were taken of the original's own bytes.
pub(super) fn check(path: &Path, quick: bool, p: &dyn pack::Progress) -> Result<()> {
    // Not by its path, which is temporary: errors are to name the archive's own.
    let archive = Archive::from_file(File::open(path)?)?;
    verify_with(quick)(&archive, &*codec::verifying(), &|bytes| p.advance(bytes))
}

type Verify = fn(&Archive, &dyn codec::ChunkDecoder, &(dyn Fn(u64) + Sync)) -> Result<()>;

fn verify_with(quick: bool) -> Verify {
    if quick { read::verify_chunks } else { read::verify }
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

/// Restore one archive, or every archive of a directory.
pub fn unpack(args: UnpackArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
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
        return match unpack_tree(source, output, args.force, watch)? {
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
    unpack_file(source, &archive, &output, args.force, watch)
}

fn unpack_file(source: &Path, archive: &Archive, output: &Path, force: bool, watch: &Watch) -> Result<()> {
    let begun = Instant::now();
    let footer = archive.footer();
    let done = !force && tree::is_done(output, footer.original_len, footer.mtime)?;
    if !done {
        watch.bar.start("unpacking", source, footer.original_len, 1);
        let progress = |bytes| watch.bar.advance(bytes);
        let outcome = read::unpack(archive, output, force, &*codec::fastest(), &progress);
        outcome.map_err(|e| naming(e, source, output))?;
    }
    let action = if done { "already done" } else { "unpacked" };
    watch.add(row(action, source, Some(output), footer.original_len, begun)?);
    Ok(())
}

/// Restore `source` into `output`: archives unpacked, links kept as they are, the rest copied. An archive
/// that is damaged does not stop the rest; how many are is returned.
fn unpack_tree(source: &Path, output: &Path, force: bool, watch: &Watch) -> Result<usize> {
    fs::create_dir_all(output).about_path(output)?;
    let mut failed = 0;
    for path in tree::entries(source)? {
        let to = output.join(name_of(&path)?);
        let begun = Instant::now();
        match tree::classify(&path)? {
            Entry::Directory => failed += unpack_tree(&path, &to, force, watch)?,
            Entry::Link => {
                tree::copy_link(&path, &to, force)?;
                watch.add(Row { stored: 0, ..row("linked", &path, Some(&to), 0, begun)? });
            }
            Entry::Plain => copy(&path, &to, force, watch)?,
            Entry::Special => watch.warn(format!("{}: neither file nor directory, left out", path.display())),
            Entry::Archive => match unpack_entry(&path, output, force, watch) {
                Err(e) if e.kind() != ErrorKind::Io => {
                    watch.complain(&e);
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

fn copy(path: &Path, to: &Path, force: bool, watch: &Watch) -> Result<()> {
    let begun = Instant::now();
    let (action, bytes) = tree::copy(path, to, force)?;
    watch.add(row(action, path, Some(to), bytes, begun)?);
    Ok(())
}

/// Restore what is called an archive in a directory into `output`.
fn unpack_entry(path: &Path, output: &Path, force: bool, watch: &Watch) -> Result<()> {
    if read::peek(&File::open(path).about_path(path)?).about_path(path)?.is_none() {
        // Something else with that name, which a mount shows as it is.
        return copy(path, &output.join(name_of(path)?), force, watch);
    }
    let archive = Archive::open(path)?;
    let name = tree::original_name(&archive, path)?;
    // Where both are there, the plain file is the one that a mount shows.
    if fs::symlink_metadata(path.with_file_name(&name)).is_ok() {
        watch.warn(format!("{}: left out, {} is beside it", path.display(), name.display()));
        return Ok(());
    }
    unpack_file(path, &archive, &output.join(name), force, watch)
}

/// The error with the archive it is about: below, one that concerns a chunk names only that. Errors about
/// what is written name it already.
pub(super) fn naming(e: Error, archive: &Path, output: &Path) -> Error {
    let text = e.to_string();
    match [archive, output].iter().any(|path| text.starts_with(&format!("{}: ", path.display()))) {
        true => e,
        false => Error::new(e.kind(), text).about(archive.display()),
    }
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
            watch.bar.start("verifying", path, archive.footer().original_len, 1);
            let verify = verify_with(args.quick);
            let outcome = verify(&archive, &*codec::fastest(), &|bytes| watch.bar.advance(bytes));
            outcome.map(|()| archive.footer().original_len).map_err(|e| naming(e, path, path))
        });
        match outcome {
            Ok(bytes) => watch.add(row("verified", path, None, bytes, begun)?),
            Err(e) => {
                // The JSON lists it; people see the error itself.
                let damaged = row("damaged", path, None, 0, begun)?;
                watch.add_silently(Row { why: Some(e.to_string()), ..damaged });
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
        let archive = Archive::open(&path)?;
        let description =
            read::describe(&archive, &*codec::fastest()).map_err(|e| naming(e, &path, &path))?;
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
        let sizes =
            [report::bytes(d.original), report::bytes(d.archive), report::ratio(d.archive, d.original)];
        [vec![report::printable(&path).into_owned()], sizes.to_vec(), vec![d.tensors.len().to_string()]]
            .concat()
    }));
    report::table(&rows, &[1, 2, 3, 4]).iter().for_each(|line| output.line(line));
    output.finish(&serde_json::json!({ "archives": all }))
}

fn info_lines(Described { path, description: d }: &Described) -> Vec<String> {
    let mut rows = vec![["tensor", "dtype", "shape", "size", "ratio", "coding"].map(String::from).to_vec()];
    let coded = |name: &str, dtype: &str, shape: &[usize], coded: &Coded| {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let codings: Vec<&str> = coded.codings.keys().copied().collect();
        vec![
            report::printable(name).into_owned(),
            report::printable(dtype).into_owned(),
            shape.join("x"),
            report::bytes(coded.bytes),
            report::ratio(coded.stored, coded.bytes),
            codings.join(" + "),
        ]
    };
    rows.extend(d.tensors.iter().map(|t| coded(&t.name, &t.dtype, &t.shape, &t.coded)));
    rows.push(coded("(no tensor)", "", &[], &d.rest));
    let head = format!(
        "{}: {} -> {} ({}), {} tensors in {} chunks",
        report::printable(&path.display().to_string()),
        report::bytes(d.original),
        report::bytes(d.archive),
        report::ratio(d.archive, d.original),
        d.tensors.len(),
        d.chunks,
    );
    [vec![head, format!("SHA-256 of the original: {}", d.sha256)], report::table(&rows, &[3, 4])].concat()
}
