//! Archives made again from what they hold: standing alone, or against other bases.

use super::{
    Action, Check, FileReport, Opener, Options, Progress, Task,
    encode::{self, Input},
    file::sync_and_check,
    pins::{Needs, commit, packed_from, unpin},
    source::Source,
};
use crate::{
    error::{Context, Error, Result},
    format::{MAX_CHUNK, bases_of},
    output::{Attributes, Dir, Existing, Output, file_id},
};
use rustix::fs::{XattrFlags, fgetxattr, flistxattr, fsetxattr, fstat};
use std::{fs::File, os::unix::ffi::OsStrExt, path::Path};

/// What chunks are multiples of.
const CHUNK_STEP: u32 = 64 << 10;
/// The store's own attributes of archives.
const MARKS: &[u8] = b"user.bsz.";

/// Make the archive at `path` again, against those of [`Options::bases`] that are of use, and put
/// it in its place. An archive that stands alone, and is to do so, is left as it is.
///
/// The original is unpacked to a file without a name beside it, which is there until this is done.
///
/// # Errors
/// Io; corruption; invalid argument if `path` is not an archive, if it is replaced meanwhile, or if
/// a base cannot be pinned. The archive is as it was then.
pub fn repack(
    path: &Path,
    o: &Options,
    open: Opener<'_>,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<FileReport> {
    // A link stays one.
    let (dir, name) = std::fs::canonicalize(path).about_path(path).and_then(|p| Dir::of(&p))?;
    let file = dir.open_file(&name).about_path(path)?;
    let stat = fstat(&file).about_path(path)?;
    let needed = bases_of(&file).about_path(path)?;
    let needed = needed.ok_or_else(|| Error::invalid("not a .bsz archive").about_path(path))?;
    let archive = open(file.try_clone().about_path(path)?, path).about_path(path)?;
    let footer = archive.footer();
    let mut report = FileReport {
        path: path.to_owned(),
        output: path.to_owned(),
        original: footer.original_len,
        stored: stat.st_size as u64,
        action: Action::AlreadyDone,
    };
    if needed.is_empty() && o.bases.is_empty() {
        // An earlier run may have been killed before it removed them.
        unpin(&dir, None)?;
        p.end(&report);
        return Ok(report);
    }
    p.begin(path, Task::Unpack, footer.original_len);
    let plain = Output::create(&dir, &name)?;
    archive.unpack(plain.file(), path, p)?;
    p.begin(path, Task::Pack, footer.original_len);
    let original = footer.naming.original_name(&name).unwrap_or_else(|| name.clone());
    let copy = plain.file().try_clone().about_path(path)?;
    let source = Source::unpacked(copy, (&dir, original, path), footer)?;
    let output = Output::create(&dir, &name)?;
    let chunk_size = footer.max_chunk.next_multiple_of(CHUNK_STEP).clamp(CHUNK_STEP, MAX_CHUNK);
    let (after, before) = (&|_, _| Ok(()), &|| Ok(()));
    let (source, naming, bases) = (&source, footer.naming, &o.bases);
    let input = Input { source, naming, chunk_size, after, before, twins: None, bases };
    let written = encode::archive(input, &output, p)?;
    drop(plain);
    keep_marks(&file, output.file()).about_path(path)?;
    let attributes = Attributes::of(&file).about_path(path)?;
    sync_and_check(&output, &attributes, check, p)?;
    if !dir.has(&name, file_id(&stat))? {
        return Err(Error::invalid("was renamed or removed meanwhile").about_path(path));
    }
    let warn = |why: &Error| p.warn(path, &why.to_string());
    let needs = Needs { bases: &written.bases, unpinned: bases.unpinned, warn: &warn };
    commit(output, Existing::Replace, (&dir, &name), &needs)?;
    if stat.st_nlink > 1 {
        p.warn(path, "had other names (hard links), which keep the archive as it was");
    }
    (report.stored, report.action) = (written.stored, packed_from(&written.bases));
    p.end(&report);
    Ok(report)
}

/// Give a new archive the marks of the one that it replaces.
fn keep_marks(from: &File, to: &File) -> Result<()> {
    let mut names = vec![0; 64 << 10];
    // Where there are no such attributes, there is nothing to keep.
    let Ok(len) = flistxattr(from, &mut names[..]) else { return Ok(()) };
    for name in names[..len].split(|&byte| byte == 0).filter(|name| name.starts_with(MARKS)) {
        let name = std::ffi::OsStr::from_bytes(name);
        let mut value = vec![0; 64 << 10];
        let len = fgetxattr(from, name, &mut value[..])?;
        fsetxattr(to, name, &value[..len], XattrFlags::empty())?;
    }
    Ok(())
}
