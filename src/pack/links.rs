//! The links of a tree: which names are hard links to one file, and where symbolic links lead.

use crate::{
    error::Result,
    output::{Dir, FileId, file_id},
};
use rustix::fs::FileType;
use std::{
    collections::{HashMap, HashSet},
    ffi::{OsStr, OsString},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

/// Directories of version control systems. Their files are looked up by hash or listed elsewhere,
/// and must not be changed.
const REPOSITORIES: [&str; 7] = [".git", ".hg", ".svn", ".bzr", ".jj", ".dvc", ".xet"];

/// Whether a directory belongs to a version control system.
pub(super) fn is_repository(name: &OsStr) -> bool {
    REPOSITORIES.iter().any(|repository| name == *repository)
        || name.as_encoded_bytes().ends_with(b".git")
}

/// The place of a file in a tree: its directory, relative to the root, and its name.
pub(super) type Place = (PathBuf, OsString);

/// The places of all files in a tree that have several names (hard links).
#[derive(Default)]
pub(super) struct HardLinks {
    found: HashMap<FileId, Vec<Place>>,
    /// Files whose places were taken.
    taken: HashSet<FileId>,
}

/// The places of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Places {
    /// All those in the tree.
    All(Vec<Place>),
    /// They were taken before: whoever takes them first handles them all.
    Taken,
}

impl HardLinks {
    /// Search the tree at `root`. Directories that cannot be read are left out; they fail when
    /// their turn comes.
    pub(super) fn find(root: &Arc<Dir>) -> Self {
        let mut found = Self::default();
        let _ = found.look_into(root, Path::new(""));
        found
    }

    fn look_into(&mut self, dir: &Arc<Dir>, at: &Path) -> Result<()> {
        for entry in dir.entries()? {
            if entry.kind.is_dir() && !is_repository(&entry.name) {
                let _ = dir
                    .child(&entry.name)
                    .and_then(|child| self.look_into(&child, &at.join(&entry.name)));
            } else if entry.kind.is_file()
                && let Ok(Some(stat)) = dir.stat(&entry.name)
                && stat.st_nlink > 1
                && FileType::from_raw_mode(stat.st_mode).is_file()
            {
                self.found.entry(file_id(&stat)).or_default().push((at.to_owned(), entry.name));
            }
        }
        Ok(())
    }

    /// The places of a file: none if it had only one name when the tree was searched.
    pub(super) fn take(&mut self, id: FileId) -> Places {
        match self.taken.insert(id) {
            true => Places::All(self.found.remove(&id).unwrap_or_default()),
            false => Places::Taken,
        }
    }
}

/// Where a symbolic link of a tree leads, judged by its text alone.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Leads {
    /// Into the tree, by a relative path.
    Inside,
    /// Into the tree, by an absolute path; this is the relative one.
    Absolute(PathBuf),
    /// Out of the tree.
    Outside,
}

/// Where a link to `target` in the directory `at` of the tree at the absolute path `root` leads.
pub(super) fn leads(root: &Path, at: &Path, target: &Path) -> Leads {
    let folded = fold(&root.join(at), target);
    if let (true, Ok(inside)) = (target.is_absolute(), folded.strip_prefix(root)) {
        let up = at.components().map(|_| Component::ParentDir);
        let relative: PathBuf = up.chain(inside.components()).collect();
        return Leads::Absolute(if relative.as_os_str().is_empty() {
            ".".into()
        } else {
            relative
        });
    }
    if folded.starts_with(root) { Leads::Inside } else { Leads::Outside }
}

/// `target` relative to the directory `from`, without `.` and `..`.
fn fold(from: &Path, target: &Path) -> PathBuf {
    let mut path = from.to_owned();
    for component in target.components() {
        match component {
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            other => path.push(other),
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_judged_by_their_text() {
        let leads = |at: &str, target: &str| {
            leads(Path::new("/models/x"), Path::new(at), Path::new(target))
        };
        assert_eq!(leads("a/b", "../../c"), Leads::Inside);
        assert_eq!(leads("a/b", "../../../c"), Leads::Outside);
        assert_eq!(leads("", "/etc/passwd"), Leads::Outside);
        assert_eq!(leads("", "/models/xy"), Leads::Outside);
        assert_eq!(leads("", "/models/x/../y"), Leads::Outside);
        assert_eq!(leads("a", "/models/x/b/../c"), Leads::Absolute("../c".into()));
        assert_eq!(leads("a/b", "/models/x/blobs/1"), Leads::Absolute("../../blobs/1".into()));
        assert_eq!(leads("", "/models/x/blobs/1"), Leads::Absolute("blobs/1".into()));
        assert_eq!(leads("", "/models/x"), Leads::Absolute(".".into()));
    }

    #[test]
    fn repositories_are_recognised_by_name() {
        for name in [".git", "llama.git", ".hg"] {
            assert!(is_repository(name.as_ref()), "{name}");
        }
        assert!(!is_repository("git".as_ref()) && !is_repository("models".as_ref()));
    }

    #[test]
    fn all_names_of_a_file_are_taken_once() {
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::create_dir_all(dir.path().join("sub")).expect("mkdir");
        std::fs::write(dir.path().join("a"), "x").expect("write");
        std::fs::write(dir.path().join("alone"), "x").expect("write");
        std::fs::hard_link(dir.path().join("a"), dir.path().join("sub/b")).expect("link");
        let root = Dir::open(dir.path()).expect("opens");
        let mut links = HardLinks::find(&root);
        let id = |name: &str| file_id(&root.stat(name.as_ref()).expect("stat").expect("there"));
        let places = vec![("".into(), "a".into()), ("sub".into(), "b".into())];
        assert_eq!(links.take(id("a")), Places::All(places));
        assert_eq!(links.take(id("a")), Places::Taken);
        assert_eq!(links.take(id("alone")), Places::All(Vec::new()));
    }
}
