//! Opening regular files for reading, without blocking and without side effects. Instead of a file,
//! there may be a named pipe, whose opening waits for a writer, or a device, whose opening may have
//! an effect.

use crate::error::{Context, Error, Result};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, Stat, fstat, openat, statat};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

/// Open the regular file at `path`; symbolic links are followed.
///
/// # Errors
/// Io; invalid argument if it is not a regular file.
pub fn open(path: &Path) -> Result<File> {
    open_at(CWD, path, OFlags::empty()).map(|(file, _)| file).about_path(path)
}

/// Open the regular file `path` in the directory `dir` with additional `flags`:
/// [`OFlags::NOFOLLOW`] refuses links. Errors do not name the file.
///
/// # Errors
/// As [`open`].
pub fn open_at(dir: impl AsFd, path: &Path, flags: OFlags) -> Result<(File, Stat)> {
    let look =
        if flags.contains(OFlags::NOFOLLOW) { AtFlags::SYMLINK_NOFOLLOW } else { AtFlags::empty() };
    check(&statat(&dir, path, look)?)?;
    // Something else may have taken the name since; opening it must not block, either.
    let flags = flags | OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = openat(&dir, path, flags, Mode::empty())?;
    let stat = fstat(&file)?;
    check(&stat)?;
    Ok((file.into(), stat))
}

fn check(stat: &Stat) -> Result<()> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => return Ok(()),
        FileType::Directory => "a directory",
        FileType::Symlink => "a symbolic link",
        FileType::Fifo => "a named pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Unknown => "of unknown type",
    };
    Err(Error::invalid(format!("not a regular file, but {kind}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn only_regular_files_are_opened_and_nothing_blocks() {
        let dir = tempfile::tempdir().expect("tempdir");
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("file"), "x").expect("write");
        std::os::unix::fs::symlink("file", at("link")).expect("symlink");
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, Mode::RUSR, 0).expect("mkfifo");
        let _socket = UnixListener::bind(at("socket")).expect("bind");
        assert!(open(&at("file")).is_ok() && open(&at("link")).is_ok());
        for (path, why) in [
            (at("pipe"), "pipe: not a regular file, but a named pipe"),
            (at("socket"), "socket: not a regular file, but a socket"),
            (at(""), ": not a regular file, but a directory"),
            ("/dev/null".into(), "/dev/null: not a regular file, but a device"),
            (at("none"), "none: No such file or directory (os error 2)"),
        ] {
            let refused = open(&path).expect_err("no regular file").to_string();
            assert!(refused.ends_with(why), "{refused}");
        }
        let link = open_at(CWD, &at("link"), OFlags::NOFOLLOW).expect_err("a link").to_string();
        assert_eq!(link, "not a regular file, but a symbolic link");
    }
}
