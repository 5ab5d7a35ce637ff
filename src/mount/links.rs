//! Where symlinks lead inside the source, told from their texts; nothing outside of it is looked at.
//!
//! The texts are whoever's who may write to the source. They are walked here, component by component, as the
//! kernel would, so that no path of theirs is ever handed to it.

use super::source::Source;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// After so many symlinks the kernel gives up, too (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// A symlink's text has at most so many bytes.
const MOST_TEXT: usize = 4095;

/// Where a symlink leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    /// A directory of the source, reached through no symlink.
    pub dir: PathBuf,
    /// What the link names in it, which need not be there; `None` if it is the directory itself.
    pub name: Option<OsString>,
}

/// The text for the view of a symlink in the directory `dir` which leads into the source by a path that leads
/// elsewhere in the view: an absolute one, or one that leaves the source and comes back. `None` for others.
pub(super) fn within(source: &Source, dir: &Path, text: &OsStr) -> Option<OsString> {
    let depth = dir.components().count();
    let path = Path::new(text);
    let inside = match path.is_absolute() {
        true => source.paths().iter().find_map(|root| path.strip_prefix(root).ok())?.to_owned(),
        false => comes_back(source.paths().first()?, depth, path)?,
    };
    stays_inside(&inside).then_some(())?;
    let up = std::iter::repeat_n(Component::ParentDir, depth);
    let relative: PathBuf = up.chain(inside.components()).collect();
    let relative =
        if relative.as_os_str().is_empty() { ".".into() } else { relative.into_os_string() };
    (relative.len() <= MOST_TEXT).then_some(relative)
}

/// What is left of a relative path that goes up from `depth` directories below `root` to above that, and
/// comes back. That a canonical path has no symlinks makes its parents what `..` leads to.
fn comes_back(root: &Path, depth: usize, path: &Path) -> Option<PathBuf> {
    let steps = || path.components().filter(|c| *c != Component::CurDir);
    let up = steps().take_while(|c| *c == Component::ParentDir).count();
    let above = root.ancestors().nth(up.checked_sub(depth).filter(|&above| above > 0)?)?;
    let down: PathBuf = steps().skip(up).collect();
    above.join(down).strip_prefix(root).ok().map(Path::to_owned)
}

/// Whether no `..` of a path leads above where it starts.
fn stays_inside(path: &Path) -> bool {
    let mut depth = 0_usize;
    path.components().all(|c| match c {
        Component::ParentDir => depth.checked_sub(1).map(|above| depth = above).is_some(),
        Component::Normal(_) => {
            depth += 1;
            true
        }
        _ => true,
    })
}

/// Where the text of a symlink in `dir` leads inside the source, `None` where that is elsewhere or nowhere.
/// With `follow`, to the end of a chain of links; else to what the text names.
pub(super) fn resolve(source: &Source, dir: &Path, text: &OsStr, follow: bool) -> Option<Target> {
    let mut at = dir.to_owned();
    let mut left = Vec::new();
    push(source, &at, text.to_owned(), &mut left)?;
    let mut links = 0;
    while let Some(name) = left.pop() {
        match name.as_bytes() {
            b"" | b"." => continue,
            b".." => {
                at.pop().then_some(())?;
                continue;
            }
            _ => {}
        }
        let handle = source.dir(&at).ok()?;
        let kind = handle.stat(&name).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(FileType::Symlink) if follow || !left.is_empty() => {
                links += 1;
                (links <= MOST_LINKS).then_some(())?;
                push(source, &at, handle.read_link(&name).ok()?, &mut left)?;
            }
            Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) if left.is_empty() => {
                return Some(Target { dir: at, name: Some(name) });
            }
            Ok(FileType::Directory) => at.push(name),
            _ => return None,
        }
    }
    Some(Target { dir: at, name: None })
}

/// Put the components of a text in `dir` on the stack of those left to walk.
fn push(source: &Source, dir: &Path, text: OsString, left: &mut Vec<OsString>) -> Option<()> {
    let text = within(source, dir, &text).unwrap_or(text);
    (!Path::new(&text).is_absolute()).then_some(())?;
    left.extend(
        text.as_bytes().rsplit(|&b| b == b'/').map(|name| OsStr::from_bytes(name).to_owned()),
    );
    Some(())
}

