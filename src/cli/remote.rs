//! The options for URLs, and unpacking or copying what they name.

use super::{common::Opened, progress::Watch, size};
use crate::{
    error::{Context, Error, ErrorKind, Result},
    output::{Attributes, Dir, Existing, Output, is_temporary, same_bytes},
    pack::{self, Action, FileReport, Progress, Task, UnpackOptions},
    read::{Archive, PlaceBases},
    remote::{
        self, Deadlines, DiskCacheOptions, Entry, Facts, Found, Object, Place, RemoteOptions,
        is_remote,
    },
};
use clap::Args;
use std::{
    collections::HashSet,
    ffi::OsStr,
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

/// How much of a plain file is read at once.
const STEP: u64 = 4 << 20;

/// The largest cache without `--disk-cache-size`.
const LARGEST: u64 = 32 << 30;

/// The help heading of options for URLs.
pub(super) const URL_HEADING: &str = "Options for URLs";

/// Options for sources on other machines.
#[derive(Args)]
#[command(next_help_heading = URL_HEADING)]
pub(super) struct RemoteArgs {
    /// Keep the bytes that were fetched in this directory, for the next time. Others, and several
    /// commands at once, may share it if they belong to the same user
    #[arg(long, value_name = "DIR")]
    disk_cache: Option<PathBuf>,
    /// Keep at most N bytes there, as in 20GiB [default: a tenth of the disk, or 32GiB]
    #[arg(long, value_name = "N", value_parser = size::parse, requires = "disk_cache")]
    disk_cache_size: Option<u64>,
    #[command(flatten)]
    timeout: TimeoutArgs,
}

/// When to give up.
#[derive(Args)]
#[command(next_help_heading = URL_HEADING)]
pub(super) struct TimeoutArgs {
    /// Give up a read after S seconds, attempts included; uploads get more time by their size
    #[arg(
        long,
        value_name = "S",
        default_value_t = 60,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    remote_timeout: u64,
}

impl TimeoutArgs {
    /// How places are read, without a disk cache.
    pub(super) fn options(&self) -> RemoteOptions {
        let deadlines = Deadlines::within(self.total());
        RemoteOptions { deadlines, ..RemoteOptions::default() }
    }

    fn total(&self) -> Duration {
        Duration::from_secs(self.remote_timeout)
    }
}

impl RemoteArgs {
    /// The place that `source` names, if it is a URL.
    pub(super) fn place(&self, source: &Path) -> Result<Option<Place>> {
        let Some(url) = source.to_str().filter(|text| is_remote(text)) else { return Ok(None) };
        Place::new(url, &self.options()?).map(Some)
    }

    /// How places are read.
    pub(super) fn options(&self) -> Result<RemoteOptions> {
        let disk = self.disk_cache.as_ref().map(|dir| self.disk(dir)).transpose()?;
        Ok(RemoteOptions { disk, ..self.timeout.options() })
    }

    /// When a read is given up.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout.total()
    }

    fn disk(&self, dir: &Path) -> Result<DiskCacheOptions> {
        fs::create_dir_all(dir).about_path(dir)?;
        let size = match self.disk_cache_size {
            Some(size) => size,
            None => {
                let disk = rustix::fs::statvfs(dir).about_path(dir)?;
                (disk.f_blocks * disk.f_frsize / 10).min(LARGEST)
            }
        };
        Ok(DiskCacheOptions { dir: dir.to_owned(), size })
    }
}

/// Unpack what is at `place`: an archive, or a directory with all that is in it.
pub(super) fn unpack(
    place: &Arc<Place>,
    output: Option<&Path>,
    options: UnpackOptions,
    watch: &Watch,
) -> Result<()> {
    let path = place.name("");
    let unpacker = Unpacker { place, unpacks: true, options, watch };
    match place.find()? {
        Found::Object(object) => {
            if let Err(e) = unpacker.one(object, &path, output) {
                watch.fail(&e);
            }
        }
        Found::Directory(entries) => {
            let why = "is a directory, which needs -o OUT";
            let output = output.ok_or_else(|| Error::invalid(why).about_path(&path))?;
            fs::create_dir_all(output).about_path(output)?;
            unpacker.directory("", entries, &Dir::open(output)?);
        }
    }
    Ok(())
}

/// Copy what is at `place`, as it is: a file to `output`, or into it if that is a directory; all
/// that is in a directory into `output`.
pub(super) fn copy(place: &Arc<Place>, output: &Path, force: bool, watch: &Watch) -> Result<()> {
    let path = place.name("");
    let options = UnpackOptions { force, ..UnpackOptions::default() };
    let copier = Unpacker { place, unpacks: false, options, watch };
    match place.find()? {
        Found::Object(object) => {
            let is_dir = output.is_dir() || output.as_os_str().as_encoded_bytes().ends_with(b"/");
            let (dir, name) = match path.file_name().filter(|_| is_dir) {
                Some(name) => (Dir::open(output)?, name.to_owned()),
                None => Dir::of(output)?,
            };
            let copied = copier.copy(&object, &path, &name, &dir);
            copied.unwrap_or_else(|e| watch.fail(&e));
        }
        Found::Directory(entries) => {
            fs::create_dir_all(output).about_path(output)?;
            copier.directory("", entries, &Dir::open(output)?);
        }
    }
    Ok(())
}

