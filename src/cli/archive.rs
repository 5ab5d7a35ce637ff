//! `bsz verify` and `info`: archives checked and described.

use super::outcome;
use super::progress::Watch;
use super::report::{self, Output, Row};
use super::tree;
use crate::codec;
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::pack;
use crate::read::{self, Archive, Coded};
use clap::Args;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

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

/// What commands on archives have in common.
#[derive(Args)]
pub(super) struct Common {
    /// Threads to use; all cores when absent
    #[arg(short = 'j', long = "jobs", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    jobs: Option<u16>,
    /// Print the outcome as JSON
    #[arg(long)]
    pub(super) json: bool,
}

impl Common {
    /// Build the global thread pool, which happens once per process.
    pub(super) fn start_threads(&self) -> Result<()> {
        let threads = self.jobs.map_or(0, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("bsz-{i}"));
        pool.build_global().map_err(|e| Error::invalid(e.to_string()).about("threads"))
    }
}

pub(super) fn name_of(path: &Path) -> Result<&std::ffi::OsStr> {
    path.file_name().ok_or_else(|| Error::invalid("has no name to go by").about_path(path))
}

/// A packer's [`pack::Check`]. If `quick`, of checksums alone: these were taken of the original's own bytes.
pub(super) fn check(file: &File, quick: bool, p: &dyn pack::Progress) -> Result<()> {
    let archive = Archive::from_file(file.try_clone()?)?;
    verify_with(quick)(&archive, &*codec::verifying(), &|bytes| p.advance(bytes))
}

type Verify = fn(&Archive, &dyn codec::ChunkDecoder, &(dyn Fn(u64) + Sync)) -> Result<()>;

fn verify_with(quick: bool) -> Verify {
    if quick { read::verify_chunks } else { read::verify }
}

/// The error with the archive it is about: below, one that concerns a chunk names only that. Errors about
/// what is written name it already.
pub(super) fn naming(e: Error, archive: &Path, output: &Path) -> Error {
    let text = e.to_string();
    match [archive, output]
        .iter()
        .any(|path| text.starts_with(&format!("{}: ", escape::path(*path))))
    {
        true => e,
        false => Error::new(e.kind(), text).about_path(archive),
    }
}

/// Verify every archive; one that is damaged does not hide the next.
pub fn verify(args: VerifyArgs, quiet: bool) -> Result<()> {
    args.common.start_threads()?;
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    for source in &args.sources {
        match tree::archives(source, &mut |e| watch.fail(&e)) {
            Ok(found) if found.is_empty() => {
                watch.fail(&Error::invalid("holds no archives").about_path(source))
            }
            Ok(found) => found.iter().for_each(|path| verify_one(path, args.quick, &watch)),
            Err(e) => watch.fail(&e),
        }
    }
    watch.finish("verify")
}

fn verify_one(path: &Path, quick: bool, watch: &Watch) {
    let begun = Instant::now();
    let outcome = Archive::open(path).and_then(|archive| {
        watch.bar.start("verifying", path, archive.footer().original_len, 1);
        let outcome =
            verify_with(quick)(&archive, &*codec::fastest(), &|bytes| watch.bar.advance(bytes));
        outcome.map(|()| archive.footer().original_len).map_err(|e| naming(e, path, path))
    });
    let row = |action, original, why| Row {
        path: path.into(),
        output: None,
        action,
        why,
        original,
        stored: fs::symlink_metadata(path).map_or(0, |m| m.len()),
        seconds: begun.elapsed().as_secs_f64(),
    };
    match outcome {
        Ok(bytes) => watch.add(row("verified", bytes, None)),
        Err(e) => {
            // The JSON lists it; people see the error itself.
            watch.add_silently(row("damaged", 0, Some(e.to_string())));
            watch.fail(&e);
        }
    }
}

/// One archive's path beside its description.
#[derive(serde::Serialize)]
struct Described {
    #[serde(flatten, serialize_with = "escape::field::path")]
    path: PathBuf,
    #[serde(flatten)]
    description: read::Description,
}

/// Describe one archive by tensor, or a directory by archive.
pub fn info(args: InfoArgs) -> Result<()> {
    let output = Output::new(args.json, false);
    let describe = |path: PathBuf| -> Result<Described> {
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
    let mut failures = Vec::new();
    let found = tree::archives(&args.source, &mut |e| failures.push(e))?;
    let files = found.len() + failures.len();
    let mut all = Vec::new();
    for path in found {
        describe(path).map_or_else(|e| failures.push(e), |described| all.push(described));
    }
    let mut rows =
        vec![["archive", "original", "stored", "ratio", "tensors"].map(String::from).to_vec()];
    rows.extend(all.iter().map(|Described { path, description: d }| {
        let path = path.strip_prefix(&args.source).unwrap_or(path);
        let sizes = [
            report::bytes(d.original),
            report::bytes(d.archive),
            report::ratio(d.archive, d.original),
        ];
        [vec![escape::path(path).into_owned()], sizes.to_vec(), vec![d.tensors.len().to_string()]]
            .concat()
    }));
    report::table(&rows, &[1, 2, 3, 4]).iter().for_each(|line| output.line(line));
    let why = |e: &Error| e.to_string();
    let failed: Vec<String> = failures.iter().map(why).collect();
    output.finish(&serde_json::json!({ "archives": all, "failures": failed }))?;
    outcome("info", &failures, files)
}

fn info_lines(Described { path, description: d }: &Described) -> Vec<String> {
    let mut rows =
        vec![["tensor", "dtype", "shape", "size", "ratio", "coding"].map(String::from).to_vec()];
    let coded = |name: &str, dtype: &str, shape: &[usize], coded: &Coded| {
        let shape: Vec<String> = shape.iter().map(usize::to_string).collect();
        let codings: Vec<&str> = coded.codings.keys().copied().collect();
        vec![
            escape::text(name).into_owned(),
            escape::text(dtype).into_owned(),
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
        escape::path(path),
        report::bytes(d.original),
        report::bytes(d.archive),
        report::ratio(d.archive, d.original),
        d.tensors.len(),
        d.chunks,
    );
    [vec![head, format!("SHA-256 of the original: {}", d.sha256)], report::table(&rows, &[3, 4])]
        .concat()
}
