//! `bsz pack`. Where each source goes is decided before anything is written.

use super::against::{AgainstArgs, Opened, near};
use super::common::Common;
use super::interrupt::clean_up_when_interrupted;
use super::progress::Watch;
use super::report::Output;
use super::size;
#[cfg(feature = "remote")]
use super::{remote::TimeoutArgs, upload};
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::format::DEFAULT_CHUNK;
use crate::pack::{self, Bases, Options, Pattern, Selection};
use clap::Args;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Compress models without loss
#[derive(Args)]
#[command(after_help = "Examples:
  bsz pack model.safetensors              writes model.bsz beside it
  bsz pack model.safetensors -o /archive  writes /archive/model.bsz
  bsz pack model.gguf                     writes model.gguf.bsz; .pt, .bin, .npz, .onnx likewise
  bsz pack llama/ -o llama-packed/        packs the models of a directory, copies the rest
  bsz pack llama/ --in-place              replaces each model by its verified archive
  bsz pack llama/ -o s3://models/llama    to a bucket, and so to gs:// and az://
  bsz pack llama/ --in-place --only '*.safetensors' --exclude 'optimizer*'
  bsz pack tune.safetensors --base llama/model.bsz   stores what differs from its base
  bsz pack checkpoints/ --in-place --base auto       each model against the nearest archive")]
pub struct PackArgs {
    /// Files, or directories; of these, files that hold weights are packed
    #[arg(required = true, value_name = "SRC")]
    sources: Vec<PathBuf>,
    /// Write to OUT: a .bsz file or a directory; or the URL of one in object storage
    #[arg(short, long, value_name = "OUT", conflicts_with = "in_place")]
    output: Option<PathBuf>,
    /// Replace each file by its archive, once that is verified
    #[arg(long)]
    in_place: bool,
    /// Overwrite existing files
    #[arg(long, conflicts_with = "in_place")]
    force: bool,
    /// In directories, pack only files that match PATTERN, such as '*.gguf'; repeatable
    #[arg(long, value_name = "PATTERN")]
    only: Vec<OsString>,
    /// In directories, pack no files that match PATTERN; one with a / is compared with the path
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<OsString>,
    /// Decode SIZE at a time when the archive is read: a multiple of 64KiB up to 4MiB
    #[arg(long, value_name = "SIZE", value_parser = size::parse_chunk)]
    chunk_size: Option<u32>,
    #[command(flatten)]
    bases: AgainstArgs,
    #[command(flatten)]
    common: Common,
    #[cfg(feature = "remote")]
    #[command(flatten)]
    remote: TimeoutArgs,
}

/// What to do with a source.
enum Job {
    /// Pack it to this archive.
    File(PathBuf),
    /// Pack it to this directory.
    Directory(PathBuf),
    /// Report why it cannot be packed.
    Failed(Error),
}

/// `bsz pack`: pack every source, even if some fail.
pub fn pack(args: PackArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
    args.common.start_threads()?;
    let chunk_size = args.chunk_size.unwrap_or(DEFAULT_CHUNK);
    let patterns = |texts: &[OsString]| texts.iter().map(Pattern::new).collect();
    let selection = Selection { only: patterns(&args.only), exclude: patterns(&args.exclude) };
    let (in_place, force, bases) = (args.in_place, args.force, Bases::default());
    let options = Options { chunk_size, in_place, force, selection, bases };
    let watch = Watch::new(Output::new(args.common.json, quiet), quiet);
    // Once the original is removed, its SHA-256 is all that is left of it.
    let opened = Arc::new(Opened::default());
    let check = |file: &File, p: &dyn pack::Progress| opened.check(file, !args.in_place, p);
    #[cfg(feature = "remote")]
    if let Some(output) = &args.output
        && let Some(to) = args.remote.uploads(output, args.force, &watch)?
    {
        if !args.bases.is_empty() {
            let why = "an archive there could not find its base; pack it without --base";
            return Err(Error::invalid(why).about_path(output));
        }
        upload::pack(&args.sources, &to, &options, &check, &watch)?;
        drop(to);
        return watch.finish("pack");
    }
    // What is wrong with them is wrong for all.
    args.bases.open(Vec::new(), &opened)?;
    let jobs = plan(&args)?;
    if let (Some(output), true) = (&args.output, args.sources.len() > 1) {
        fs::create_dir_all(output).about_path(output)?;
    }
    for (source, job) in args.sources.iter().zip(jobs) {
        let against = |near| -> Result<Options> {
            Ok(Options { bases: args.bases.open(near, &opened)?, ..options.clone() })
        };
        let pack = || match job {
            Job::File(out) => {
                let options = against(near(out.parent().unwrap_or(Path::new(""))))?;
                pack::file(source, &out, &options, &check, &watch).map(drop)
            }
            Job::Directory(out) => {
                let options = against(near(&out))?;
                pack::tree(source, &out, &options, &check, &watch).map(drop)
            }
            Job::Failed(e) => Err(e),
        };
        let done = pack();
        done.unwrap_or_else(|e| watch.fail(&e));
    }
    watch.finish("pack")
}

