//! Which processes have a file open for writing, according to /proc.

use rustix::{
    fs::{AtFlags, CWD, OFlags, Stat, StatxFlags, fgetxattr, fstat, major, minor, statx},
    io::Errno,
    process::{geteuid, getpid},
};
use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// The writers of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Writers {
    /// No process has it open for writing: those that cannot be inspected may not write to it.
    None,
    /// This process has it open, or mapped, for writing.
    Found(u32),
    /// This process cannot be inspected, and its user may write to the file.
    Unknown { pid: u32, uid: u32 },
}

/// Search the processes of this machine.
///
/// # Errors
/// Io if /proc is missing or hides processes.
pub(super) fn find_writers(file: &File) -> io::Result<Writers> {
    let stat = fstat(file)?;
    let (me, my_uid) = (getpid().as_raw_nonzero().get() as u32, geteuid().as_raw());
    let mut unknown = Writers::None;
    // Whether /proc shows all processes: it can be mounted to hide those of other users.
    let (mut shows_me, mut shows_first) = (false, false);
    let hidden = || {
        io::Error::other("/proc does not show all processes, so its writers cannot be determined")
    };
    let list = has_list(file) && stat.st_mode & 0o020 != 0;
    for entry in fs::read_dir("/proc").map_err(|_| hidden())? {
        let entry = entry?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        shows_first |= pid == 1;
        // This process has it open for reading only.
        if pid == me {
            shows_me = true;
            continue;
        }
        match writes(&entry.path(), &stat) {
            Ok(true) => return Ok(Writers::Found(pid)),
            Ok(false) => {}
            // It has ended, or may not be inspected.
            Err(_) => {
                if let Some(uid) =
                    may_write(&entry.path(), &stat, list).filter(|&uid| uid != 0 && uid != my_uid)
                {
                    unknown = Writers::Unknown { pid, uid };
                }
            }
        }
    }
    if shows_me && shows_first { Ok(unknown) } else { Err(hidden()) }
}

/// Whether a file has an access control list, which can allow writing to users other than its owner
/// and group.
fn has_list(file: &File) -> bool {
    !matches!(
        fgetxattr(file, "system.posix_acl_access", &mut [0u8; 1]),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS)
    )
}

/// Whether a process has the file open, or mapped, for writing.
fn writes(process: &Path, stat: &Stat) -> io::Result<bool> {
    for fd in fs::read_dir(process.join("fd"))? {
        let fd = fd?;
        // Cached attributes, since the server of another file system may hang.
        let flags = AtFlags::STATX_DONT_SYNC;
        let Ok(open) = statx(CWD, fd.path(), flags, StatxFlags::INO) else { continue };
        let device = (open.stx_dev_major, open.stx_dev_minor);
        if open.stx_ino == stat.st_ino && device == (major(stat.st_dev), minor(stat.st_dev)) {
            let info =
                fs::read_to_string(process.join("fdinfo").join(fd.file_name())).unwrap_or_default();
            let flags = info.lines().find_map(|line| line.strip_prefix("flags:"));
            let flags = flags.and_then(|f| u32::from_str_radix(f.trim(), 8).ok());
            // If in doubt, it writes.
            if flags.is_none_or(|flags| flags & OFlags::ACCMODE.bits() != OFlags::RDONLY.bits()) {
                return Ok(true);
            }
        }
    }
    // A mapping outlives its descriptor. Devices are not compared, since btrfs shows others here.
    let maps = fs::read(process.join("maps"))?;
    Ok(maps.split(|&b| b == b'\n').any(|line| maps_for_writing(line, stat.st_ino)))
}

/// Whether a line of `maps` describes a shared writable mapping of this inode.
fn maps_for_writing(line: &[u8], ino: u64) -> bool {
    let line = String::from_utf8_lossy(line);
    let mut fields = line.split_ascii_whitespace();
    let (Some(access), Some(inode)) = (fields.nth(1), fields.nth(2)) else { return false };
    access.contains('w') && access.ends_with('s') && inode.parse() == Ok(ino)
}

/// The user of a process, if that user may write to the file.
fn may_write(process: &Path, stat: &Stat, list: bool) -> Option<u32> {
    let status = fs::read_to_string(process.join("status")).ok()?;
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect())
    };
    let uid = *numbers("Uid")?.last()?;
    let mut groups = numbers("Gid")?;
    groups.extend(numbers("Groups").unwrap_or_default());
    let bit = match () {
        () if uid == stat.st_uid => 0o200,
        () if groups.contains(&stat.st_gid) => 0o020,
        () => 0o002,
    };
    (list || stat.st_mode & bit != 0).then_some(uid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_can_write_is_found() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, "content").expect("written");
        let file = File::open(&path).expect("opens");
        let holds = |redirect: &str| {
            let mut child = Command::new("sh")
                .args(["-c", &format!("exec 9{redirect} \"$0\"; echo; read x")])
                .arg(&path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("a shell");
            let mut ready = [0];
            io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut ready)
                .expect("it is ready");
            let found = find_writers(&file).expect("/proc");
            let pid = child.id();
            drop(child.stdin.take());
            child.wait().expect("it ends");
            (found, pid)
        };
        let (found, pid) = holds(">>");
        assert_eq!(found, Writers::Found(pid));
        assert_eq!(holds("<").0, Writers::None);
    }

    #[test]
    fn only_shared_writable_mappings_count() {
        let line = |access: &str| {
            format!("7f0000000000-7f0000001000 {access} 00000000 08:01 4711      /a b")
        };
        assert!(maps_for_writing(line("rw-s").as_bytes(), 4711));
        assert!(!maps_for_writing(line("rw-s").as_bytes(), 471));
        for access in ["r--s", "rw-p", "r--p"] {
            assert!(!maps_for_writing(line(access).as_bytes(), 4711), "{access}");
        }
        assert!(!maps_for_writing(b"", 0));
    }
}
