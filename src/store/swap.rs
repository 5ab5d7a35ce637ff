//! Swapping in: an archive takes the place of the plain file that it was made from.
//!
//! | step | if all ends after it |
//! |---|---|
//! | the archive is written without a name, verified, given its attributes, synced | nothing |
//! | link it to `F.bsz` | both are there, and equal: the plain file is shown |
//! | sync the directory | the same |
//! | unlink `F` | the archive is there, and shown as `F` |
//!
//! Before the second and the fourth step, the names of the directory are locked, and everything is
//! checked: that the file is the same and unchanged, that no handle may write to it, and that the
//! lease on it, which keeps everybody else from writing, was not broken.

use super::names::{Found, Key, packed_name};
use super::node::{Content, Node, State};
use super::nodes::Link;
use super::steps::{Step, reached};
use super::tree::{DirFd, Tree, stat_at, write};
use super::unpack::{errno, unlink_if};
use crate::mount::Packed;
use crate::output::sync_dir;
use crate::pack::Prepared;
use rustix::fs::{AtFlags, unlinkat};
use rustix::io::{Errno, Result};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::AsFd;
use std::sync::{Arc, MutexGuard};

/// A file that is to be swapped, as it was before its archive was made.
pub(super) struct Candidate {
    pub node: Arc<Node>,
    pub dir: DirFd,
    pub link: Link,
    pub key: Key,
    pub epoch: u64,
}

impl Candidate {
    /// Whether nothing has happened to the file. The names of its directory are locked.
    fn is_unchanged(&self, tree: &Tree) -> bool {
        self.is_unchanged_in(&self.node.state(), tree)
    }

    /// The same, and nothing can happen to it as long as its state is locked.
    fn is_unchanged_in(&self, state: &State, tree: &Tree) -> bool {
        let place = tree.nodes.place(self.node.id);
        state.writers == 0
            && state.epoch == self.epoch
            && state.packed.is_none()
            && place.is_ok_and(|place| place == (self.key, Some(self.link.clone())))
    }

    /// Keep the lease on the plain file until the swap, unless a writer has come.
    pub fn hold_lease(&self, file: &File) {
        let mut state = self.node.state();
        match file.try_clone() {
            Ok(file) if state.writers == 0 && state.epoch == self.epoch => {
                state.leased = Some(Arc::new(file));
            }
            _ => crate::pack::release_lease(file),
        }
    }
}

impl Tree {
    /// Let the archive `prepared` take the place of a file. `false` if the file has changed.
    pub fn swap_in(&self, candidate: &Candidate, mut prepared: Prepared) -> Result<bool> {
        reached(Step::SwapPrepared);
        let Candidate { dir, link, key, .. } = candidate;
        let Some(_not_stopped) = self.packer.begin_swap() else { return Ok(false) };
        let dir_node = self.nodes.get(link.0)?;
        let archive_name = packed_name(&link.1);
        let names = write(&dir_node);
        if !candidate.is_unchanged(self) || !prepared.unchanged().is_ok_and(|same| same) {
            return Ok(false);
        }
        let plain = self.names.entry(dir.as_fd(), &link.1)?;
        if plain.key() != *key {
            return Ok(false);
        }
        self.clear_beside(dir, &link.1, &plain)?;
        let (dev, ino) = prepared.link().map_err(|e| errno(&e))?;
        drop(names);
        reached(Step::SwapLinked);
        let archive = (archive_name, Key { dev, ino });
        let swapped = self.switch(candidate, &prepared, &archive);
        if !matches!(swapped, Ok(true)) {
            // If the plain file is gone, the archive is all that is left.
            let _names = write(&dir_node);
            if self.names.find(dir.as_fd(), &link.1).is_ok_and(|shown| shown.key() != archive.1) {
                unlink_if(dir, &archive.0, archive.1)?;
            }
        }
        swapped
    }

    /// The last steps: the archive has its name beside the plain file.
    fn switch(
        &self,
        candidate: &Candidate,
        prepared: &Prepared,
        (archive_name, archive_key): &(OsString, Key),
    ) -> Result<bool> {
        let Candidate { node, dir, link, .. } = candidate;
        let dir_node = self.nodes.get(link.0)?;
        sync_dir(dir)?;
        reached(Step::SwapSynced);
        let found = self.names.entry(dir.as_fd(), archive_name)?;
        let packed = found.packed.filter(|_| Key::of(&found.stat) == *archive_key);
        let packed = Arc::new(packed.ok_or(Errno::STALE)?);
        let content = self.content_of_archive(candidate, prepared, &packed)?;
        self.packer.check_mount();
        let names = write(&dir_node);
        let Some(_not_stopped) = self.packer.enter() else { return Ok(false) };
        let is_there = stat_at(dir, archive_name).is_ok_and(|s| Key::of(&s) == *archive_key);
        let kept = prepared.unchanged().is_ok_and(|same| same);
        // Whoever opens the file for writing waits from here on.
        let state = node.state();
        if !is_there || !kept || !candidate.is_unchanged_in(&state, self) {
            return Ok(false);
        }
        unlinkat(dir, &link.1, AtFlags::empty())?;
        self.becomes_packed(node, state, *archive_key, link, packed, content);
        drop(names);
        reached(Step::SwapRemoved);
        Ok(true)
    }

    fn becomes_packed(
        &self,
        node: &Node,
        mut state: MutexGuard<'_, State>,
        key: Key,
        link: &Link,
        packed: Arc<Packed>,
        content: Option<Content>,
    ) {
        self.nodes.replace(node.id, key, true, Some(link.clone()));
        state.packed = Some(packed);
        state.content = content.filter(|_| state.opens > 0);
        state.leased = None;
    }

    /// Remove a plain file beside its archive, which holds the same bytes and is intact. `false` if
    /// the file has changed.
    pub fn remove_plain(&self, of: &Candidate, archive: &Found) -> Result<bool> {
        let Candidate { node, dir, link, key, .. } = of;
        sync_dir(dir)?;
        self.packer.check_mount();
        let dir_node = self.nodes.get(link.0)?;
        let _names = write(&dir_node);
        let Ok(_not_unpacked) = node.unpacking.try_lock() else { return Ok(false) };
        let Some(_not_stopped) = self.packer.enter() else { return Ok(false) };
        let is_there = |name: &OsStr, key| stat_at(dir, name).is_ok_and(|s| Key::of(&s) == key);
        let both = is_there(&link.1, *key) && is_there(&archive.source_name, archive.key());
        let state = node.state();
        let unchanged = both && of.is_unchanged_in(&state, self);
        let Some(packed) = archive.packed.clone().filter(|_| unchanged) else { return Ok(false) };
        unlinkat(dir, &link.1, AtFlags::empty())?;
        self.becomes_packed(node, state, archive.key(), link, Arc::new(packed), None);
        Ok(true)
    }

    /// The open archive, if the file is open: its readers go on with it.
    fn content_of_archive(
        &self,
        candidate: &Candidate,
        prepared: &Prepared,
        packed: &Arc<Packed>,
    ) -> Result<Option<Content>> {
        if candidate.node.state().opens == 0 {
            return Ok(None);
        }
        let path = self.path(&candidate.link);
        let file = self.cached_archive(prepared.archive(), &path)?;
        let archive = crate::readahead::OpenArchive::new(file, (&*path).into(), (&*path).into());
        Ok(Some(Content::Archive { archive: Arc::new(archive), packed: Arc::clone(packed) }))
    }
}
