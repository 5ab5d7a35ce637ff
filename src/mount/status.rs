//! To ask daemons through their mounts, within a deadline. What answers is not trusted: anybody can mount a FUSE file
//! system of any name.

use super::ask::{self, Answer, Question, Unanswered};
use super::control::{DROP_CACHE, STATUS};
use super::mountinfo::{self, Mount};
use super::{FS_TYPE, SILENT, detach, place, xattrs};
use crate::cache::CacheStats;
use crate::error::{Context, Error, Result};
use crate::escape;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

/// What is said of a daemon that does not answer.
const DAEMON_SILENT: &str = "its daemon does not answer; `bsz umount --lazy` ends the mount";

/// Most bytes of a status.
const LONGEST: usize = 1 << 16;

/// How long after a daemon's end its mount is looked at while it answers, and while it does not; and how often. The kernel
/// closes a daemon's files one by one, and a question that is asked meanwhile may have no answer until its deadline.
const DEAD_WITHIN: Duration = Duration::from_secs(1);
const SILENT_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A mount, as its daemon describes it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(from = "Wire")]
pub struct Status {
    /// What is mounted.
    #[serde(flatten, serialize_with = "escape::field::source")]
    pub source: PathBuf,
    /// Where.
    #[serde(flatten, serialize_with = "escape::field::mountpoint")]
    pub mountpoint: PathBuf,
    /// The daemon's process, as it says. It may be of another namespace, or a lie: nothing is done to it.
    pub pid: u32,
    /// The daemon's version.
    pub version: String,
    /// Since when, in seconds since the epoch.
    pub since: u64,
    /// Its cache.
    pub cache: CacheStats,
}

/// A [`Status`] as it is read.
#[derive(Deserialize)]
struct Wire {
    source: String,
    source_bytes: Option<String>,
    mountpoint: String,
    mountpoint_bytes: Option<String>,
    pid: u32,
    version: String,
    since: u64,
    cache: CacheStats,
}

impl From<Wire> for Status {
    fn from(wire: Wire) -> Self {
        Self {
            source: escape::parse(wire.source, wire.source_bytes.as_deref()),
            mountpoint: escape::parse(wire.mountpoint, wire.mountpoint_bytes.as_deref()),
            pid: wire.pid,
            version: wire.version,
            since: wire.since,
            cache: wire.cache,
        }
    }
}

/// What the archives of a mount save.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Space {
    /// Files shown from archives.
    pub archives: u64,
    /// Bytes of these files.
    pub original_bytes: u64,
    /// What the archives take on the disk, in bytes.
    pub stored_bytes: u64,
}

/// The mountpoints of all bszfs mounts that this process can see.
///
/// # Errors
/// Io, where there is no mount table.
pub fn mounts() -> Result<Vec<PathBuf>> {
    Ok(mountinfo::all()?
        .into_iter()
        .filter(|m| m.fs_type == FS_TYPE)
        .map(|m| m.mountpoint)
        .collect())
}

/// Mounts that are not served.
#[derive(Debug, Default)]
pub struct Unserved {
    /// The mountpoints of those whose daemons have died.
    pub dead: Vec<PathBuf>,
    /// Of those whose daemons do not answer.
    pub silent: Vec<PathBuf>,
}

/// The mounts that are not served: of all, or of those at and below a path.
///
/// # Errors
/// As [`mounts`]; Io, where the path is none.
pub fn unserved(below: Option<&Path>) -> Result<Unserved> {
    let mut mounts = mounts()?;
    if let Some(path) = below {
        let (below, _) = place::place(path).map_err(|e| e.or_silent(SILENT)).about_path(path)?;
        mounts.retain(|mount| mount.starts_with(&below));
    }
    let questions: Vec<_> = mounts.iter().map(|mount| (Question::Alive, &**mount)).collect();
    let answers = ask::ask_all(&questions);
    let mut unserved = Unserved::default();
    for (mount, answer) in mounts.into_iter().zip(answers) {
        match answer {
            Err(Unanswered::Silent) => unserved.silent.push(mount),
            Err(e) if e.errno() == Some(Errno::NOTCONN) => unserved.dead.push(mount),
            _ => {}
        }
    }
    Ok(unserved)
}

/// Detach the mount at `mountpoint` if its daemon is found dead soon; a live one, and none, are left alone.
///
/// # Errors
/// As [`unserved`], and where the mount cannot be detached.
pub fn clear_orphan(mountpoint: &Path) -> Result<()> {
    let started = Instant::now();
    while let Some(mount) = place::mount_at(mountpoint)?.filter(|mount| mount.fs_type == FS_TYPE) {
        match ask::ask(Question::Alive, &mount.mountpoint) {
            Err(e) if e.errno() == Some(Errno::NOTCONN) => return detach(&mount.mountpoint),
            Ok(_) if started.elapsed() > DEAD_WITHIN => break,
            Err(_) if started.elapsed() > SILENT_WITHIN => break,
            _ => thread::sleep(LOOK_EVERY),
        }
    }
    Ok(())
}