struct Unpacker<'a> {
    place: &'a Arc<Place>,
    /// Whether archives are unpacked rather than copied.
    unpacks: bool,
    options: UnpackOptions,
    watch: &'a Watch,
}

impl Unpacker<'_> {
    /// Unpack an archive to `output`, or under its original name in the current directory.
    fn one(&self, object: Arc<Object>, path: &Path, output: Option<&Path>) -> Result<()> {
        let archive = Archive::from_object(object).about_path(path)?;
        let (dir, name) = pack::unpacked_at(archive.footer(), path, output, Path::new(""))?;
        self.archive(archive, path, (&dir, &name))
    }

    /// Unpack the archives of a directory, copy its other files, and do the same below it.
    fn directory(&self, at: &str, entries: Vec<Entry>, to: &Arc<Dir>) {
        let names: HashSet<String> = entries.iter().map(|entry| entry.name.clone()).collect();
        for Entry { name, file } in entries {
            let path = remote::join(at, &name);
            let done = match file {
                _ if is_temporary(OsStr::new(&name)) => Ok(()),
                Some(facts) => self.file(&path, &name, &facts, &names, to),
                None => self.child(&path, &name, to),
            };
            done.unwrap_or_else(|e| self.watch.fail(&e));
        }
    }

    fn child(&self, path: &str, name: &str, to: &Arc<Dir>) -> Result<()> {
        let entries = self.place.list(path)?;
        let out = to.path(OsStr::new(name));
        if !out.is_dir() {
            fs::create_dir(&out).about_path(&out)?;
        }
        self.directory(path, entries, &to.child(OsStr::new(name))?);
        Ok(())
    }

    fn file(
        &self,
        path: &str,
        name: &str,
        facts: &Facts,
        names: &HashSet<String>,
        to: &Arc<Dir>,
    ) -> Result<()> {
        let shown = self.place.name(path);
        let object = Arc::new(self.place.open(path, Some(facts))?);
        if self.unpacks && name.ends_with(".bsz") {
            match Archive::from_object(Arc::clone(&object)) {
                Ok(archive) => {
                    let bases = PlaceBases::beside(self.place, path);
                    let archive = archive.with_bases(Arc::new(bases));
                    let original = pack::original_name(archive.footer(), &shown)?;
                    if original.to_str().is_some_and(|name| names.contains(name)) {
                        let why =
                            "left out: would be unpacked under the name of the file beside it";
                        return Err(Error::invalid(why).about_path(&shown));
                    }
                    return self.archive(archive, &shown, (to, original.as_os_str()));
                }
                Err(e) if e.kind() == ErrorKind::InvalidArgument => {}
                Err(e) => return Err(e).about_path(&shown),
            }
        }
        self.copy(&object, &shown, OsStr::new(name), to)
    }

    fn archive(&self, archive: Archive, shown: &Path, to: (&Arc<Dir>, &OsStr)) -> Result<()> {
        pack::unpack_archive(&Opened(archive), shown, to, self.options, self.watch).map(drop)
    }

    /// Copy a file as it is.
    fn copy(&self, object: &Object, shown: &Path, name: &OsStr, to: &Arc<Dir>) -> Result<()> {
        let size = object.size();
        self.watch.begin(shown, Task::Copy, size);
        let output = Output::create(to, name)?;
        let mut bytes = Vec::new();
        for at in (0..size).step_by(STEP as usize) {
            bytes.resize((size - at).min(STEP) as usize, 0);
            object.read(at, &mut bytes).about_path(shown)?;
            output.file().write_all_at(&bytes, at).about_path(&output.path())?;
            self.watch.advance(bytes.len() as u64);
        }
        let exists = to.stat(name)?.is_some();
        let same = exists && same_bytes(output.file(), &to.open_file(name)?).about_path(shown)?;
        if exists && !same && !self.options.force {
            let why = "exists and differs; remove it or use --force";
            return Err(Error::invalid(why).about_path(&output.path()));
        }
        if !same {
            let modified = object.identity().facts.modified.unwrap_or_else(SystemTime::now);
            let age = modified.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let mtime = (age.as_secs() as i64, age.subsec_nanos());
            let mut own = Attributes::of(output.file()).about_path(&output.path())?;
            (own.mode, own.mtime) = (0o644, mtime);
            output.sync(&own)?;
            let existing = if exists { Existing::Replace } else { Existing::Refuse };
            output.commit(existing)?;
        }
        self.watch.end(&FileReport {
            path: shown.to_owned(),
            output: to.path(name),
            original: size,
            stored: size,
            action: if same { Action::AlreadyDone } else { Action::Copied },
        });
        Ok(())
    }
}
