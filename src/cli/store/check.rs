//! Where a store would do harm, or cannot work.

use crate::error::{Error, Result};
use crate::escape;
use crate::mount::Place;
use rustix::fs::{Access, StatVfsMountFlags, access, statvfs};
use rustix::process::geteuid;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Why a directory cannot be made a store, if so. It is not one yet.
pub(super) fn check(place: &Place) -> Result<()> {
    let path = &*place.path;
    why_not(place).map_or(Ok(()), |why| Err(Error::invalid(why).about_path(path)))?;
    let meta = path.metadata().map_err(|e| Error::from(e).about_path(path))?;
    let user = geteuid();
    if !user.is_root() && meta.uid() != user.as_raw() {
        let why = "belongs to another user: its owner or root can enable it";
        return Err(Error::invalid(why).about_path(path));
    }
    let is_read_only = statvfs(path).is_ok_and(|s| s.f_flag.contains(StatVfsMountFlags::RDONLY));
    if is_read_only || access(path, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        return Err(Error::invalid("cannot be written to").about_path(path));
    }
    Ok(())
}

/// Why not, as far as the path and the mounts tell.
fn why_not(place: &Place) -> Option<String> {
    let home = std::env::var_os("HOME").filter(|home| Path::new(home).is_absolute());
    let home = home.as_deref().map(Path::new).map(|h| h.canonicalize().unwrap_or(h.into()));
    if place.path == Path::new("/") {
        return Some("is the root of all files: enable a directory of models".into());
    }
    if home.is_some_and(|home| home.starts_with(&place.path)) {
        return Some("is or contains your home directory: enable a directory of models".into());
    }
    if let Some(mounted) = place.mounted.as_ref().filter(|kind| kind.starts_with("fuse")) {
        return Some(format!("is a {mounted} mount, which cannot be a store"));
    }
    if let Some(outer) = &place.inside {
        return Some(format!("is inside the bszfs mount {}", escape::path(outer)));
    }
    let inner = place.contains.as_ref()?;
    Some(format!("contains the bszfs mount {}", escape::path(inner)))
}

/// Why a store of Ollama cannot be one of ours.
pub(super) fn ollama(dir: &Path) -> Error {
    let why = "holds models of Ollama, which deletes files that it does not know when it starts; \
               they are quantised, and would hardly become smaller";
    Error::invalid(why).about_path(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(path: &str) -> Place {
        Place { path: path.into(), mounted: None, inside: None, contains: None }
    }

    #[test]
    fn where_a_store_would_do_harm_it_is_refused() {
        assert_eq!(why_not(&place("/srv/models")), None);
        let disk = Place { mounted: Some("ext4".into()), ..place("/srv/models") };
        assert_eq!(why_not(&disk), None, "the root of a disk");
        let why = |place: &Place| why_not(place).expect("refused");
        assert!(why(&place("/")).contains("root of all files"));
        let remote = Place { mounted: Some("fuse.sshfs".into()), ..place("/m") };
        assert!(why(&remote).contains("fuse.sshfs"));
        let inside = Place { inside: Some("/m".into()), ..place("/m/a") };
        assert!(why(&inside).contains("inside the bszfs mount /m"));
        let outside = Place { contains: Some("/m/a".into()), ..place("/m") };
        assert!(why(&outside).contains("contains the bszfs mount /m/a"));
    }
}
