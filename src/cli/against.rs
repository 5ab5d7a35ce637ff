//! Archives that others are packed against: those that the user names, and those that are found.

use super::common::verify_with;
use super::hints;
use crate::codec::{self, ChunkDecoder};
use crate::error::{Context, Error, Result};
use crate::format::{Base, Naming, is_pin};
use crate::input;
use crate::output::{FileId, file_id};
use crate::pack::{BaseFile, Bases, Progress};
use crate::read::{self, Archive, BaseBytes, FindBase, LocalBases};
use clap::Args;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// What finds bases by itself, in the place of a path.
const AUTO: &str = "auto";
/// The most files and directories that are looked at to find bases, and the most bases of a file.
const MOST_LOOKED_AT: usize = 20_000;
const MOST_FOUND: usize = 16;

/// The arguments of commands that pack against bases.
#[derive(Args)]
pub(super) struct AgainstArgs {
    /// Store models as differences from BASE: an archive, a model that has one beside it, or a
    /// directory of these; repeatable. With auto, an archive near by that fits is found
    #[arg(long, value_name = "BASE")]
    base: Vec<PathBuf>,
    /// Make an archive even if a hard link cannot keep its base: you keep the base yourself
    #[arg(long, requires = "base")]
    unpinned: bool,
}

impl AgainstArgs {
    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.base.is_empty()
    }

    /// Open the bases; `near` are the directories in which `auto` looks for some, and how deep.
    pub(super) fn open(&self, near: Vec<(PathBuf, u32)>, opened: &Arc<Opened>) -> Result<Bases> {
        let mut bases = Bases { unpinned: self.unpinned, ..Bases::default() };
        for path in self.base.iter().filter(|path| **path != *AUTO) {
            if path.is_dir() {
                let before = bases.given.len();
                for path in read::archives(path, &mut |e| super::complain(&e))? {
                    if !is_pin(path.file_name().unwrap_or_default())
                        && let Some(base) = opened.open(&path)?
                    {
                        bases.given.push(base);
                    }
                }
                if bases.given.len() == before {
                    let why = "has no archive that stands alone; pack the base first";
                    return Err(Error::invalid(why).about_path(path));
                }
            } else {
                bases.given.push(opened.open_base(path)?);
            }
        }
        if self.base.iter().any(|path| **path == *AUTO) {
            let opened = Arc::clone(opened);
            bases.find = Some(Arc::new(move |path, len| Ok(opened.near(path, len, &near))));
        }
        Ok(bases)
    }
}

/// Where the base of an archive in `dir` may be, and how many directories deep.
pub(super) fn near(dir: &Path) -> Vec<(PathBuf, u32)> {
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    vec![(dir.to_owned(), 4), (dir.join(".."), 2)]
}

/// An archive as a base.
struct ArchiveBase {
    archive: Archive,
    base: Base,
    path: PathBuf,
    decoder: Arc<dyn ChunkDecoder>,
}

impl BaseFile for ArchiveBase {
    fn base(&self) -> &Base {
        &self.base
    }

    fn file(&self) -> &File {
        self.archive.local_file()
    }

    fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        BaseBytes::read(self, at, out, &*self.decoder).about_path(&self.path)
    }
}

impl BaseBytes for ArchiveBase {
    fn read(&self, at: u64, out: &mut [u8], decoder: &dyn ChunkDecoder) -> Result<()> {
        match self.archive.read_at(at, out, decoder)? {
            n if n == out.len() => Ok(()),
            _ => Err(Error::truncated("the original ends before the bytes that are needed")),
        }
    }

    fn path(&self) -> &Path {
        &self.path
    }
}

/// The bases that this process has opened.
#[derive(Default)]
pub(super) struct Opened(Mutex<Vec<(FileId, Arc<ArchiveBase>)>>);

