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
use crate::format::Footer;
use crate::output::{
    Attributes, Copied, Copier, Dir, Existing, Form, Output, Place, is_temporary, sha256, worth_telling,
};
use crate::read::{self, Archive};
use clap::Args;
use rustix::fs::{FileType, fstat};
use std::collections::HashMap;
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

/// Bits that are not taken from an archive of somebody else: it runs as, or is written by, whoever the archive's maker
/// wanted.
const RISKY: u32 = 0o6002;

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
        let copier = Copier::new(Arc::clone(&to), args.force);
        let mut walk = Walk { args: &args, watch: &watch, copier };
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
    Ok((Dir::open(output)?, made))
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
    let begun = Instant::now();
    let footer = archive.footer();
    let there = there(out, name, footer)?;
    let to = out.path(name);
    if there == There::Other && !args.force {
        return Err(Error::invalid("exists and is something else; remove it or use --force").about_path(&to));
    }
    if there != There::Same {
        watch.bar.start("unpacking", path, footer.original_len, 1);
        let output = Output::create(out, name)?;
        let progress = |bytes| watch.bar.advance(bytes);
        let unpacked = read::unpack(archive, output.file(), &to, &*codec::fastest(), &progress);
        unpacked.map_err(|e| naming(e, path, &to))?;
        let lost = output.sync(&attributes(archive, path, args.preserve)?)?;
        output.commit(if args.force { Existing::Replace } else { Existing::Refuse })?;
        say_lost(watch, path, lost);
    }
    let action = if there == There::Same { "already done" } else { "unpacked" };
    let stored = archive.stored_len();
    watch.add(Row { stored, ..row(action, path, &to, footer.original_len, begun) });
    Ok(())
}

/// What a restored file is to have: what its archive has, and no more permissions than the original had.
fn attributes(archive: &Archive, path: &Path, preserve: bool) -> Result<Attributes> {
    let mut attributes = Attributes::of(archive.file()).about_path(path)?;
    attributes.narrow(archive.footer().mode);
    attributes.mtime = archive.footer().mtime;
    let me = rustix::process::geteuid();
    if attributes.uid() != me.as_raw() && !(preserve && me.is_root()) {
        attributes.narrow(!RISKY);
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

fn there(out: &Dir, name: &OsStr, footer: &Footer) -> Result<There> {
    let Some(stat) = out.stat(name)? else { return Ok(There::Nothing) };
    let alike = FileType::from_raw_mode(stat.st_mode).is_file() && stat.st_size as u64 == footer.original_len;
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

/// All files of a directory are written in one form: as what they were.
const FORM: Form = 0;

struct Walk<'a> {
    args: &'a UnpackArgs,
    watch: &'a Watch,
    copier: Copier,
}

/// What is done with an entry that is a file.
enum Plan {
    Restore(Archive, OsString),
    Copy,
}

impl Walk<'_> {
    fn directory(&mut self, from: &Arc<Dir>, to: &Arc<Dir>, at: &Path) {
        let entries = match from.entries() {
            Ok(entries) => entries,
            Err(e) => return self.watch.fail(&e),
        };
        let names: Vec<&OsStr> = entries.iter().map(|e| &*e.name).collect();
        let mut restored: HashMap<OsString, OsString> = HashMap::new();
        for entry in &entries {
            let name = &entry.name;
            let done = if entry.kind.is_dir() {
                self.child(from, to, name, at)
            } else if entry.kind.is_symlink() {
                self.symlink(from, to, name)
            } else if entry.kind.is_file() {
                self.file(from, to, name, at, &names, &mut restored)
            } else {
                let path = from.path(name);
                self.watch
                    .warn(format!("{}: neither file, directory nor link; left out", escape::path(&path)));
                Ok(())
            };
            done.unwrap_or_else(|e| self.watch.fail(&e));
        }
    }

    fn child(&mut self, from: &Arc<Dir>, to: &Arc<Dir>, name: &OsStr, at: &Path) -> Result<()> {
        let from = from.child(name)?;
        let (to, _) = to.make_child(name)?;
        self.directory(&from, &to, &at.join(name));
        self.finish_directory(&from, &to);
        Ok(())
    }

    /// Give a directory that is filled the attributes of its original.
    fn finish_directory(&self, from: &Dir, to: &Dir) {
        match Copier::finish_directory(from, to) {
            Ok(lost) => say_lost(self.watch, from.own_path(), lost),
            Err(e) => self.watch.fail(&e),
        }
    }

    fn file(
        &mut self,
        from: &Arc<Dir>,
        to: &Arc<Dir>,
        name: &OsStr,
        at: &Path,
        names: &[&OsStr],
        restored: &mut HashMap<OsString, OsString>,
    ) -> Result<()> {
        let path = from.path(name);
        if is_temporary(name) {
            return Ok(());
        }
        let file = from.open_file(name)?;
        let stat = fstat(&file).about_path(&path)?;
        let (original, archive) = match self.plan(&file, &path, name)? {
            Plan::Restore(archive, original) => (original, Some(archive)),
            Plan::Copy => (name.to_owned(), None),
        };
        if archive.is_some() {
            // Where both are there, the plain file is the one that a mount shows.
            if names.contains(&&*original) {
                let original = escape::path(&original);
                self.watch.warn(format!("{}: left out, {original} is beside it", escape::path(&path)));
                return Ok(());
            }
            if let Some(other) = restored.insert(original.clone(), name.to_owned()) {
                let why = format!(
                    "would be restored as {}, as {} is",
                    escape::path(&original),
                    escape::path(&other)
                );
                return Err(Error::invalid(why).about_path(&path));
            }
        }
        let place = Place { dir: to, at, name: &original };
        if self.copier.link_again(&stat, FORM, &place)? {
            self.watch.add(row("linked", &path, &to.path(&original), 0, Instant::now()));
            return Ok(());
        }
        match archive {
            Some(archive) => restore(&archive, &path, to, &original, self.args, self.watch)?,
            None => self.copy(&file, &path, &place)?,
        }
        self.copier.wrote(&stat, FORM, &place);
        Ok(())
    }

    fn plan(&self, file: &File, path: &Path, name: &OsStr) -> Result<Plan> {
        // Something else with that name is shown by a mount as it is.
        let named = Path::new(name).extension().is_some_and(|e| e == "bsz");
        if !named || read::peek(file).about_path(path)?.is_none() {
            return Ok(Plan::Copy);
        }
        let archive = Archive::from_file(file.try_clone().about_path(path)?).about_path(path)?;
        let original = tree::original_name(&archive, path)?.into_os_string();
        Ok(Plan::Restore(archive, original))
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

    fn symlink(&self, from: &Dir, to: &Dir, name: &OsStr) -> Result<()> {
        self.copier.symlink(&from.read_link(name)?, to, name)?;
        self.watch.add(row("linked", &from.path(name), &to.path(name), 0, Instant::now()));
        Ok(())
    }
}
