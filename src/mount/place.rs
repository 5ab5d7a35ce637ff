//! Where a path leads, found out without waiting for what is mounted there.

use super::ask::{self, Question};
use super::mountinfo::{self, Mount};
use super::{FS_TYPE, SILENT};
use crate::error::{Context, Error, Result};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Most symbolic links to follow one after another, as the kernel does.
const MOST_LINKS: usize = 40;

/// What a path leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
    Other,
    /// A mount of ours, which was not touched.
    Ours,
}

/// Their first bytes in an answer.
const KINDS: [(u8, Kind); 4] =
    [(b'd', Kind::Directory), (b'f', Kind::File), (b'o', Kind::Other), (b'm', Kind::Ours)];

/// What is at a path, and its canonical form.
pub(super) type Found = Result<(PathBuf, Kind), ask::Unanswered>;

/// What is at `path`.
pub(super) fn look(path: &Path) -> Found {
    find(&[(Question::Look, path)]).pop().unwrap_or(Err(ask::Unanswered::Silent))
}

/// What is at a mountpoint, or at what is to be one: a mount of ours is not touched.
pub(super) fn place(path: &Path) -> Found {
    find(&[(Question::Place, path)]).pop().unwrap_or(Err(ask::Unanswered::Silent))
}

/// What is at the source and at the mountpoint of a mount to be, found out at the same time.
pub(super) fn look_and_place(source: &Path, mountpoint: &Path) -> (Found, Found) {
    let mut found = find(&[(Question::Look, source), (Question::Place, mountpoint)]).into_iter();
    let mut next = || found.next().unwrap_or(Err(ask::Unanswered::Silent));
    (next(), next())
}

fn find(questions: &[(Question, &Path)]) -> Vec<Found> {
    let known: Vec<_> = questions.iter().map(|(question, path)| known(*question, path)).collect();
    let open = questions.iter().zip(&known).filter_map(|((question, _), known)| match known {
        Ok(Known::Absolute(path)) => Some((*question, &**path)),
        _ => None,
    });
    let mut answers = ask::ask_all(&open.collect::<Vec<_>>()).into_iter();
    let found = known.into_iter().map(|known| match known? {
        Known::Ours(mountpoint) => Ok((mountpoint, Kind::Ours)),
        Known::Absolute(_) => {
            answers.next().unwrap_or(Err(ask::Unanswered::Silent)).and_then(parse)
        }
    });
    found.collect()
}

/// What is known of a path without touching it.
enum Known {
    /// The mount table has a mount of ours there.
    Ours(PathBuf),
    /// No more than its absolute form.
    Absolute(PathBuf),
}

fn known(question: Question, path: &Path) -> Result<Known, ask::Unanswered> {
    let absolute = std::path::absolute(path).map_err(|e| ask::Unanswered::Failed(e.into()))?;
    if question == Question::Place && !absolute.components().any(|c| c == Component::ParentDir) {
        let mount = mountinfo::topmost_at(&absolute).map_err(ask::Unanswered::Failed)?;
        if let Some(mount) = mount.filter(|mount| mount.fs_type == FS_TYPE) {
            return Ok(Known::Ours(mount.mountpoint));
        }
    }
    Ok(Known::Absolute(absolute))
}

/// The mount at `path`, topmost there, if there is one.
pub(super) fn mount_at(path: &Path) -> Result<Option<Mount>> {
    let absolute = std::path::absolute(path).about_path(path)?;
    // What the mount table has needs no further look, and may be a mount that is not answered for.
    let plain = !absolute.components().any(|c| c == Component::ParentDir);
    if let Some(mount) = mountinfo::topmost_at(&absolute)?.filter(|_| plain) {
        return Ok(Some(mount));
    }
    let (canonical, _) = place(path).map_err(|e| e.or_silent(SILENT)).about_path(path)?;
    mountinfo::topmost_at(&canonical)
}

fn parse(answer: Vec<u8>) -> Result<(PathBuf, Kind), ask::Unanswered> {
    let kind = answer.split_first().and_then(|(first, path)| {
        let (_, kind) = KINDS.iter().find(|(byte, _)| byte == first)?;
        Some((OsStr::from_bytes(path).into(), *kind))
    });
    kind.ok_or_else(|| ask::Unanswered::Failed(Error::invalid("the answer cannot be read")))
}

/// The answer to [`Question::Look`].
pub(super) fn answer_look(path: &Path) -> Result<Vec<u8>> {
    let canonical = path.canonicalize()?;
    let meta = canonical.metadata()?;
    let kind = match () {
        () if meta.is_dir() => Kind::Directory,
        () if meta.is_file() => Kind::File,
        () => Kind::Other,
    };
    Ok(encode(canonical, kind))
}

/// The answer to [`Question::Place`].
pub(super) fn answer_place(path: &Path) -> Result<Vec<u8>> {
    let place = walk(path)?;
    match mountinfo::topmost_at(&place)? {
        Some(mount) if mount.fs_type == FS_TYPE => Ok(encode(place, Kind::Ours)),
        _ => answer_look(path),
    }
}

fn encode(path: PathBuf, kind: Kind) -> Vec<u8> {
    let first = KINDS.iter().find(|(_, known)| *known == kind).map_or(b'o', |(byte, _)| *byte);
    [&[first], &path.into_os_string().into_vec()[..]].concat()
}

/// The canonical form of an absolute path. Where a mount is there, it is not touched: it may be a dead one.
fn walk(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..MOST_LINKS {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            // It ends in `..`, or is the root.
            return path.canonicalize();
        };
        let parent = parent.canonicalize()?;
        let here = parent.join(name);
        let mounted = mountinfo::topmost_at(&here).is_ok_and(|mount| mount.is_some());
        match here.read_link() {
            Ok(target) if !mounted => path = parent.join(target),
            _ => return Ok(here),
        }
    }
    Err(io::Error::from_raw_os_error(libc::ELOOP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mountpoint_is_named_as_the_mount_table_names_it() {
        let dir = tempfile::tempdir().expect("tempdir");
        let real = dir.path().canonicalize().expect("canonical").join("real");
        std::fs::create_dir_all(real.join("view")).expect("mkdir");
        std::os::unix::fs::symlink("real", dir.path().join("link")).expect("symlink");
        std::os::unix::fs::symlink("../link/view", real.join("to-view")).expect("symlink");
        std::os::unix::fs::symlink("round", dir.path().join("round")).expect("symlink");
        for spelled in
            ["link/view", "real/view", "real/./view/", "link/../real/view", "link/to-view"]
        {
            assert_eq!(
                walk(&dir.path().join(spelled)).expect(spelled),
                real.join("view"),
                "{spelled}"
            );
        }
        assert_eq!(
            walk(&dir.path().join("round")).err().and_then(|e| e.raw_os_error()),
            Some(libc::ELOOP)
        );
    }

    #[test]
    fn an_answer_has_the_kind_and_the_path() {
        let dir = tempfile::tempdir().expect("tempdir");
        let real = dir.path().canonicalize().expect("canonical");
        std::fs::write(real.join("file"), "").expect("write");
        for (path, kind) in [
            (real.clone(), Kind::Directory),
            (real.join("file"), Kind::File),
            ("/dev/null".into(), Kind::Other),
        ] {
            let answers = [answer_look(&path), answer_place(&path)];
            for answer in answers {
                assert_eq!(parse(answer.expect("there")).expect("read"), (path.clone(), kind));
            }
        }
    }
}