impl Opened {
    /// The archive at `path` as a base; `None` if it needs bases itself.
    fn open(&self, path: &Path) -> Result<Option<Arc<dyn BaseFile>>> {
        let archive = Archive::open(path)?;
        if !archive.index().bases().is_empty() {
            return Ok(None);
        }
        let stat = rustix::fs::fstat(archive.local_file()).about_path(path)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, base)) = known.iter().find(|(id, _)| *id == file_id(&stat)) {
            return Ok(Some(Arc::clone(base) as _));
        }
        let footer = archive.footer();
        let name = footer.naming.original_name(path.file_name().unwrap_or_default());
        let name = name.and_then(|name| name.into_string().ok()).filter(|name| name.len() <= 255);
        let base = Base {
            sha256: footer.sha256,
            len: footer.original_len,
            name: name.unwrap_or_else(|| "base".to_owned()),
        };
        let path = path.to_owned();
        let base = Arc::new(ArchiveBase { archive, base, path, decoder: codec::fastest() });
        known.push((file_id(&stat), Arc::clone(&base)));
        Ok(Some(base))
    }

    /// The base that the user means by `path`.
    fn open_base(&self, path: &Path) -> Result<Arc<dyn BaseFile>> {
        let file = input::open(path)?;
        let archive = match read::peek(&file).about_path(path)? {
            Some(_) => path.to_owned(),
            None => archive_beside(path, &file)?,
        };
        if let Some(base) = self.open(&archive)? {
            return Ok(base);
        }
        let bases = Archive::open(&archive)?;
        let names: Vec<&str> = bases.index().bases().iter().map(|base| &*base.name).collect();
        let why = format!(
            "is stored as differences itself, so it cannot be a base; use its own: {}",
            names.join(", ")
        );
        Err(Error::invalid(why).about_path(&archive))
    }

    /// Archives in these directories that the file at `path`, of `len` bytes, may differ little
    /// from: first those that the model names, then those of a similar length.
    fn near(&self, path: &Path, len: u64, dirs: &[(PathBuf, u32)]) -> Vec<Arc<dyn BaseFile>> {
        let named = hints::names(path);
        let mut found = Vec::new();
        let mut budget = MOST_LOOKED_AT;
        for (dir, depth) in dirs {
            look(dir, *depth, &mut budget, &mut found);
        }
        // Of equals the one that was found first: its path is the shortest.
        let mut ranked: Vec<(bool, bool, u64, usize, PathBuf)> = Vec::new();
        for (i, archive) in found.into_iter().enumerate() {
            let footer = input::open(&archive).and_then(|file| read::peek(&file));
            let Ok(Some(footer)) = footer else { continue };
            if footer.base_count == 0 && footer.original_len >= len / 16 {
                let is_named = hints::names_archive(&named, &archive);
                let pin = is_pin(archive.file_name().unwrap_or_default());
                ranked.push((!is_named, pin, footer.original_len.abs_diff(len), i, archive));
            }
        }
        ranked.sort();
        let mut bases: Vec<Arc<dyn BaseFile>> = Vec::new();
        for (.., archive) in ranked {
            match self.open(&archive) {
                Ok(Some(base)) if !bases.iter().any(|b| b.base().sha256 == base.base().sha256) => {
                    bases.push(base);
                }
                Ok(_) => {}
                Err(e) => log::info!("is no base: {e}"),
            }
            if bases.len() == MOST_FOUND {
                break;
            }
        }
        bases
    }

    /// Verify an archive that was packed against them.
    pub(super) fn check(
        self: &Arc<Self>,
        file: &File,
        quick: bool,
        p: &dyn Progress,
    ) -> Result<()> {
        let archive = Archive::from_file(file.try_clone()?)?;
        // One that was found has its pins beside it.
        let place = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).ok();
        let beside = place.map(|place| LocalBases::beside(&place));
        let archive = archive.with_bases(Arc::new(Known { opened: Arc::clone(self), beside }));
        verify_with(quick)(&archive, &*codec::verifying(), &|bytes| p.advance(bytes))
    }
}

/// Finds bases among those that were opened, and beside the archive.
struct Known {
    opened: Arc<Opened>,
    beside: Option<LocalBases>,
}

impl FindBase for Known {
    fn find(&self, base: &Base, with_plain: bool) -> Result<Arc<dyn BaseBytes>> {
        let known = self.opened.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = known.iter().find(|(_, known)| known.base.sha256 == base.sha256);
        if let Some((_, found)) = found {
            return Ok(Arc::clone(found) as _);
        }
        drop(known);
        match &self.beside {
            Some(beside) => beside.find(base, with_plain),
            None => Err(Error::invalid("is not known").about(&base.name)),
        }
    }
}

/// The archive beside the plain file at `path`.
fn archive_beside(path: &Path, file: &File) -> Result<PathBuf> {
    let len = file.metadata().about_path(path)?.len();
    let name = path.file_name().unwrap_or_default();
    for naming in [Naming::of(name), Naming::Appended] {
        let archive = path.with_file_name(naming.archive_name(name));
        let footer = input::open(&archive).and_then(|file| read::peek(&file));
        if let Ok(Some(footer)) = footer
            && footer.original_len == len
            && footer.naming == naming
        {
            return Ok(archive);
        }
    }
    let why = "is not an archive, and there is none of it beside it; pack it first, and others \
               against its archive";
    Err(Error::invalid(why).about_path(path))
}

/// Whether a path that is not among those that were `found` has the ending of archives.
fn is_new(path: &Path, found: &[PathBuf]) -> bool {
    path.extension() == Some(OsStr::new("bsz")) && !found.iter().any(|known| known == path)
}

/// Find archives below `dir`, at most `depth` directories deep. Links are not followed.
fn look(dir: &Path, depth: u32, budget: &mut usize, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut entries: Vec<_> = entries.flatten().take(*budget).collect();
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        if *budget == 0 {
            return;
        }
        *budget -= 1;
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => look(&path, depth - 1, budget, found),
            Ok(kind) if kind.is_file() && is_new(&path, found) => found.push(path),
            _ => {}
        }
    }
}