/// Decide where each source goes.
///
/// # Errors
/// Invalid argument if a mount would show two of them under one name.
fn plan(args: &PackArgs) -> Result<Vec<Job>> {
    let mut jobs = Vec::new();
    // The sources that go into each directory: their index and name.
    let mut files: HashMap<PathBuf, Vec<(usize, OsString)>> = HashMap::new();
    for (i, source) in args.sources.iter().enumerate() {
        jobs.push(match target(args, source) {
            Ok(Target::Exactly(job)) => job,
            Ok(Target::Into(dir, name)) => {
                files.entry(dir).or_default().push((i, name));
                // Until it is named below.
                Job::Failed(
                    Error::invalid("no name is free for its archive there").about_path(source),
                )
            }
            Err(e) => Job::Failed(e),
        });
    }
    refuse_collisions(args, &jobs, &files)?;
    // The walk of one source would meet the output of another.
    for output in jobs.iter().filter_map(|job| match job {
        Job::Directory(out) if !args.in_place => Some(out),
        _ => None,
    }) {
        let directories = args.sources.iter().filter(|source| source.is_dir());
        directories.into_iter().try_for_each(|source| pack::refuse_inside(source, output))?;
    }
    for (dir, sources) in files {
        let originals: Vec<OsString> = sources.iter().map(|(_, name)| name.clone()).collect();
        for ((i, _), name) in sources.iter().zip(pack::archive_names(&dir, &originals)?) {
            if let Some(name) = name {
                jobs[*i] = Job::File(dir.join(name));
            }
        }
    }
    Ok(jobs)
}

fn name_of(path: &Path) -> Result<&OsStr> {
    path.file_name().ok_or_else(|| Error::invalid("has no file name").about_path(path))
}

enum Target {
    Exactly(Job),
    /// In this directory, an archive of the file of this name.
    Into(PathBuf, OsString),
}

fn target(args: &PackArgs, source: &Path) -> Result<Target> {
    let is_dir = fs::metadata(source).about_path(source)?.is_dir();
    let many = args.sources.len() > 1;
    let wrong = |why: &str, about: &Path| Err(Error::invalid(why).about_path(about));
    let into = |dir: &Path| Ok(Target::Into(dir.to_owned(), name_of(source)?.to_owned()));
    let directory = |to: PathBuf| Ok(Target::Exactly(Job::Directory(to)));
    match &args.output {
        None if is_dir && args.in_place => directory(source.to_owned()),
        None if is_dir => {
            wrong("is a directory, which needs -o OUT, or --in-place to replace its files", source)
        }
        None => into(source.parent().unwrap_or(Path::new(""))),
        Some(out) if is_dir && many => directory(out.join(name_of(source)?)),
        Some(out) if is_dir => directory(out.clone()),
        Some(out) if many || out.is_dir() => into(out),
        Some(out) if out.extension().is_some_and(|e| e == "bsz") => {
            Ok(Target::Exactly(Job::File(out.clone())))
        }
        Some(out) => wrong("neither a .bsz path nor an existing directory", out),
    }
}

/// Refuse sources of which a mount of the output would show two under one name.
fn refuse_collisions(
    args: &PackArgs,
    jobs: &[Job],
    files: &HashMap<PathBuf, Vec<(usize, OsString)>>,
) -> Result<()> {
    let real = |dir: &Path| if dir.as_os_str().is_empty() { ".".into() } else { dir.to_owned() };
    let real = |dir: &Path| fs::canonicalize(real(dir)).unwrap_or_else(|_| dir.to_owned());
    let in_directories = files.iter().flat_map(|(dir, sources)| {
        let dir = real(dir);
        sources.iter().map(move |(i, name)| (*i, dir.join(name)))
    });
    let directories = jobs.iter().enumerate().filter_map(|(i, job)| match job {
        Job::Directory(out) => Some((i, real(out))),
        _ => None,
    });
    let mut sources: Vec<_> = in_directories.chain(directories).collect();
    sources.sort();
    let mut shown: HashMap<PathBuf, usize> = HashMap::new();
    for (i, path) in sources {
        if let Some(other) = shown.insert(path, i) {
            let [a, b] = [&args.sources[other], &args.sources[i]].map(|path| escape::path(path));
            let why =
                format!("a mount would show it under the same name as {a}; nothing was packed");
            return Err(Error::invalid(why).about(b));
        }
    }
    Ok(())
}
