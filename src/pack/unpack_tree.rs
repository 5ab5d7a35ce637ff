//! `bsz unpack`: archives back to what they were made from, alone or in the directories that hold them.
//!
//! Everything is reached from the open directories, and no link in them is followed.

use super::archive::{Common, naming};
use super::interrupt::clean_up_when_interrupted;
use super::progress::Watch;
use super::report::{Output as Report, Row};
use super::tree;
use crate::codec;
use crate::error::{Context, Error, Result};
use crate::escape;
use crate::format::{Footer, Naming};
use crate::output::{
    Attributes, Copied, Copier, Dir, DirEntry, Existing, Form, Output, Place, again_if_taken,
    file_id, is_temporary, sha256, worth_telling,
};
use crate::pack::{Leads, leads};
use crate::read::{self, Archive};
use clap::Args;
use rustix::fs::{FileType, fstat};
use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Restore the originals, byte for byte
#[derive(Args)]
#[command(after_help = "Examples:
  bsz unpack model.bsz                       writes model.safetensors beside it
  bsz unpack model.bsz -o copy.safetensors   writes that file
  bsz unpack llama-packed/ -o llama/         a whole directory, the rest copied
  bsz unpack --preserve backup/ -o /srv/     as root, with every permission bit that was recorded")]
pub struct UnpackArgs {
    /// An archive, or a directory with archives
    #[arg(value_name = "SRC")]
    source: PathBuf,
    /// The file or directory to write
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Overwrite files that are there
    #[arg(long)]
    force: bool,
    /// Restore setuid, setgid and write permission for everybody from archives of other owners, too; for root
    #[arg(long)]
    preserve: bool,
    #[command(flatten)]
    common: Common,
}

/// Restore one archive, or every archive of a directory.
pub fn unpack(args: UnpackArgs, quiet: bool) -> Result<()> {
    clean_up_when_interrupted()?;
    args.common.start_threads()?;
    let watch = Watch::new(Report::new(args.common.json, quiet), quiet);
    let source = &args.source;
    if fs::metadata(source).about_path(source)?.is_dir() {
        let why = "a directory needs -o OUT";
        let output = args.output.as_ref().ok_or_else(|| Error::invalid(why).about_path(source))?;
        tree::refuse_inside(source, output)?;
        let (to, made) = open_root(output)?;
        let from = Dir::open(source)?;
        let copier = Copier::new(Arc::clone(&to), args.force, trusts(&args));
        let root = fs::canonicalize(source).about_path(source)?;
        let mut walk = Walk { args: &args, watch: &watch, copier, root };
        walk.directory(&from, &to, Path::new(""));
        if made {
            walk.finish_directory(&from, &to);
        }
    } else {
        unpack_one(&args, &watch).unwrap_or_else(|e| watch.fail(&e));
    }
    watch.finish("unpack")
}

fn open_root(output: &Path) -> Result<(Arc<Dir>, bool)> {
    let made = !output.exists();
    fs::create_dir_all(output).about_path(output)?;
    let dir = Dir::open(output)?;
    let unfinished = dir.is_unfinished(made);
    Ok((dir, unfinished))
}

/// Whether permission bits of other owners' files are kept.
fn trusts(args: &UnpackArgs) -> bool {
    args.preserve && rustix::process::geteuid().is_root()
}

/// Restore one archive that the user named.
fn unpack_one(args: &UnpackArgs, watch: &Watch) -> Result<()> {
    let source = &args.source;
    let (dir, name) = Dir::of(&fs::canonicalize(source).about_path(source)?)?;
    let file = dir.open_file(&name).map_err(|e| naming(e, source, source))?;
    let archive = Archive::from_file(file).about_path(source)?;
    let original = || tree::original_name(&archive, source);
    let output = match &args.output {
        Some(output) if output.is_dir() => output.join(original()?),
        Some(output) => output.clone(),
        None => source.with_file_name(original()?),
    };
    let (out, name) = Dir::of(&output)?;
    restore(&archive, source, &out, &name, args, watch)
}

/// Restore an archive to the file `name` of `out`.
fn restore(
    archive: &Archive,
    path: &Path,
    out: &Arc<Dir>,
    name: &OsStr,
    args: &UnpackArgs,
    watch: &Watch,
) -> Result<()> {
    let (begun, to, footer) = (Instant::now(), out.path(name), archive.footer());
    let there = again_if_taken(|| {
        let there = there(out, name, archive)?;
        if there == There::Other && !args.force {
            let why = "exists and is something else; remove it or use --force";
            return Err(Error::invalid(why).about_path(&to));
        }
        if there != There::Same {
            watch.bar.start("unpacking", path, footer.original_len, 1);
            let output = Output::create(out, name)?;
            let progress = |bytes| watch.bar.advance(bytes);
            let unpacked = read::unpack(archive, output.file(), &to, &*codec::fastest(), &progress);
            unpacked.map_err(|e| naming(e, path, &to))?;
            let lost = output.sync(&attributes(archive, path, trusts(args))?)?;
            output.commit(if args.force { Existing::Replace } else { Existing::Refuse })?;
            say_lost(watch, path, lost);
        }
        Ok(there)
    })?;
    let action = if there == There::Same { "already done" } else { "unpacked" };
    let stored = archive.stored_len();
    watch.add(Row { stored, ..row(action, path, &to, footer.original_len, begun) });
    Ok(())
}

