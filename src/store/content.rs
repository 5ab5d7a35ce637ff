//! The content of an open file: a plain file or an archive of the source.

use super::names::{Key, open_file, unnoticed};
use super::node::{Content, Node};
use super::tree::{Located, Tree};
use super::unpack::proc_path;
use crate::cache::CachedFile;
use crate::mount::{Packed, attr};
use crate::readahead::OpenArchive;
use rustix::fs::{Mode, OFlags, fstat};
use rustix::io::{Errno, Result};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How often to look at a file again that changes its form meanwhile.
const ATTEMPTS: usize = 8;

impl Tree {
    /// Whether the pages that the kernel has cached of a file are those of its content.
    pub fn keeps_pages(&self, node: &Node) -> Result<bool> {
        let content = node.state().content.clone();
        let now = match content {
            Some(Content::Plain(file)) => {
                let attr = attr(node.number, &fstat(&*file)?, None);
                (attr.size, attr.mtime)
            }
            _ => {
                let attr = self.attr(node.id)?;
                (attr.size, attr.mtime)
            }
        };
        let before = node.state().cached.replace(Box::new(now));
        Ok(before.is_some_and(|before| *before == now))
    }

    /// The content of an open file. Opens it if need be, which loads the index of an archive.
    pub fn content(&self, node: &Node) -> Result<Content> {
        loop {
            let content = node.state().content.clone();
            if let Some(content) = content {
                return Ok(content);
            }
            let content = self.open_content(node)?;
            node.accessed.store(false, Ordering::Relaxed);
            let mut state = node.state();
            let is_archive = matches!(content, Content::Archive { .. });
            // It may have changed its form meanwhile.
            if state.packed.is_some() == is_archive {
                return Ok(state.content.get_or_insert(content).clone());
            }
        }
    }

    /// Another descriptor of the file of a node, if it is open. Another mount of the same directory
    /// may have taken its name, or its form, from it. `ESTALE` if it is not open.
    pub fn opened(&self, node: &Node) -> Result<OwnedFd> {
        let (content, written) = {
            let state = node.state();
            (state.content.clone(), state.written.upgrade())
        };
        let opened = match (&content, &written) {
            (_, Some(file)) | (Some(Content::Plain(file)), _) => file.as_fd(),
            (Some(Content::Archive { archive, .. }), _) => {
                archive.file().archive().local_file().as_fd()
            }
            (None, None) => return Err(Errno::STALE),
        };
        opened.try_clone_to_owned().map_err(|_| Errno::MFILE)
    }

    fn open_content(&self, node: &Node) -> Result<Content> {
        let orphan = node.orphan();
        let (file, path, packed) = match orphan {
            Some(orphan) => {
                let path = proc_path(orphan.as_fd());
                let file = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
                (File::from(file), Path::new("(removed)").to_owned(), node.state().packed.clone())
            }
            None => {
                if let Some(file) = self.open_known(node)? {
                    return Ok(Content::Plain(Arc::new(file)));
                }
                let (Located { link, found, .. }, file) = self.open_located(node)?;
                (file, self.path(&link), found.packed.map(Arc::new))
            }
        };
        self.content_of(packed, file, &path)
    }

    /// The file of a node by the name that it had last, unless it is packed. Most files still have
    /// that name, and then no other form of it needs to be looked for.
    fn open_known(&self, node: &Node) -> Result<Option<File>> {
        let (key, link) = self.nodes.place(node.id)?;
        let Some((parent, name)) = link.filter(|_| node.state().packed.is_none()) else {
            return Ok(None);
        };
        let opened = self.dir(parent).and_then(|dir| open_file(&dir, &name));
        Ok(opened.ok().filter(|(_, stat)| Key::of(stat) == key).map(|(file, _)| file))
    }

    /// The file of a node, open for reading. It may change its form between being found and opened.
    pub fn open_located(&self, node: &Node) -> Result<(Located, File)> {
        for _ in 0..ATTEMPTS {
            let located = self.locate(node)?;
            match open_file(&located.dir, &located.found.source_name) {
                Ok((file, stat)) if Key::of(&stat) == located.found.key() => {
                    return Ok((located, file));
                }
                Ok(_) | Err(Errno::NOENT | Errno::STALE) => {}
                Err(e) => return Err(e),
            }
        }
        Err(Errno::STALE)
    }

    fn content_of(&self, packed: Option<Arc<Packed>>, file: File, path: &Path) -> Result<Content> {
        let Some(packed) = packed else {
            return Ok(Content::Plain(Arc::new(file)));
        };
        let file = self.cached_archive(&file, path)?;
        let archive = Arc::new(OpenArchive::new(file, path.into(), path.into()));
        Ok(Content::Archive { archive, packed })
    }

    /// The archive in an open file. Its attributes may change while its index is read.
    pub fn cached_archive(&self, file: &File, path: &Path) -> Result<Arc<CachedFile>> {
        for _ in 0..ATTEMPTS {
            // Not another descriptor of the same open file: that is read around the page cache once
            // it is the archive's.
            let again = reopen_unnoticed(file)?;
            match self.archives.open(again.into(), &fstat(file)?, path) {
                Err(Errno::STALE) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }
}

/// Open a file again for reading that is no access to it, where that can be: its index is read
/// before the caller reads anything.
fn reopen_unnoticed(file: &File) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    unnoticed(|more| rustix::fs::open(proc_path(file.as_fd()), flags | more, Mode::empty()))
}
