//! Symlinks: where their targets lead inside the source. Nothing outside of the source is accessed.
//!
//! Anybody who may write to the source controls the targets. They are therefore walked here,
//! component by component as the kernel would, and are never passed to the kernel as paths.

use super::source::Source;
use rustix::fs::FileType;
use rustix::io::Errno;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// Most symlinks to follow, as many as the kernel does (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// Most bytes of a symlink's target.
const MAX_TARGET: usize = 4095;

/// Where a symlink leads.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Destination {
    /// A directory of the source, as a path without symlinks.
    pub dir: PathBuf,
    /// A name in it, which may not exist; `None` for the directory itself.
    pub name: Option<OsString>,
}

/// Rewrite the target of a symlink in the directory `dir` as a relative one, if it leads into the
/// source by a path that leads elsewhere in the view: an absolute path, or one that leaves the
/// source and reenters it. `None` for all other targets.
pub(super) fn relative_target(source: &Source, dir: &Path, target: &OsStr) -> Option<OsString> {
    let depth = dir.components().count();
    let path = Path::new(target);
    let inside = match path.is_absolute() {
        true => source.paths().iter().find_map(|root| path.strip_prefix(root).ok())?.to_owned(),
        false => reenter(source.paths().first()?, depth, path)?,
    };
    stays_inside(&inside).then_some(())?;
    let up = std::iter::repeat_n(Component::ParentDir, depth);
    let relative: PathBuf = up.chain(inside.components()).collect();
    let relative =
        if relative.as_os_str().is_empty() { ".".into() } else { relative.into_os_string() };
    (relative.len() <= MAX_TARGET).then_some(relative)
}

/// The part inside `root` of a relative path that starts `depth` directories below it, leaves it,
/// and reenters it. `root` is canonical, so `..` leads to the parents that its path names.
fn reenter(root: &Path, depth: usize, path: &Path) -> Option<PathBuf> {
    let steps = || path.components().filter(|c| *c != Component::CurDir);
    let up = steps().take_while(|c| *c == Component::ParentDir).count();
    let above = root.ancestors().nth(up.checked_sub(depth).filter(|&above| above > 0)?)?;
    let down: PathBuf = steps().skip(up).collect();
    above.join(down).strip_prefix(root).ok().map(Path::to_owned)
}

/// Whether no `..` of a path leads above its start.
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

/// Where the target of a symlink in `dir` leads inside the source; `None` if it leads out of the
/// source, or through something that does not exist. With `follow`, symlinks are followed to the
/// end of a chain. Otherwise, the last component is not followed.
pub(super) fn resolve(
    source: &Source,
    dir: &Path,
    target: &OsStr,
    follow: bool,
) -> Option<Destination> {
    let mut at = dir.to_owned();
    // The components to walk, last one first.
    let mut left = Vec::new();
    push(source, &at, target.to_owned(), &mut left)?;
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
                (links <= MAX_LINKS).then_some(())?;
                push(source, &at, handle.read_link(&name).ok()?, &mut left)?;
            }
            Ok(_) | Err(Errno::NOENT | Errno::NAMETOOLONG) if left.is_empty() => {
                return Some(Destination { dir: at, name: Some(name) });
            }
            Ok(FileType::Directory) => at.push(name),
            _ => return None,
        }
    }
    Some(Destination { dir: at, name: None })
}

/// Push the components of the target of a symlink in `dir` on the stack of those left to walk.
fn push(source: &Source, dir: &Path, target: OsString, left: &mut Vec<OsString>) -> Option<()> {
    let target = relative_target(source, dir, &target).unwrap_or(target);
    (!Path::new(&target).is_absolute()).then_some(())?;
    left.extend(
        target.as_bytes().rsplit(|&b| b == b'/').map(|name| OsStr::from_bytes(name).to_owned()),
    );
    Some(())
}

/// Replace the last component of a target.
pub(super) fn with_last(target: &OsStr, last: &OsStr) -> Option<OsString> {
    let target = target.as_bytes();
    let slash = target.iter().rposition(|&b| b == b'/');
    let parent = slash.map_or(&b""[..], |slash| &target[..=slash]);
    let target = [parent, last.as_bytes()].concat();
    (target.len() <= MAX_TARGET).then(|| OsString::from_vec(target))
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
        source.add_alias("/another/name".into());
        (dir, source)
    }

    #[test]
    fn a_target_that_enters_the_source_from_outside_becomes_relative() {
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
            // These stay inside the source, or outside of it.
            ("a", "../x".into(), None),
            ("a/b", "../../x".into(), None),
            ("", "x/../../models".into(), None),
            ("a", "../../other/x".into(), None),
            ("a", format!("{root}/x/../../other"), None),
            ("a", format!("{root}-2/x"), None),
            ("a", "/etc/passwd".into(), None),
            ("a", String::new(), None),
        ] {
            let got = relative_target(&source, Path::new(dir), OsStr::new(&text));
            assert_eq!(got.as_deref(), shown.map(OsStr::new), "{text} in {dir}");
        }
        let long = format!("{root}/{}x", "x/".repeat(2047));
        assert!(relative_target(&source, Path::new("a"), OsStr::new(&long)).is_none());
    }

    #[test]
    fn links_are_followed_as_by_the_kernel_but_never_out_of_the_source() {
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
            let expected = Destination { dir: dir.into(), name: name.map(Into::into) };
            let got = resolve(&source, Path::new(""), OsStr::new(text), true);
            assert_eq!(got, Some(expected), "{text}");
        }
        for text in ["loop", "a/out", "..", "/etc/passwd", "none/x", "a/file/x", "to-dir/../../.."]
        {
            assert_eq!(resolve(&source, Path::new(""), OsStr::new(text), true), None, "{text}");
        }
        let got = resolve(&source, Path::new("a"), OsStr::new("../to-link"), false);
        assert_eq!(got, Some(Destination { dir: "".into(), name: Some("to-link".into()) }));
    }
}
