//! Resource limits: the default size of the cache, the number of threads, and of open files.

use std::path::Path;

/// Upper bound of the cache's default size, in bytes.
const MAX_DEFAULT_CACHE: u64 = 1 << 30;

/// The default size of the cache, in bytes: 1 GiB, or an eighth of the memory of this machine or
/// container if that is less.
pub fn default_cache_bytes() -> u64 {
    let limits = physical_memory().into_iter().chain(cgroup_limits());
    limits.min().map_or(MAX_DEFAULT_CACHE, |memory| (memory / 8).min(MAX_DEFAULT_CACHE))
}

/// The default number of threads that read archives and decode.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(4, |cores| (2 * cores.get()).max(4))
}

/// Raise the limit of open files to its maximum. Each open archive is one.
pub(super) fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if let Err(e) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        log::debug!("the limit of open files stays at {:?}: {e}", limit.current);
    }
}

fn physical_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// The memory limits of this process's control groups and of their ancestors, version 1 and 2.
fn cgroup_limits() -> Vec<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    groups.lines().flat_map(|line| limits_of_group(Path::new("/sys/fs/cgroup"), line)).collect()
}

/// The memory limits that follow from a line of `/proc/self/cgroup`, `id:controllers:/path`.
fn limits_of_group(mount: &Path, line: &str) -> Vec<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return Vec::new() };
    let (base, file) = match controllers {
        "" => (mount.to_owned(), "memory.max"),
        c if c.split(',').any(|c| c == "memory") => (mount.join("memory"), "memory.limit_in_bytes"),
        _ => return Vec::new(),
    };
    // In a container, the path may be the host's, and the visible part of it starts at the base.
    let group = base.join(path.trim_start_matches('/'));
    group
        .ancestors()
        .take_while(|directory| directory.starts_with(&base))
        .filter_map(|directory| {
            std::fs::read_to_string(directory.join(file)).ok()?.trim().parse().ok()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_is_bounded() {
        let bytes = default_cache_bytes();
        assert!((1..=MAX_DEFAULT_CACHE).contains(&bytes), "{bytes}");
    }

    #[test]
    fn a_group_is_limited_by_itself_and_its_ancestors() {
        let root = tempfile::tempdir().expect("tempdir");
        let group = root.path().join("a/b");
        std::fs::create_dir_all(&group).expect("mkdir");
        std::fs::write(group.join("memory.max"), "max\n").expect("write");
        std::fs::write(root.path().join("a/memory.max"), "1000\n").expect("write");
        std::fs::create_dir_all(root.path().join("memory/c")).expect("mkdir");
        std::fs::write(root.path().join("memory/c/memory.limit_in_bytes"), "77\n").expect("write");
        assert_eq!(limits_of_group(root.path(), "0::/a/b"), [1000]);
        assert_eq!(limits_of_group(root.path(), "4:memory:/c"), [77]);
        assert!(limits_of_group(root.path(), "5:devices:/").is_empty());
        assert!(limits_of_group(root.path(), "rubbish").is_empty());
    }
}
