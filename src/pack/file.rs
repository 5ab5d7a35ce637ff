//! One file to one archive.

use super::{Action, Check, FileReport, Options, Progress, encode, source::Source};
use crate::{
    error::{Context, Error, Result},
    format::{Footer, Naming, peek},
    output::{Attributes, Output, sync_directory},
};
use sha2::{Digest, Sha256};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// Pack the file `src` to the archive `out`, and remove `src` afterwards if the options say so.
///
/// An `out` that an earlier, interrupted run left complete is kept.
///
/// # Errors
/// Io; invalid argument, where `src` is no regular file, is an archive itself or changes meanwhile, or where `out`
/// exists and holds something else. `src` is then as it was and `out` too.
pub fn file(src: &Path, out: &Path, o: &Options, check: Check<'_>, p: &dyn Progress) -> Result<FileReport> {
    pack(Source::open(src, !o.in_place)?, src, out, o, check, p)
}

pub(super) fn pack(
    source: Source,
    src: &Path,
    out: &Path,
    o: &Options,
    check: Check<'_>,
    p: &dyn Progress,
) -> Result<FileReport> {
    if source.is_archive() {
        return Err(Error::invalid("already a .bsz archive").about(src.display()));
    }
    p.begin(src, 2 * source.len());
    let mut report = FileReport {
        path: src.to_owned(),
        output: out.to_owned(),
        original: source.len(),
        stored: 0,
        action: Action::Packed,
    };
    let existing = existing(out, o, &source)?;
    if let Some(footer) = &existing {
        report.action = Action::AlreadyDone;
        report.stored = out.metadata().about_path(out)?.len();
        if o.in_place {
            // The earlier run stopped between writing the archive and removing the original.
            check(out, p)?;
            same_content(&source, src, footer)?;
        }
    } else {
        let output = Output::create(out)?;
        report.stored = encode::archive(&source, &output, naming(src), o, p)?;
        source.unchanged()?;
        // The disk takes its time: what it is given is verified meanwhile.
        let attributes = Attributes::of(source.meta());
        let (synced, checked) = std::thread::scope(|s| {
            let syncing = s.spawn(|| output.sync(attributes));
            let checked = check(output.temporary(), p).about_path(out);
            (syncing.join(), checked)
        });
        checked?;
        synced.map_err(|_| Error::invalid("writing it panicked").about(out.display()))??;
        output.commit(o.force)?;
    }
    if o.in_place {
        source.unchanged()?;
        fs::remove_file(src).about_path(src)?;
        sync_directory(src)?;
    }
    p.end(&report);
    Ok(report)
}

fn naming(src: &Path) -> Naming {
    src.file_name().map_or(Naming::Appended, Naming::of)
}

/// The footer of an archive of `source` that is already at `out`.
///
/// An archive gets its name only when it is complete and verified, so that size and time tell, unless the original
/// is to be removed.
fn existing(out: &Path, o: &Options, source: &Source) -> Result<Option<Footer>> {
    let file = match File::open(out) {
        Ok(f) => f,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).about_path(out),
    };
    let a = Attributes::of(source.meta());
    match peek(&file) {
        Ok(Some(f)) if f.original_len == source.len() && f.mtime == a.mtime && !o.force => Ok(Some(f)),
        _ if o.force => Ok(None),
        _ => Err(Error::invalid("exists and is not the archive of this file; remove it or use --force")
            .about(out.display())),
    }
}

fn same_content(source: &Source, src: &Path, footer: &Footer) -> Result<()> {
    let mut hash = Sha256::new();
    let mut buffer = Vec::new();
    let mut at = 0;
    while at < source.len() {
        let n = (source.len() - at).min(1 << 20);
        source.read(at, &mut buffer, n as usize)?;
        hash.update(&buffer);
        at += n;
    }
    if hash.finalize()[..] == footer.sha256 {
        return Ok(());
    }
    Err(Error::invalid("its archive exists but holds other bytes; remove the archive or use --force")
        .about(src.display()))
}
