//! Links of a tree: which names are one file, and where symbolic links lead.

use crate::{
    error::Result,
    output::{Dir, FileId, file_id},
};
use rustix::fs::FileType;
use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Directories that belong to a version control system. What is in them is looked up by its hash or listed elsewhere, and
/// is not to be changed.
const REPOSITORIES: [&str; 7] = [".git", ".hg", ".svn", ".bzr", ".jj", ".dvc", ".xet"];

/// Whether a directory belongs to a version control system.
pub(super) fn is_repository(name: &OsStr) -> bool {
    REPOSITORIES.iter().any(|repository| name == *repository) || name.as_encoded_bytes().ends_with(b".git")
}

/// A file's place in a tree: its directory, relative to the root, and its name.
pub(super) type Place = (PathBuf, OsString);

/// The places of the files in a tree that have several names (hard links).
#[derive(Default)]
pub(super) struct HardLinks(HashMap<FileId, Vec<Place>>);

impl HardLinks {
    /// Look through the tree at `root`. What cannot be read is left out: its files fail when their turn comes.
    pub(super) fn find(root: &Arc<Dir>) -> Self {
        let mut found = Self::default();
        let _ = found.look_into(root, Path::new(""));
        found
    }

    fn look_into(&mut self, dir: &Arc<Dir>, at: &Path) -> Result<()> {
        for entry in dir.entries()? {
            if entry.kind.is_dir() && !is_repository(&entry.name) {
                let _ =
                    dir.child(&entry.name).and_then(|child| self.look_into(&child, &at.join(&entry.name)));
            } else if entry.kind.is_file()
                && let Ok(Some(stat)) = dir.stat(&entry.name)
                && stat.st_nlink > 1
                && FileType::from_raw_mode(stat.st_mode).is_file()
            {
                self.0.entry(file_id(&stat)).or_default().push((at.to_owned(), entry.name));
            }
        }
        Ok(())
    }

    /// The places of a file, taken out: the first who asks sees to all of them.
    pub(super) fn take(&mut self, id: FileId) -> Option<Vec<Place>> {
        self.0.remove(&id)
    }
}

/// Where a symbolic link of a tree leads, by its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// To something in the tree, by a relative path.
    Inside,
    /// To something in the tree by its absolute path; this is the relative one.
    Absolute(PathBuf),
    /// Out of the tree.
    Outside,
}

/// Where a link to `target` leads that is in the directory `at` of the tree at `root`, an absolute path.
pub(super) fn leads(root: &Path, at: &Path, target: &Path) -> Leads {
    if let Ok(inside) = target.strip_prefix(root) {
        let up = at.components().map(|_| Component::ParentDir);
        let relative: PathBuf = up.chain(inside.components()).collect();
        return Leads::Absolute(if relative.as_os_str().is_empty() { ".".into() } else { relative });
    }
    let mut path = root.join(at);
    for component in target.components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    if path.starts_with(root) { Leads::Inside } else { Leads::Outside }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_judged_by_their_text() {
        let leads = |at: &str, target: &str| leads(Path::new("/models/x"), Path::new(at), Path::new(target));
        assert_eq!(leads("a/b", "../../c"), Leads::Inside);
        assert_eq!(leads("a/b", "../../../c"), Leads::Outside);
        assert_eq!(leads("", "/etc/passwd"), Leads::Outside);
        assert_eq!(leads("", "/models/xy"), Leads::Outside);
        assert_eq!(leads("a/b", "/models/x/blobs/1"), Leads::Absolute("../../blobs/1".into()));
        assert_eq!(leads("", "/models/x/blobs/1"), Leads::Absolute("blobs/1".into()));
        assert_eq!(leads("", "/models/x"), Leads::Absolute(".".into()));
    }

    #[test]
    fn repositories_are_known_by_their_names() {
        for name in [".git", "llama.git", ".hg"] {
            assert!(is_repository(name.as_ref()), "{name}");
        }
        assert!(!is_repository("git".as_ref()) && !is_repository("models".as_ref()));
    }

    #[test]
    fn all_names_of_a_file_are_found_once() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("sub")).expect("mkdir");
        std::fs::write(dir.path().join("a"), "x").expect("write");
        std::fs::write(dir.path().join("alone"), "x").expect("write");
        std::fs::hard_link(dir.path().join("a"), dir.path().join("sub/b")).expect("link");
        let root = Dir::open(dir.path()).expect("opens");
        let mut links = HardLinks::find(&root);
        let id = |name: &str| file_id(&root.stat(name.as_ref()).expect("stat").expect("there"));
        let places = links.take(id("a")).expect("found");
        assert_eq!(places, [("".into(), "a".into()), ("sub".into(), "b".into())]);
        assert!(links.take(id("a")).is_none() && links.take(id("alone")).is_none());
    }
}
