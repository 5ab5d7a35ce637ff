//! Packing one file of a store.

use super::examine::Finder;
use super::idle::{make_idle, why_busy};
use super::names::{Form, MAX_PACKED_NAME, OWN_MARK, packed_name};
use super::nodes::Link;
use super::outcome::{Outcome, Task};
use super::policy::Pack;
use super::swap::Candidate;
use super::tree::{DirFd, Located, Tree};
use super::unpack::writable_dir;
use crate::codec::{self, Interruptible};
use crate::error::{Context, Error, Result};
use crate::mount::{Attr, Entry};
use crate::output::is_kept;
use crate::pack::{FileReport, Preparation, PrepareOptions, Prepared, Progress, Twins, prepare};
use crate::read::{self, Archive};
use rayon::{ThreadPool, ThreadPoolBuilder};
use rustix::fs::{AtFlags, Mode, OFlags, StatxAttributes, StatxFlags, openat, statx};
use rustix::io::Errno;
use rustix::process::geteuid;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The least share that packing must save.
const MIN_SAVING: f64 = 0.03;

/// Space that is left free on the disk besides that of the archive, in bytes.
const RESERVE: u64 = 64 << 20;

/// The endings of names that downloads use. Packing such a file would be harmless, but in vain.
const UNFINISHED: [&[u8]; 8] = [
    b".incomplete",
    b".downloadInProgress",
    b"-partial",
    b".part",
    b".tmp",
    b".aria2",
    b".crdownload",
    b".partial",
];

/// Why an archive was not started, or not finished.
const NO_ROOM: &str = "there is not enough free space";
const GIVEN_UP: &str = "was given up, because something else is more urgent";

/// Progress is in the status.
struct Silent;

impl Progress for Silent {
    fn begin(&self, _: &Path, _: crate::pack::Task, _: u64) {}
    fn advance(&self, _: u64) {}
    fn end(&self, _: &FileReport) {}
}

/// Run the packer until it is stopped. This thread is not idle: it locks names and nodes, and
/// others wait for these locks.
pub(super) fn run(tree: &Arc<Tree>) {
    let pool = ThreadPoolBuilder::new()
        .thread_name(|n| format!("bsz-pack-{n}"))
        .start_handler(|_| make_idle())
        .build();
    let pool = match pool {
        Ok(pool) => pool,
        Err(e) => return log::error!("files are not packed: {e}"),
    };
    loop {
        match tree.packer.next(why_busy, || tree.twins.waiting() > 0) {
            Task::Stop => return,
            Task::Walk => tree.find_candidates(),
            Task::Examine => pool.install(|| tree.examine_next()),
            Task::Pack(id) => {
                tree.packer.check_mount();
                tree.pack_node(id, &pool);
            }
        }
        tree.packer.done();
    }
}

impl Tree {
    /// A file was closed by a writer, or has got another name. It may be packed later.
    pub fn settle(&self, id: u64, attr: &Attr) {
        if attr.kind.is_file() && self.packer.wants(attr.size) {
            self.queue_node(id, Duration::ZERO);
        }
    }

    /// Queue a node that has been unchanged for `age`; it stays known until it is packed.
    pub fn queue_node(&self, id: u64, age: Duration) {
        if self.nodes.hold(id).is_some() && !self.packer.enqueue(id, age) {
            self.forget(id, 1);
        }
    }

    /// Pack a queued node; `pool` makes its archive.
    fn pack_node(&self, id: u64, pool: &ThreadPool) {
        let link = self.nodes.place(id).ok().and_then(|(_, link)| link);
        let path = link.map(|link| self.path(&link).to_string_lossy().into_owned());
        let path = path.unwrap_or_default();
        self.packer.begin(&path);
        let outcome = self.pack(id, pool).unwrap_or_else(|e| Outcome::Later(e.to_string()));
        log::debug!("{}: {outcome:?}", crate::escape::text(&path));
        self.packer.record(&path, &outcome);
        let queued = match outcome {
            Outcome::Later(_) => self.packer.retry(id, false),
            Outcome::Failed(_) => self.packer.retry(id, true),
            Outcome::Packed { .. } | Outcome::Left(_) | Outcome::Gone => {
                self.packer.settled(id);
                false
            }
        };
        if !queued {
            self.forget(id, 1);
        }
    }

    fn pack(&self, id: u64, pool: &ThreadPool) -> Result<Outcome> {
        let node = self.nodes.get(id)?;
        let epoch = {
            let mut state = node.state();
            if state.writers > 0 || state.packed.is_some() || state.orphan.is_some() {
                // It is queued again when it is closed, which the kernel tells after close(2) has
                // returned to the program.
                state.requested = state.writers > 0 && self.packer.policy.pack == Pack::Off;
                return Ok(Outcome::Gone);
            }
            state.epoch
        };
        let Located { dir, link, found } = match self.locate(&node) {
            Err(Errno::STALE) => return Ok(Outcome::Gone),
            other => other?,
        };
        let attr = self.attr(id)?;
        let version = (attr.size, attr.mtime);
        if found.form != Form::Plain || !is_candidate(&link, &attr, self.packer.policy.min_size) {
            return Ok(Outcome::Gone);
        }
        if self.packer.left.has(found.key(), &dir, &link.1, version) {
            return Ok(Outcome::Gone);
        }
        if let Some(why) = self.is_in_the_way(&dir, &link.1)? {
            return Ok(Outcome::Left(why.into()));
        }
        let candidate = Candidate { node, dir, link, key: found.key(), epoch };
        Ok(match pool.install(|| self.prepare(&candidate)) {
            Err(outcome) => outcome,
            Ok(Preparation::NotWorthIt(why)) => {
                let Candidate { key, dir, link, .. } = &candidate;
                self.packer.left.leave(*key, dir, &link.1, version);
                Outcome::Left(why)
            }
            Ok(Preparation::Lossy(why)) => Outcome::Failed(why),
            Ok(Preparation::Ready(prepared)) => self.swap(&candidate, prepared)?,
        })
    }

