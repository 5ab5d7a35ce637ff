//! Listing directories, with and without the attributes of what they contain.

use super::names::{Form, Key, Listed};
use super::requests::{StoreFs, TTL};
use super::tree::{DirEntry, Tree, read};
use crate::mount::{Entries, errno, file_type};
use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus, RequestId};
use rustix::fs::{FileType, fstat};
use rustix::io::Result;
use std::os::fd::AsFd;
use std::sync::{Arc, PoisonError};

impl Tree {
    /// The entries of a directory, with `.` and `..`.
    pub fn list(&self, id: u64) -> Result<Vec<DirEntry>> {
        let node = self.nodes.get(id)?;
        let dir = self.dir(id)?;
        let names = read(&node);
        let listed = self.names.list(dir.as_fd())?;
        drop(names);
        let dev = Key::of(&fstat(&dir)?).dev;
        let parent = match self.nodes.place(id)?.1 {
            Some((parent, _)) => self.nodes.get(parent)?.number,
            None => node.number,
        };
        let dot = |ino, name: &str| DirEntry { ino, kind: FileType::Directory, name: name.into() };
        let mut entries = vec![dot(node.number, "."), dot(parent, "..")];
        entries.extend(listed.into_iter().map(|Listed { name, kind, ino, form }| {
            let ino = self.nodes.number(Key { dev, ino }, form != Form::Plain);
            DirEntry { ino, kind, name }
        }));
        Ok(entries)
    }
}

impl StoreFs {
    /// The listing of an open directory from `offset` on. It is made when the beginning is read:
    /// rewinddir(3) shows what there is now.
    fn listing(&self, id: u64, handle: u64, offset: u64) -> Result<Arc<Vec<DirEntry>>> {
        let dir = self.dirs.get(handle).ok_or(rustix::io::Errno::BADF)?;
        if offset > 0 {
            return Ok(Arc::clone(&dir.lock().unwrap_or_else(PoisonError::into_inner)));
        }
        let entries = Arc::new(self.tree.list(id)?);
        *dir.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&entries);
        Ok(entries)
    }

    pub fn read_dir(&self, id: u64, handle: u64, offset: u64, mut reply: ReplyDirectory) {
        let entries = match self.listing(id, handle, offset) {
            Ok(entries) => entries,
            Err(e) => return reply.error(errno(e)),
        };
        for (next, entry) in from(&entries, offset) {
            if reply.add(INodeNo(entry.ino), next, file_type(entry.kind), &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    /// The kernel asks for the attributes, too, if the entries are likely to be looked up.
    pub fn read_dir_plus(
        &self,
        request: RequestId,
        id: u64,
        handle: u64,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let listed = match self.listing(id, handle, offset) {
            Ok(listed) => listed,
            Err(e) => return reply.error(errno(e)),
        };
        let mut entries = Entries::default();
        for (next, DirEntry { ino, kind, name }) in from(&listed, offset) {
            if !entries.has_room(name) {
                break;
            }
            let is_itself = name == "." || name == "..";
            // Each counts as a lookup. What fails is looked up, and reported, when it is used.
            match (!is_itself).then(|| self.tree.look_up(id, name)) {
                Some(Ok((node, attr))) => {
                    entries.add(attr.ino, next, attr.kind, name, Some((node.id, &attr, TTL)));
                }
                _ => entries.add(*ino, next, *kind, name, None),
            }
        }
        self.replier.entries(request, &entries, reply);
    }
}

/// The entries from `offset` on, with the offset of the next one.
fn from(listed: &[DirEntry], offset: u64) -> impl Iterator<Item = (u64, &DirEntry)> {
    (1..).zip(listed).skip(usize::try_from(offset).unwrap_or(usize::MAX))
}