/// What a restored file is to have: what its archive has, and no more permissions than the original had.
fn attributes(archive: &Archive, path: &Path, trust: bool) -> Result<Attributes> {
    let mut attributes = Attributes::of(archive.file()).about_path(path)?;
    attributes.narrow(archive.footer().mode);
    attributes.mtime = archive.footer().mtime;
    if !trust {
        attributes.distrust_others();
    }
    Ok(attributes)
}

fn say_lost(watch: &Watch, path: &Path, lost: Vec<String>) {
    if let Some(lost) = worth_telling(lost) {
        watch.warn(format!("{}: {lost}", escape::path(path)));
    }
}

/// What stands where a file is to be.
#[derive(PartialEq)]
enum There {
    Nothing,
    /// The very same bytes.
    Same,
    Other,
}

fn there(out: &Dir, name: &OsStr, archive: &Archive) -> Result<There> {
    let footer = archive.footer();
    let Some(stat) = out.stat(name)? else { return Ok(There::Nothing) };
    if file_id(&stat) == file_id(&fstat(archive.file()).about_path(&out.path(name))?) {
        return Err(Error::invalid("is the archive itself").about_path(&out.path(name)));
    }
    let alike = FileType::from_raw_mode(stat.st_mode).is_file()
        && stat.st_size as u64 == footer.original_len;
    let same = alike && sha256(&out.open_file(name)?, &out.path(name))? == footer.sha256;
    Ok(if same { There::Same } else { There::Other })
}

fn row(action: &'static str, path: &Path, output: &Path, bytes: u64, begun: Instant) -> Row {
    Row {
        path: path.into(),
        output: Some(output.into()),
        action,
        why: None,
        original: bytes,
        stored: bytes,
        seconds: begun.elapsed().as_secs_f64(),
    }
}

/// Forms in which a file is written again: as it is, and as what an archive was made from.
const COPY: Form = 0;
const RESTORED: Form = 1;

struct Walk<'a> {
    args: &'a UnpackArgs,
    watch: &'a Watch,
    copier: Copier,
    /// The absolute path of what is unpacked.
    root: PathBuf,
}

/// The names that the entries of a directory will have.
#[derive(Default)]
struct Plan {
    /// By the name to come: who has it, and whether that is an archive to be restored.
    names: HashMap<OsString, (OsString, bool)>,
    /// Entries that will not be there, and why.
    left: HashMap<OsString, Error>,
    /// Archives that hold what is beside them under their original's name.
    same: HashSet<OsString>,
}

impl Plan {
    fn new(from: &Dir, entries: &[DirEntry]) -> Self {
        let mut plan = Self::default();
        let mut archives = Vec::new();
        for DirEntry { name, kind } in entries {
            match if kind.is_file() { footer(from, name) } else { Ok(None) } {
                Ok(Some(footer)) if footer.naming.original_name(name).is_some() => {
                    archives.push((name, footer))
                }
                Ok(_) => drop(plan.names.insert(name.clone(), (name.clone(), false))),
                Err(e) => drop(plan.left.insert(name.clone(), e)),
            }
        }
        // Of two that show one name, a mount shows the archive that is not called by all of the name.
        archives.sort_by_key(|(_, footer)| footer.naming == Naming::Appended);
        for (name, footer) in archives {
            let original = footer.naming.original_name(name).unwrap_or_default();
            match plan.names.get(&original) {
                None => drop(plan.names.insert(original, (name.clone(), true))),
                // What a mount shows is the file that is there plainly, or the other archive.
                Some((other, restored)) if holds(from, other, *restored, &footer) => {
                    plan.same.insert(name.clone());
                }
                Some((other, _)) => {
                    let why = format!(
                        "would be restored as {}, as which a mount shows {}; it is left out",
                        escape::path(&original),
                        escape::path(other)
                    );
                    plan.left
                        .insert(name.clone(), Error::invalid(why).about_path(&from.path(name)));
                }
            }
        }
        plan
    }
}

/// The footer of the file `name`, if it is an archive by its name and its content.
fn footer(from: &Dir, name: &OsStr) -> Result<Option<Footer>> {
    if Path::new(name).extension().is_none_or(|e| e != "bsz") {
        return Ok(None);
    }
    read::peek(&from.open_file(name)?).about_path(&from.path(name))
}

/// Whether the file `name`, or the original of that archive, is what an archive with this footer holds.
fn holds(from: &Dir, name: &OsStr, is_archive: bool, footer: &Footer) -> bool {
    let Ok(file) = from.open_file(name) else { return false };
    match is_archive {
        true => matches!(read::peek(&file), Ok(Some(other)) if other.sha256 == footer.sha256),
        false => sha256(&file, &from.path(name)).is_ok_and(|hash| hash == footer.sha256),
    }
}