/// The FUSE mount at `path`. Who mounted for a daemon may have given it another type than we do.
fn fuse_at(path: &Path) -> Result<Mount> {
    let mount = place::mount_at(path)?.filter(|mount| mount.fs_type.starts_with("fuse"));
    mount.ok_or_else(|| Error::invalid("is no bszfs mount").about_path(path))
}

/// Ask the daemons of the mounts at these paths, all at once.
///
/// # Errors
/// Each: Io, where it is dead, does not answer, or answers to its own user only; invalid argument, where nothing of ours
/// is mounted.
pub fn status(paths: &[PathBuf]) -> Vec<Result<Status>> {
    let found: Vec<Result<Mount>> = paths.iter().map(|path| fuse_at(path)).collect();
    let mounts = found.iter().flatten().map(|mount| (Question::Status, &*mount.mountpoint));
    let mut answers = ask::ask_all(&mounts.collect::<Vec<_>>()).into_iter();
    let asked = found.into_iter().zip(paths).map(|(found, path)| {
        let mount = found?;
        let answer = answers.next().unwrap_or(Err(Unanswered::Silent));
        understand(answer, mount).about_path(path)
    });
    asked.collect()
}

fn understand(answer: Answer, mount: Mount) -> Result<Status> {
    let value = match answer {
        Err(e) if matches!(e.errno(), Some(Errno::NODATA | Errno::OPNOTSUPP)) => {
            return Err(Error::invalid("is no bszfs mount"));
        }
        other => other.map_err(|e| e.or_silent(DAEMON_SILENT))?,
    };
    let status: Status = serde_json::from_slice(&value)
        .map_err(|e| Error::invalid(format!("its daemon answers in another way ({e})")))?;
    // Where it is, we know better.
    Ok(Status { mountpoint: mount.mountpoint, ..status })
}

/// The answer to [`Question::Status`].
pub(super) fn answer_status(mountpoint: &Path) -> Result<Vec<u8>> {
    let mut value = vec![0; LONGEST];
    let n = rustix::fs::getxattr(mountpoint, STATUS, value.as_mut_slice())?;
    value.truncate(n);
    Ok(value)
}

/// Have the daemon of the mount at `path` drop what its cache holds.
///
/// # Errors
/// As [`status`]; Io, where it is not for us to ask.
pub fn drop_cache(path: &Path) -> Result<()> {
    let mount = fuse_at(path)?;
    let outcome = ask::ask(Question::DropCache, &mount.mountpoint).map(drop);
    outcome
        .map_err(|e| match e.errno() {
            Some(Errno::NODATA | Errno::OPNOTSUPP) if mount.fs_type == FS_TYPE => Error::invalid(
                "its daemon is of an older bsz and knows no such request: mount it anew",
            ),
            Some(Errno::NODATA | Errno::OPNOTSUPP) => Error::invalid("is no bszfs mount"),
            Some(Errno::PERM) => Error::invalid("is for root and the user who mounted it to ask"),
            _ => e.or_silent(DAEMON_SILENT),
        })
        .about_path(path)
}

/// The answer to [`Question::DropCache`].
pub(super) fn answer_drop_cache(mountpoint: &Path) -> Result<Vec<u8>> {
    rustix::fs::getxattr(mountpoint, DROP_CACHE, &mut [0u8; 1][..])?;
    Ok(Vec::new())
}

/// What the archives below the root of the mount at `mountpoint` save, as `stat` tells of each of them.
///
/// # Errors
/// Io, where a directory cannot be read, or nothing answers.
pub fn space(mountpoint: &Path) -> Result<Space> {
    let answer = ask::ask(Question::Space, mountpoint).map_err(|e| e.or_silent(DAEMON_SILENT));
    serde_json::from_slice(&answer.about_path(mountpoint)?).map_err(|e| {
        Error::invalid(format!("its space cannot be told ({e})")).about_path(mountpoint)
    })
}

/// The answer to [`Question::Space`].
pub(super) fn answer_space(mountpoint: &Path) -> Result<Vec<u8>> {
    let mut space = Space::default();
    let mut left = vec![mountpoint.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in dir.read_dir()? {
            let entry = entry?;
            // What is gone meanwhile takes no space.
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                left.push(entry.path());
            } else if meta.is_file() && xattrs::is_of_archive(&entry.path()) {
                space.archives = space.archives.saturating_add(1);
                space.original_bytes = space.original_bytes.saturating_add(meta.len());
                space.stored_bytes =
                    space.stored_bytes.saturating_add(meta.blocks().saturating_mul(512));
            }
        }
    }
    serde_json::to_vec(&space).map_err(|e| Error::invalid(e.to_string()))
}