/// The text with another last component.
pub(super) fn with_last(text: &OsStr, last: &OsStr) -> Option<OsString> {
    let text = text.as_bytes();
    let parent = text.iter().rposition(|&b| b == b'/').map_or(&b""[..], |slash| &text[..=slash]);
    let text = [parent, last.as_bytes()].concat();
    (text.len() <= MOST_TEXT).then(|| OsString::from_vec(text))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn source() -> (tempfile::TempDir, Source) {
        let dir = tempfile::tempdir().expect("tempdir");
        let root = dir.path().join("models");
        std::fs::create_dir_all(root.join("a/b")).expect("mkdir");
        let mut source = Source::open(&root).expect("source");
        source.also_known_as("/another/name".into());
        (dir, source)
    }

    #[test]
    fn a_text_that_leads_in_from_outside_becomes_a_relative_one() {
        let (_dir, source) = source();
        let root = source.paths()[0].display().to_string();
        for (dir, text, shown) in [
            ("a/b", format!("{root}/x/y"), Some("../../x/y")),
            ("", format!("{root}/x"), Some("x")),
            ("", root.clone(), Some(".")),
            ("a", root.clone(), Some("..")),
            ("a", format!("{root}//x/./y"), Some("../x/y")),
            ("a", format!("{root}/x/../y"), Some("../x/../y")),
            ("a", "/another/name/x".into(), Some("../x")),
            ("a", "../../models/x".into(), Some("../x")),
            ("a/b", "./../../../models/x".into(), Some("../../x")),
            // Those that stay in the source, or stay out of it.
            ("a", "../x".into(), None),
            ("a/b", "../../x".into(), None),
            ("", "x/../../models".into(), None),
            ("a", "../../other/x".into(), None),
            ("a", format!("{root}/x/../../other"), None),
            ("a", format!("{root}-2/x"), None),
            ("a", "/etc/passwd".into(), None),
            ("a", String::new(), None),
        ] {
            let got = within(&source, Path::new(dir), OsStr::new(&text));
            assert_eq!(got.as_deref(), shown.map(OsStr::new), "{text} in {dir}");
        }
        let long = format!("{root}/{}x", "x/".repeat(2047));
        assert!(within(&source, Path::new("a"), OsStr::new(&long)).is_none());
    }

    #[test]
    fn links_are_walked_as_the_kernel_walks_them_and_never_out_of_the_source() {
        let (dir, source) = source();
        let root = dir.path().join("models");
        std::fs::write(root.join("a/file"), "").expect("write");
        std::fs::write(dir.path().join("outside"), "").expect("write");
        for (name, text) in [
            ("to-dir", "a/b"),
            ("to-link", "a/chain"),
            ("a/chain", "../to-dir/../file"),
            ("a/out", "../../outside"),
            ("loop", "loop"),
        ] {
            symlink(text, root.join(name)).expect("symlink");
        }
        symlink(root.join("a"), root.join("absolute")).expect("symlink");
        for (text, dir, name) in [
            ("to-link", "a", Some("file")),
            ("to-dir/none", "a/b", Some("none")),
            ("absolute/file", "a", Some("file")),
            ("a/b/..", "a", None),
            (".", "", None),
        ] {
            let target = Target { dir: dir.into(), name: name.map(Into::into) };
            assert_eq!(
                resolve(&source, Path::new(""), OsStr::new(text), true),
                Some(target),
                "{text}"
            );
        }
        for text in ["loop", "a/out", "..", "/etc/passwd", "none/x", "a/file/x", "to-dir/../../.."]
        {
            assert_eq!(resolve(&source, Path::new(""), OsStr::new(text), true), None, "{text}");
        }
        let named =
            resolve(&source, Path::new("a"), OsStr::new("../to-link"), false).expect("a target");
        assert_eq!(named, Target { dir: "".into(), name: Some("to-link".into()) });
    }
}