    fn swap(&self, candidate: &Candidate, prepared: Prepared) -> Result<Outcome> {
        let (original, stored) = (prepared.original(), prepared.stored());
        let swapped = self.swap_in(candidate, prepared);
        candidate.node.state().leased = None;
        Ok(match swapped {
            Ok(true) => {
                self.examine_packed(&candidate.link);
                Outcome::Packed { original, stored }
            }
            Ok(false) => Outcome::Failed("changed while it was packed".into()),
            Err(e) => Outcome::Failed(e.to_string()),
        })
    }

    /// Why an archive could not take the place of a file, although it may be worth one.
    fn is_in_the_way(&self, dir: &DirFd, name: &OsStr) -> Result<Option<&'static str>> {
        if self.is_taken(dir, &packed_name(name)) {
            return Ok(Some("another file has the name of its archive"));
        }
        let (flags, wanted) = (AtFlags::SYMLINK_NOFOLLOW, StatxFlags::UID);
        let statx = statx(dir, name, flags, wanted)?;
        let fixed = StatxAttributes::IMMUTABLE | StatxAttributes::APPEND;
        if statx.stx_attributes.intersects(fixed) {
            return Ok(Some("may not be removed (chattr)"));
        }
        let user = geteuid();
        if !user.is_root() && user.as_raw() != statx.stx_uid {
            return Ok(Some("belongs to another user"));
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let names = match Entry::new(openat(dir, name, flags, Mode::empty())?).xattrs() {
            Err(Errno::OPNOTSUPP) => Vec::new(),
            other => other?,
        };
        let is_lost = |name: &[u8]| {
            !name.is_empty() && !name.starts_with(b"user.bsz.") && !is_kept(OsStr::from_bytes(name))
        };
        let loses = names.split(|&byte| byte == 0).any(is_lost);
        Ok(loses.then_some("has extended attributes that its archive would lose"))
    }

    fn prepare(&self, candidate: &Candidate) -> std::result::Result<Preparation, Outcome> {
        let path = self.path(&candidate.link);
        let later = |e: Error| Outcome::Later(e.to_string());
        let dir = writable_dir(&candidate.dir, &path).map_err(|e| later(e.into()))?;
        // Whether an archive was begun, and was not given up.
        let in_vain = AtomicBool::new(false);
        let room = |size: u64| match self.free_space()? < size.saturating_add(RESERVE) {
            true => Err(Error::invalid(NO_ROOM)),
            false => {
                in_vain.store(true, Ordering::Relaxed);
                Ok(())
            }
        };
        let give_up = |why| {
            in_vain.store(false, Ordering::Relaxed);
            Err(Error::invalid(why))
        };
        let between = || match self.packer.pause() {
            true => give_up(GIVEN_UP),
            // Others write to the disk, too.
            false if self.free_space()? < RESERVE / 2 => give_up(NO_ROOM),
            false => Ok(()),
        };
        let leased = |file: &File| candidate.hold_lease(file);
        let finder = Finder::new(self);
        let twins: Option<&dyn Twins> = if self.can_share(&dir) { Some(&finder) } else { None };
        let options = PrepareOptions {
            min_saving: MIN_SAVING,
            mark: Some(OWN_MARK),
            room: &room,
            between: &between,
            leased: &leased,
            twins,
            ..PrepareOptions::default()
        };
        let decoder = Interruptible::new(codec::verifying(), || match self.packer.is_cancelled() {
            true => Err(Error::invalid(GIVEN_UP)),
            false => Ok(()),
        });
        let check = |file: &File, _: &dyn Progress| {
            let file = file.try_clone().about("archive")?;
            let archive = Archive::from_file_within(file, self.cache.archive_memory())?;
            archive.read_directly();
            read::verify(&archive, &decoder, &|_| {})
        };
        let prepared = prepare(&dir, &candidate.link.1, &options, &check, &Silent);
        if !matches!(prepared, Ok(Preparation::Ready(_))) {
            candidate.node.state().leased = None;
        }
        prepared.map_err(|e| match in_vain.into_inner() && !self.packer.is_cancelled() {
            true => Outcome::Failed(e.to_string()),
            false => later(e),
        })
    }

    /// Free space, in bytes.
    fn free_space(&self) -> Result<u64> {
        let space = self.statfs()?;
        Ok(space.f_bavail.saturating_mul(space.f_frsize))
    }
}

/// Whether a file may be packed, as far as its name and its attributes tell.
pub(super) fn is_candidate((_, name): &Link, attr: &Attr, min_size: u64) -> bool {
    let bytes = name.as_bytes();
    attr.kind.is_file()
        && attr.nlink == 1
        && attr.size >= min_size.max(1)
        && bytes.len() <= MAX_PACKED_NAME
        && !UNFINISHED.iter().any(|ending| bytes.ends_with(ending))
}

/// How long a file has been unchanged.
pub(super) fn age(attr: &Attr) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let changed = attr.mtime.max(attr.ctime);
    let changed = Duration::new(u64::try_from(changed.0).unwrap_or(0), changed.1);
    now.saturating_sub(changed)
}
