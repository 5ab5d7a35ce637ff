//! Unsupported operations of a file system have fallbacks, and the order of system calls loses no
//! data. strace injects the errors and records the calls.

mod common;

use common::models::write_model;
use common::program::{Ran, bsz, names, run};
use std::fs;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;

const SOME: usize = 60_000;

/// A directory with the model `s/m.safetensors`.
fn model() -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::create_dir(dir.path().join("s")).expect("mkdir");
    write_model(&dir.path().join("s/m.safetensors"), 1, SOME);
    dir
}

/// Whether strace is installed and may be used. With `BSZ_REQUIRE_STRACE`, its lack is a failure.
fn strace_works() -> bool {
    let works = Command::new("strace").args(["-o", "/dev/null", "true"]).output();
    let works = works.is_ok_and(|ran| ran.status.success());
    assert!(works || std::env::var_os("BSZ_REQUIRE_STRACE").is_none(), "no strace that works");
    if !works {
        eprintln!("skipped: no strace that works");
    }
    works
}

fn strace(dir: &Path, options: &[&str], args: &[&str]) -> Ran {
    let program = bsz().get_program().to_owned();
    let mut command = Command::new("strace");
    command.args(["-f", "-qq"]).args(options).arg(program).args(args).current_dir(dir);
    command.env_remove("BSZ_LOG").env_remove("RUST_LOG").output().expect("strace starts").into()
}

#[test]
fn unsupported_system_calls_have_fallbacks() {
    if !strace_works() {
        return;
    }
    for injected in [
        "fchmod:error=EPERM",
        "fchmod:error=EOPNOTSUPP",
        "fchown:error=EPERM",
        "fchown:error=EINVAL",
        "utimensat:error=EPERM",
        "linkat:error=EOPNOTSUPP",
        "linkat:error=EPERM",
        "linkat:error=ENOENT",
        "renameat2:error=EINVAL",
        "renameat2:error=ENOSYS",
        "fsetxattr:error=EOPNOTSUPP",
        "fgetxattr:error=EOPNOTSUPP",
        "flistxattr:error=ENOSYS",
        "fremovexattr:error=EOPNOTSUPP",
        "syncfs:error=ENOSYS",
        "lseek:error=EINVAL",
        "fsync:error=EINVAL",
    ] {
        let dir = model();
        let (call, error) = injected.split_once(':').expect("call and error");
        let inject = format!("inject={injected}");
        let trace = format!("trace={call}");
        let traced = dir.path().join("trace");
        let options = ["-o", traced.to_str().expect("UTF-8"), "-e", &trace, "-e", &inject];
        for args in [&["pack", "s/m.safetensors", "-o", "out.bsz"][..], &["pack", "s", "-o", "out"]]
        {
            let ran = strace(dir.path(), &options, args);
            assert_eq!(ran.code, Some(0), "{call} {error}: {ran:?}");
        }
        run(dir.path(), &["verify", "out.bsz"]).ok();
        let ran = strace(dir.path(), &options, &["pack", "--in-place", "s"]);
        assert_eq!(ran.code, Some(0), "{call} {error}: {ran:?}");
        assert_eq!(names(&dir.path().join("s")), ["m.bsz"], "{call} {error}");
        run(dir.path(), &["verify", "s"]).ok();
        let ran = strace(dir.path(), &options, &["unpack", "s", "-o", "back"]);
        assert_eq!(ran.code, Some(0), "{call} {error}: {ran:?}");
        assert_eq!(names(&dir.path().join("back")), ["m.safetensors"], "{call} {error}");
    }
}

#[test]
fn without_a_lease_a_file_that_others_may_be_writing_is_kept() {
    let dir = model();
    let path = dir.path().join("s/m.safetensors");
    // Only the owner of a file gets a lease on it.
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can become another user");
        return;
    }
    let others = Command::new("chmod").args(["-R", "a+rwX"]).arg(dir.path()).status();
    assert!(others.is_ok_and(|status| status.success()));
    let as_other = |args: &[&str]| -> Ran {
        let program = dir.path().join("bsz");
        if !program.exists() {
            fs::copy(bsz().get_program(), &program).expect("copied");
        }
        let mut command = Command::new("setpriv");
        command
            .args(["--reuid", "7002", "--regid", "7002", "--clear-groups"])
            .arg(program)
            .args(args);
        command.current_dir(dir.path()).output().expect("setpriv starts").into()
    };
    let holder = Command::new("setpriv")
        .args([
            "--reuid",
            "7003",
            "--regid",
            "7003",
            "--clear-groups",
            "sh",
            "-c",
            "exec 9>>\"$0\"; echo; read x",
        ])
        .arg(&path)
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut holder = holder.expect("setpriv starts");
    std::io::Read::read_exact(holder.stdout.as_mut().expect("piped"), &mut [0])
        .expect("it is ready");
    let ran = as_other(&["pack", "--in-place", "s"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("may be writing to it"), "{ran:?}");
    assert_eq!(names(&dir.path().join("s")), ["m.safetensors"]);
    drop(holder.stdin.take());
    holder.wait().expect("it ends");
    let ran = as_other(&["pack", "--in-place", "s"]);
    assert_eq!(
        (ran.code, names(&dir.path().join("s"))),
        (Some(0), vec!["m.bsz".to_owned()]),
        "{ran:?}"
    );
}

