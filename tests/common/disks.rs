//! File systems on loop devices, for root.

use super::mounts::run;
use super::users::is_root;
use rustix::fs::statvfs;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

/// A file system of 512 MiB that is mounted, and unmounted when it is dropped.
pub struct Disk {
    at: PathBuf,
}

impl Disk {
    /// A file system of this kind, in the directory `dir`; `None`, with a message, if it cannot be
    /// had. With `BSZ_REQUIRE_DISKS`, that is a failure.
    pub fn new(dir: &Path, kind: &str) -> Option<Self> {
        let (image, at) = (dir.join(format!("{kind}.image")), dir.join(kind));
        std::fs::create_dir(&at).expect("mkdir");
        File::create(&image).and_then(|file| file.set_len(512 << 20)).expect("an image");
        let options: &[&str] = match kind {
            "xfs" => &["-q", "-m", "reflink=1"],
            _ => &["-q"],
        };
        let succeeds = |command: &mut Command| {
            let ran = run(command);
            let ok = ran.status.success();
            if !ok {
                eprintln!("{command:?}: {}", String::from_utf8_lossy(&ran.stderr));
            }
            ok
        };
        let program = format!("mkfs.{kind}");
        let is_there = Command::new("sh").arg("-c").arg(format!("command -v {program}")).output();
        // Others may take the loop device that was free a moment ago.
        let mount = || succeeds(Command::new("mount").args(["-o", "loop"]).args([&image, &at]));
        let mounts = || {
            let again = |_| {
                sleep(Duration::from_millis(300));
                mount()
            };
            mount() || (0..5).any(again)
        };
        let made = is_root()
            && is_there.is_ok_and(|ran| ran.status.success())
            && succeeds(Command::new(program).args(options).arg(&image))
            && mounts();
        assert!(made || std::env::var_os("BSZ_REQUIRE_DISKS").is_none(), "no {kind} here");
        if !made {
            eprintln!("skipped: no {kind} on a loop device");
        }
        made.then_some(Self { at })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Bytes in use, once everything is on disk.
    pub fn used(&self) -> u64 {
        run(Command::new("sync").arg("-f").arg(&self.at));
        let of = statvfs(&self.at).expect("statvfs");
        (of.f_blocks - of.f_bfree) * of.f_frsize
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        run(Command::new("umount").arg("-l").arg(&self.at));
    }
}
