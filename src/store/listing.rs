//! Listing directories, with and without the attributes of what they contain.

use super::requests::{StoreFs, TTL};
use super::tree::DirEntry;
use crate::mount::{Entries, errno, file_type};
use fuser::{INodeNo, ReplyDirectory, ReplyDirectoryPlus, RequestId};
use rustix::io::Result;
use std::sync::{Arc, PoisonError};

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
