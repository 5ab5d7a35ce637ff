//! Requests that make names and attributes. They are made at once; without space, they are made
//! again on another thread, which waits until the packer has given its space back.

use super::names::may_be_archive;
use super::namespace::{Caller, Created, Make};
use super::requests::{StoreFs, TTL, reply_empty};
use super::space::is_full;
use super::tree::Tree;
use crate::mount::{Handles, Replier, errno};
use fuser::{ReplyCreate, ReplyEmpty, ReplyEntry, Request, RequestId};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::ffi::OsStr;
use std::sync::Arc;

/// What makes a request wait for another thread: it takes long, or there is no space.
const LATER: Errno = Errno::NOSPC;

/// What opens a file that was made, and replies.
struct Opening {
    tree: Arc<Tree>,
    files: Arc<Handles<super::files::Handle>>,
    replier: Arc<Replier>,
    request: RequestId,
    flags: OFlags,
    limited: bool,
}

impl Opening {
    fn open(&self, made: Created, reply: ReplyCreate) {
        let node = made.node.id;
        let opened = match made.file {
            Some(file) => Ok(self.tree.created(made.node, self.flags, self.limited, file)),
            None => self.tree.open(node, self.flags, self.limited).map(|(handle, _)| handle),
        };
        match opened {
            Ok(handle) => {
                let handle = self.files.insert(handle);
                self.replier.created(self.request, node, &made.attr, TTL, handle, reply);
            }
            Err(e) => {
                self.tree.forget(node, 1);
                reply.error(errno(e));
            }
        }
    }
}

impl StoreFs {
    #[allow(clippy::too_many_arguments, reason = "those of the request")]
    pub fn create_file(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: OFlags,
        reply: ReplyCreate,
    ) {
        let (by, mode) = (self.caller(request, umask), mode & 0o7777);
        let opening = Opening {
            tree: self.tree.clone(),
            files: self.files.clone(),
            replier: self.replier.clone(),
            request: request.unique(),
            flags,
            limited: self.limits(request),
        };
        let made = match may_be_archive(name) {
            // Another file may have to be unpacked, to free the name.
            true => Err(LATER),
            false => self.tree.create(parent, name, mode, flags, by),
        };
        match made {
            Ok(made) if made.file.is_some() => opening.open(made, reply),
            // Opening a file that exists may take a while.
            Ok(made) => self.workers.spawn(move || opening.open(made, reply)),
            Err(e) if is_full(e) => {
                let name = name.to_owned();
                self.workers.spawn(move || {
                    let tree = &opening.tree;
                    match tree.with_room(|| tree.create(parent, &name, mode, flags, by)) {
                        Ok(made) => opening.open(made, reply),
                        Err(e) => reply.error(errno(e)),
                    }
                });
            }
            Err(e) => reply.error(errno(e)),
        }
    }

    #[allow(clippy::too_many_arguments, reason = "those of the request")]
    pub fn make_entry(
        &self,
        request: &Request,
        parent: u64,
        name: &OsStr,
        mode: u32,
        what: Make,
        by: Caller,
        reply: ReplyEntry,
    ) {
        let made = match may_be_archive(name) {
            // Another file may have to be unpacked, to free the name.
            true => Err(LATER),
            false => self.tree.make(parent, name, mode & 0o7777, &what, by),
        };
        if !made.as_ref().is_err_and(|e| is_full(*e)) {
            return self.reply_entry(request, made, reply);
        }
        let (tree, replier, name) = (self.tree.clone(), self.replier.clone(), name.to_owned());
        let request = request.unique();
        self.workers.spawn(move || {
            match tree.with_room(|| tree.make(parent, &name, mode & 0o7777, &what, by)) {
                Ok((node, attr)) => replier.entry(request, node.id, &attr, TTL, reply),
                Err(e) => reply.error(errno(e)),
            }
        });
    }

    pub fn set_attribute(
        &self,
        request: &Request,
        id: u64,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        reply: ReplyEmpty,
    ) {
        let limited = self.limits(request);
        let set = match self.tree.set_xattr_blocks(id, name) {
            true => Err(LATER),
            false => self.tree.set_xattr(id, name, value, flags, limited),
        };
        if !set.is_err_and(is_full) {
            return reply_empty(set, reply);
        }
        let (tree, name, value) = (self.tree.clone(), name.to_owned(), value.to_owned());
        self.workers.spawn(move || {
            let set = || tree.set_xattr(id, &name, &value, flags, limited);
            reply_empty(tree.with_room(set), reply);
        });
    }
}