impl Walk<'_> {
    fn directory(&mut self, from: &Arc<Dir>, to: &Arc<Dir>, at: &Path) {
        let entries = match from.entries() {
            Ok(entries) => entries,
            Err(e) => return self.watch.fail(&e),
        };
        let mut plan = Plan::new(from, &entries);
        let targets: HashMap<OsString, (OsString, bool)> =
            plan.names.drain().map(|(to, (name, restored))| (name, (to, restored))).collect();
        for DirEntry { name, kind } in &entries {
            let warn =
                |what: &str| self.watch.warn(format!("{}: {what}", escape::path(&from.path(name))));
            let done = if let Some(e) = plan.left.remove(name) {
                Err(e)
            } else if kind.is_dir() {
                self.child(from, to, name, at)
            } else if kind.is_symlink() {
                self.symlink(from, to, name, at)
            } else if !kind.is_file() {
                warn("neither file, directory nor link; left out");
                Ok(())
            } else if is_temporary(name) {
                warn(
                    "is being written by another run, or was left by one that was killed: left out",
                );
                Ok(())
            } else if let Some((original, restored)) = targets.get(name) {
                self.file(from, name, &Place { dir: to, at, name: original }, *restored)
            } else {
                debug_assert!(plan.same.contains(name));
                Ok(())
            };
            done.unwrap_or_else(|e| self.watch.fail(&e));
        }
    }

    fn child(&mut self, from: &Arc<Dir>, to: &Arc<Dir>, name: &OsStr, at: &Path) -> Result<()> {
        let from = from.child(name)?;
        let (to, unfinished) = to.make_child(name)?;
        self.directory(&from, &to, &at.join(name));
        if unfinished {
            self.finish_directory(&from, &to);
        }
        Ok(())
    }

    /// Give a directory that is filled the attributes of its original.
    fn finish_directory(&self, from: &Dir, to: &Dir) {
        match self.copier.finish_directory(from, to) {
            Ok(lost) => say_lost(self.watch, from.own_path(), lost),
            Err(e) => self.watch.fail(&e),
        }
    }

    fn file(
        &mut self,
        from: &Arc<Dir>,
        name: &OsStr,
        to: &Place<'_>,
        restored: bool,
    ) -> Result<()> {
        let path = from.path(name);
        let file = from.open_file(name)?;
        let stat = fstat(&file).about_path(&path)?;
        let form = if restored { RESTORED } else { COPY };
        if self.copier.link_again(&stat, form, to)? {
            self.watch.add(row("linked", &path, &to.dir.path(to.name), 0, Instant::now()));
            return Ok(());
        }
        if restored {
            let archive = Archive::from_file(file).about_path(&path)?;
            restore(&archive, &path, to.dir, to.name, self.args, self.watch)?;
        } else {
            self.copy(&file, &path, to)?;
        }
        self.copier.wrote(&stat, form, to);
        Ok(())
    }

    fn copy(&self, file: &File, path: &Path, to: &Place<'_>) -> Result<()> {
        let begun = Instant::now();
        let (copied, lost) = self.copier.file(file, path, to)?;
        say_lost(self.watch, path, lost);
        let bytes = file.metadata().about_path(path)?.len();
        let action = if copied == Copied::Made { "copied" } else { "already done" };
        self.watch.add(row(action, path, &to.dir.path(to.name), bytes, begun));
        Ok(())
    }

    fn symlink(&self, from: &Arc<Dir>, to: &Dir, name: &OsStr, at: &Path) -> Result<()> {
        let mut target = from.read_link(name)?;
        let path = from.path(name);
        let warn = |what: &str| self.watch.warn(format!("{}: {what}", escape::path(&path)));
        match leads(&self.root, at, Path::new(&target)) {
            Leads::Outside => {
                warn("links to a file outside of the directory, which is not restored with it")
            }
            // What is restored is to lead to what is restored.
            Leads::Absolute(relative) => target = relative.into(),
            Leads::Inside => {}
        }
        if self.leads_to_archive(from, Path::new(&target)) {
            warn("links to an archive, which is restored under another name");
        }
        self.copier.symlink(&target, to, name)?;
        self.watch.add(row("linked", &path, &to.path(name), 0, Instant::now()));
        Ok(())
    }

    /// Whether a link in `from` to `target` names an archive that is restored: then it leads nowhere.
    fn leads_to_archive(&self, from: &Arc<Dir>, target: &Path) -> bool {
        let (Some(parent), Some(name)) = (target.parent(), target.file_name()) else {
            return false;
        };
        let dir = match parent.as_os_str().is_empty() {
            true => Ok(Arc::clone(from)),
            // Only to say something of it.
            false => Dir::open(&from.path(parent.as_os_str())),
        };
        dir.and_then(|dir| footer(&dir, name)).is_ok_and(|footer| footer.is_some())
    }
}