/// The calls of a run that determine what is on disk, in their order.
fn calls(dir: &Path, args: &[&str]) -> Vec<String> {
    let trace = dir.join("trace");
    let wanted =
        "trace=fsync,fdatasync,syncfs,linkat,link,unlinkat,unlink,rename,renameat,renameat2,fcntl";
    let options = ["-y", "-o", trace.to_str().expect("UTF-8"), "-e", wanted];
    let ran = strace(dir, &options, args);
    assert_eq!(ran.code, Some(0), "{ran:?}");
    let text = fs::read_to_string(trace).expect("the trace");
    text.lines()
        .map(|line| line.split_once(' ').map_or(line, |(_, call)| call).trim().to_owned())
        .collect()
}

/// The index of the first call from `start` on that contains all of these words.
#[track_caller]
fn find(calls: &[String], start: usize, words: &[&str]) -> usize {
    let found = calls[start..].iter().position(|call| words.iter().all(|word| call.contains(word)));
    start + found.unwrap_or_else(|| panic!("no call with {words:?} from {start} on in {calls:#?}"))
}

/// Assert the order: the lease is taken, the archive's bytes and then its name reach the disk, the
/// original is renamed out of the way, the lease is checked once more, the original is removed.
#[track_caller]
fn removes_last(calls: &[String], name: &str, archive_was_there: bool) {
    let lease = find(calls, 0, &["F_SETLEASE", "F_RDLCK", name]);
    let synced = find(calls, lease, &["fsync("]);
    let named = if archive_was_there { synced } else { find(calls, synced, &["linkat("]) };
    let directory = find(calls, named + 1, &["fsync(", "/s>"]);
    let hidden = find(calls, directory, &["renameat(", &format!("\"{name}\""), ".bsz-partial"]);
    let looked = find(calls, hidden, &["F_GETLEASE"]);
    let removed = find(calls, looked, &["unlinkat(", ".bsz-partial"]);
    find(calls, removed, &["fsync(", "/s>"]);
    find(calls, removed, &["F_SETLEASE", "F_UNLCK"]);
    let early = calls[..removed].iter().filter(|call| call.starts_with("unlink")).count();
    assert_eq!(early, 0, "{calls:#?}");
}

#[test]
fn an_original_is_removed_only_after_its_archive_and_name_are_on_disk() {
    if !strace_works() {
        return;
    }
    // Packed by file name and by directory.
    for args in [["pack", "--in-place", "s/m.safetensors"], ["pack", "--in-place", "s"]] {
        let dir = model();
        removes_last(&calls(dir.path(), &args), "m.safetensors", false);
    }
}

#[test]
fn an_existing_archive_is_synced_before_the_original_is_removed() {
    if !strace_works() {
        return;
    }
    for args in [["pack", "--in-place", "s/m.safetensors"], ["pack", "--in-place", "s"]] {
        let dir = model();
        run(dir.path(), &["pack", "s/m.safetensors"]).ok();
        removes_last(&calls(dir.path(), &args), "m.safetensors", true);
        assert_eq!(names(&dir.path().join("s")), ["m.bsz"]);
    }
}

#[test]
fn hard_links_are_removed_only_after_those_of_the_archive_are_on_disk() {
    if !strace_works() {
        return;
    }
    let dir = model();
    fs::hard_link(dir.path().join("s/m.safetensors"), dir.path().join("s/n.safetensors"))
        .expect("link");
    let calls = calls(dir.path(), &["pack", "--in-place", "s"]);
    let second = find(&calls, find(&calls, 0, &["linkat("]) + 1, &["linkat("]);
    let directory = find(&calls, second, &["fsync(", "/s>"]);
    let looked = find(&calls, directory, &["F_GETLEASE"]);
    let first_removed = find(&calls, 0, &["unlinkat("]);
    assert!(looked < first_removed, "{calls:#?}");
    removes_last(&calls, "m.safetensors", false);
}

#[test]
fn an_older_archive_is_replaced_by_rename_before_the_original_is_removed() {
    if !strace_works() {
        return;
    }
    let dir = model();
    run(dir.path(), &["pack", "--in-place", "s"]).ok();
    write_model(&dir.path().join("s/m.safetensors"), 2, SOME);
    let calls = calls(dir.path(), &["pack", "--in-place", "s"]);
    let renamed = find(&calls, find(&calls, 0, &["fsync("]), &["renameat", "m.bsz"]);
    find(&calls, renamed, &["fsync(", "/s>"]);
    removes_last(&calls, "m.safetensors", false);
}
