//! `bsz cp`.

use super::interrupt::clean_up_when_interrupted;
use super::progress::Watch;
use super::remote::TimeoutArgs;
use super::report::Output;
use super::upload::{Uploads, key};
use super::{remote, source};
use crate::error::{Context, Error, Result};
use crate::input;
use crate::output::{Dir, DirEntry, is_temporary};
use crate::pack::{Action, FileReport, Progress, Task};
use crate::remote::{Body, FileBody, Found, Place};
use clap::Args;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Copy archives and other files, as they are, to and from object storage
#[derive(Args)]
#[command(after_help = "Examples:
  bsz cp model.bsz s3://models/llama/            to s3://models/llama/model.bsz
  bsz cp model.bsz s3://models/llama/v2.bsz      under another name
  bsz cp llama-packed/ s3://models/llama         all that is in the directory
  bsz cp s3://models/llama/ llama-packed/        and back again
  bsz cp hf://org/repo@v1 s3://models/repo       from the hub into a bucket

What was uploaded is read back and compared. A file that is there with the same bytes is left as it
is; another one is replaced only with --force. Of directories, links are left out.")]
pub struct CpArgs {
    /// A file or a directory, or the URL of one
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// Where it goes: a path, or a URL of s3://, gs:// or az://; the directory for a file that
    /// keeps its name ends in a slash
    #[arg(value_name = "DST")]
    to: PathBuf,
    /// Overwrite existing files and objects
    #[arg(long)]
    force: bool,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    remote: TimeoutArgs,
}

/// `bsz cp`
pub fn cp(args: &CpArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
    let watch = Watch::new(Output::new(args.json, quiet), quiet);
    let from = args.remote.place(&args.source)?;
    match (from, args.remote.uploads(&args.to, args.force, &watch)?) {
        (None, None) => {
            let why = "neither is a URL; cp(1) copies files on this machine";
            return Err(Error::invalid(why).about("cp"));
        }
        (Some(place), None) => remote::copy(&place.into(), &args.to, args.force, &watch)?,
        (None, Some(to)) => Upward { to, watch: &watch }.copy_files(&args.source)?,
        (Some(place), Some(to)) => Upward { to, watch: &watch }.copy_objects(Arc::new(place))?,
    }
    watch.finish("cp")
}

/// Copies to a URL.
struct Upward<'a> {
    to: Uploads<'a>,
    watch: &'a Watch,
}

impl Upward<'_> {
    /// Copy a file or a directory of this machine.
    fn copy_files(&self, source: &Path) -> Result<()> {
        if fs::metadata(source).about_path(source)?.is_dir() {
            self.directory(&Dir::open(source)?, Path::new(""));
            return Ok(());
        }
        let copied = input::open(source)
            .and_then(|file| self.file(&file, source, Path::new(self.name_of(source)?)));
        copied.unwrap_or_else(|e| self.watch.fail(&e));
        Ok(())
    }

    /// The name that a file gets below the URL, if that is a directory.
    fn name_of<'p>(&self, source: &'p Path) -> Result<&'p OsStr> {
        if !self.to.is_directory() {
            return Ok(OsStr::new(""));
        }
        source.file_name().ok_or_else(|| Error::invalid("has no file name").about_path(source))
    }

    /// Copy what is in the directory `from` to `at`.
    fn directory(&self, from: &Arc<Dir>, at: &Path) {
        let entries = match from.entries() {
            Ok(entries) => entries,
            Err(e) => return self.watch.fail(&e),
        };
        for DirEntry { name, kind } in entries {
            let path = from.path(&name);
            let warn = |why: &str| {
                Progress::warn(self.watch, &path, why);
                Ok(())
            };
            let done = if kind.is_dir() {
                from.child(&name).map(|child| self.directory(&child, &at.join(&name)))
            } else if kind.is_symlink() {
                warn("is a link, which an object store cannot hold; left out")
            } else if !kind.is_file() {
                warn("neither a file nor a directory; left out")
            } else if is_temporary(&name) {
                warn("is being written by another run, or was left by one; left out")
            } else {
                from.open_file(&name).and_then(|file| self.file(&file, &path, &at.join(&name)))
            };
            done.unwrap_or_else(|e| self.watch.fail(&e));
        }
    }

    fn file(&self, file: &File, path: &Path, at: &Path) -> Result<()> {
        self.send(&FileBody::new(file).about_path(path)?, path, key(at)?)
    }

    /// Copy what is at another URL.
    fn copy_objects(&self, place: Arc<Place>) -> Result<()> {
        let entries = match place.find()? {
            Found::Object(object) => {
                let path = place.name("");
                let at = self.name_of(&path)?.to_string_lossy().into_owned();
                let sent = self.send(&*object, &path, &at);
                sent.unwrap_or_else(|e| self.watch.fail(&e));
                return Ok(());
            }
            Found::Directory(entries) => entries,
        };
        let mut files = Vec::new();
        let fail = &mut |e| self.watch.fail(&e);
        source::walk(&place, "", entries, &mut |path, facts| files.push((path, facts)), fail);
        for (path, facts) in files {
            let sent = place
                .open(&path, Some(&facts))
                .and_then(|object| self.send(&object, &place.name(&path), &path));
            sent.unwrap_or_else(|e| self.watch.fail(&e));
        }
        Ok(())
    }

    fn send(&self, body: &dyn Body, path: &Path, at: &str) -> Result<()> {
        let size = body.size();
        self.watch.begin(path, Task::Copy, size);
        let made = self.to.send(body, at)?;
        self.watch.end(&FileReport {
            path: path.to_owned(),
            output: self.to.name(at),
            original: size,
            stored: size,
            action: if made { Action::Copied } else { Action::AlreadyDone },
        });
        Ok(())
    }
}
