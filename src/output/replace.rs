//! Replacing and removing directory entries through temporary names, so that no name ever refers
//! to the wrong file.

use super::{
    Dir, FileId,
    temporary::{fresh_name, rename_noreplace, unfinished},
};
use crate::error::{Context, Result};
use rustix::fs::{AtFlags, renameat, unlinkat};
use std::ffi::OsStr;

impl Dir {
    /// Replace the symbolic link `name` by one to `target`.
    ///
    /// # Errors
    /// Io.
    pub fn replace_symlink(&self, target: &OsStr, name: &OsStr) -> Result<()> {
        let fresh = fresh_name();
        self.symlink(target, &fresh)?;
        let renamed = renameat(self, &fresh, self, name);
        if renamed.is_err() {
            let _ = unlinkat(self, &fresh, AtFlags::empty());
        }
        renamed.about_path(&self.path(name))
    }

    /// Link the file `name` of this directory as `other` in `to`, replacing what has that name.
    ///
    /// # Errors
    /// Io.
    pub fn link_over(&self, name: &OsStr, to: &Self, other: &OsStr) -> Result<()> {
        let fresh = fresh_name();
        self.link(name, to, &fresh)?;
        let renamed = renameat(to, &fresh, to, other);
        if renamed.is_err() {
            let _ = unlinkat(to, &fresh, AtFlags::empty());
        }
        renamed.about_path(&to.path(other))
    }

    /// Remove `name` if it is the file `id`; returns whether it existed.
    ///
    /// # Errors
    /// Io; invalid argument if it is another file.
    pub fn unlink(&self, name: &OsStr, id: FileId) -> Result<bool> {
        if !self.has(name, id)? {
            return Ok(false);
        }
        unlinkat(self, name, AtFlags::empty()).map(|()| true).about_path(&self.path(name))
    }

    /// Remove `name` if it is the file `id` and `allowed` agrees; returns whether it existed.
    ///
    /// `allowed` is asked once the file no longer has its name, so that nobody can open it by that
    /// any more. If it refuses, the file gets its name back.
    ///
    /// # Errors
    /// Io; invalid argument if it is another file; and those of `allowed`.
    pub fn unlink_if(
        &self,
        name: &OsStr,
        id: FileId,
        allowed: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        if !self.has(name, id)? {
            return Ok(false);
        }
        // No signal may end the process in between.
        let _uninterrupted = unfinished();
        let fresh = fresh_name();
        renameat(self, name, self, &fresh).about_path(&self.path(name))?;
        match self.has(&fresh, id).and_then(|_| allowed()) {
            Ok(()) => {
                let gone = unlinkat(self, &fresh, AtFlags::empty());
                if gone.is_err() {
                    let _ = rename_noreplace(self, &fresh, name);
                }
                gone.map(|()| true).about_path(&self.path(name))
            }
            Err(e) => {
                rename_noreplace(self, &fresh, name).about_path(&self.path(&fresh))?;
                Err(e)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::file_id;
    use super::*;
    use crate::error::Error;

    #[test]
    fn only_the_intended_file_is_removed() {
        let root = tempfile::tempdir().expect("a directory");
        for name in ["a", "b"] {
            std::fs::write(root.path().join(name), name).expect("write");
        }
        let dir = Dir::open(root.path()).expect("opens");
        let id = |name: &str| file_id(&dir.stat(name.as_ref()).expect("stat").expect("there"));
        let a = id("a");
        assert!(dir.unlink("b".as_ref(), a).is_err());
        assert_eq!(dir.unlink("none".as_ref(), a).ok(), Some(false));
        std::fs::rename(root.path().join("b"), root.path().join("a")).expect("rename");
        assert!(dir.unlink("a".as_ref(), a).is_err());
        let refused = dir.unlink_if("a".as_ref(), id("a"), || {
            assert_eq!(
                dir.stat("a".as_ref()).expect("stat").map(|_| ()),
                None,
                "nobody can open it by its name"
            );
            Err(Error::invalid("not now"))
        });
        assert!(refused.is_err());
        assert_eq!(dir.unlink_if("a".as_ref(), id("a"), || Ok(())).ok(), Some(true));
        assert!(dir.entries().expect("lists").is_empty());
    }
}
