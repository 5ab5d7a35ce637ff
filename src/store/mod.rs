//! The store: a directory that compresses itself while it is used.
//!
//! It is mounted over its own source, and read-write: programs see plain files, and do with them
//! what they always do. In the background, files that were closed and left alone are replaced by
//! their archives. `docs/SEMANTICS.md` says what is guaranteed.
//!
//! One principle keeps this small: reading, attributes, renaming and removing work on the archive;
//! everything else first brings the plain file back. And there is neither a journal nor a database:
//! at every moment, also after a crash, the names and attributes in the source say what each file
//! is, and recovery only frees space.
//!
//! From the source at the bottom up to the kernel:
//!
//! | file | its job |
//! |---|---|
//! | `names` | the forms in which a file may be in the source, and which of them is shown |
//! | `steps` | the numbered steps of what follows, at which tests end the process |
//! | `node`, `nodes` | which file a nodeid of the kernel stands for, whatever form it has |
//! | `packer`, `outcome` | the queue of files to pack, and what became of them |
//! | `tree` | directories by descriptor, lookups, attributes, listings |
//! | `unpack` | writing to a packed file: the plain file comes back |
//! | `swap` | packing: the archive takes the place of the plain file |
//! | `files`, `plain` | open files |
//! | `namespace`, `rename` | names that come, go and change |
//! | `change` | attributes that change |
//! | `space` | what callers may use of the disk, and what the packer gives back |
//! | `twins`, `examine` | which large tensors are in several archives |
//! | `work` | packing one file |
//! | `left`, `marks` | which files are not worth packing, and the store's own attributes |
//! | `recovery` | the walk after mounting |
//! | `workers` | threads for what may take long |
//! | `lock` | of several processes, only one packs |
//! | `restore` | the way back: unpacking everything, without a mount |
//! | `control` | commands to the packer |
//! | `arguments`, `requests`, `fuse` | the adapter from `fuser` to all of this |

mod arguments;
mod change;
mod content;
mod control;
mod examine;
mod files;
mod fuse;
mod idle;
mod left;
mod listing;
mod lock;
mod making;
mod marks;
mod names;
mod namespace;
mod node;
mod nodes;
mod outcome;
mod packer;
mod plain;
mod policy;
mod recovery;
mod rename;
mod requests;
mod restore;
mod space;
mod steps;
mod swap;
mod tree;
mod twins;
mod unpack;
mod work;
mod workers;

pub use policy::{Pack, PackPolicy};
pub use restore::{Restore, RestoreProgress, Restored, Room};
pub use steps::STEPS;

use crate::error::{Error, Result};
use crate::mount::{self, Handles, MountOptions, ROOT};
use crate::readahead::OpenArchive;
use lock::Lock;
use packer::Packer;
use requests::StoreFs;
use rustix::fs::Mode;
use rustix::process::{geteuid, umask};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;
use tree::Tree;
use workers::{MAX_THREADS, Workers};

/// Threads that send what was written to the disk. They wait for it.
const WRITERS: usize = 2;

/// Mount a store; as [`mount::run`] otherwise.
///
/// # Errors
/// As [`mount::run`].
pub fn run(
    o: &MountOptions,
    policy: PackPolicy,
    ready: impl FnOnce() -> Result<()>,
    hangup: impl Fn() + Send + Sync + 'static,
) -> Result<()> {
    // The kernel, or `namespace`, applies the masks of those who create files.
    umask(Mode::empty());
    let made: Arc<OnceLock<Arc<Tree>>> = Arc::default();
    let tree = Arc::clone(&made);
    // Dropped once the last file is closed, although packing may end before.
    let lock: Arc<OnceLock<Lock>> = Arc::default();
    let locked = Arc::clone(&lock);
    let start = move || {
        ready()?;
        tree.get().map_or(Ok(()), |tree| start_background(tree, locked))
    };
    let kept = Arc::clone(&made);
    let outcome = mount::serve(o, start, hangup, move |parts| {
        let elsewhere = || Error::invalid("is on another machine, and cannot be changed");
        let source = parts.files.into_local().ok_or_else(elsewhere)?;
        let tree =
            Tree::new(source, parts.cache.clone(), parts.control.bases(), Packer::new(policy))?;
        let tree = Arc::new(tree);
        let reporter = Arc::clone(&tree);
        parts.control.report_store(move || reporter.status());
        // Another daemon may show the directory soon, and knows nothing of what this one changes.
        let packs = Arc::clone(&tree);
        parts.control.when_ending(move |ends| packs.packer.suspend(ends));
        let control = Arc::clone(&parts.control);
        tree.packer.pack_while(move || control.is_mounted());
        let readahead = parts.readahead.start(Box::new(|_: &OpenArchive| Vec::new()));
        // Set once.
        let _ = kept.set(Arc::clone(&tree));
        Ok(StoreFs {
            tree,
            cache: parts.cache,
            workers: Workers::new(MAX_THREADS),
            writers: Workers::new(WRITERS),
            readahead,
            control: parts.control,
            errors: parts.errors,
            replier: parts.replier,
            files: Arc::new(Handles::new()),
            dirs: Handles::new(),
            is_root: geteuid().is_root(),
            masks: false,
        })
    });
    if let Some(tree) = made.get() {
        tree.packer.stop();
    }
    outcome
}

/// Clear away what a crash has left, and pack, once the store can be locked.
fn start_background(tree: &Arc<Tree>, locked: Arc<OnceLock<Lock>>) -> Result<()> {
    let tree = Arc::clone(tree);
    let work = move || {
        let Some(lock) = wait_for_lock(&tree) else { return };
        // Set once.
        let _ = locked.set(lock);
        thread::scope(|scope| {
            let recovery = thread::Builder::new().name("bsz-recovery".into());
            if let Err(e) = recovery.spawn_scoped(scope, || tree.recover()) {
                log::error!("what a crash has left is not cleared away: {e}");
            }
            work::run(&tree);
        });
    };
    thread::Builder::new().name("bsz-packer".into()).spawn(work)?;
    Ok(())
}

/// The lock of the store. While another process has it, files are served, but not packed. `None`
/// if the store ends first.
fn wait_for_lock(tree: &Tree) -> Option<Lock> {
    const EVERY: Duration = Duration::from_secs(1);
    let mut warned = false;
    loop {
        let why = match tree.dir(ROOT).and_then(|root| Lock::take(&*root)) {
            Ok(Some(lock)) => {
                tree.packer.waits(None);
                return Some(lock);
            }
            Ok(None) => "another process packs or unpacks its files".to_owned(),
            Err(e) => format!("its directory cannot be locked: {e}"),
        };
        if !warned {
            log::warn!("nothing is packed for now: {why}");
            warned = true;
        }
        tree.packer.waits(Some(why));
        if tree.packer.is_stopped_within(EVERY) {
            return None;
        }
    }
}
