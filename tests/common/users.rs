//! A sample to mount, and ordinary users who mount it, whom root impersonates.

use super::models::write_model;
use super::mounts::{BSZ, Rig, bsz, run};
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A directory with one archive, and the bytes of the original.
pub fn sample(rig: &Rig, name: &str) -> (PathBuf, Vec<u8>) {
    let plain = rig.mkdir(&format!("{name}-plain"));
    let model = write_model(&plain.join("model.safetensors"), 5, 600_000);
    let packed = rig.path(name);
    bsz([Path::new("pack"), &plain, Path::new("-o"), &packed]);
    (packed, model)
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Run as the user nobody, who stands for ordinary users when root runs the tests.
pub fn as_nobody(program: &Path, args: &[&Path]) -> std::process::Output {
    run(Command::new("runuser").args(["-u", "nobody", "--"]).arg(program).args(args))
}

/// The program and an empty directory owned by nobody, both reachable by nobody. `None` if this
/// machine lacks what an ordinary user needs to mount.
pub fn ordinary_user(rig: &Rig) -> Option<(PathBuf, PathBuf)> {
    let lacks = |what: &str| {
        eprintln!("skipped: {what}");
        None
    };
    if !is_root() {
        return lacks("only root can become another user");
    }
    if !as_nobody(Path::new("true"), &[]).status.success() {
        return lacks("no runuser, or no user nobody");
    }
    let open_to_all = || fs::Permissions::from_mode(0o755);
    fs::set_permissions(rig.path(""), open_to_all()).expect("our directory");
    let program = rig.path("bsz");
    fs::copy(BSZ, &program).expect("a copy of the program");
    fs::set_permissions(&program, open_to_all()).expect("our file");
    if !as_nobody(&program, &[Path::new("--help")]).status.success() {
        return lacks("nobody cannot reach the temporary directory");
    }
    let view = rig.mkdir("users-view");
    chown(&view, Some(65534), None).expect("root may give it away");
    Some((program, view))
}
