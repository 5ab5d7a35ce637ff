//! The unmodified Python `safetensors` library loads a mounted model exactly like the plain one.
//!
//! `BSZ_PYTHON` names an interpreter with the packages of `tests/python/requirements.txt`; `make
//! test` provides one.

mod common;

use common::mounts::{bsz, mount_test, run};
use std::ffi::OsString;
use std::path::Path;
use std::process::Command;

/// The interpreter to use. Without one, the test is skipped with a message, or fails if Python is
/// required.
fn python() -> Option<OsString> {
    let python = std::env::var_os("BSZ_PYTHON").filter(|path| !path.is_empty());
    if python.is_none() {
        assert!(
            std::env::var_os("BSZ_REQUIRE_PYTHON").is_none(),
            "BSZ_PYTHON names no interpreter"
        );
        eprintln!("skipped: BSZ_PYTHON names no interpreter; `make test` provides one");
    }
    python
}

/// Run `tests/python/load.py` and return its output.
fn load(python: &OsString, verb: &str, paths: &[&Path]) -> String {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/load.py");
    let output = run(Command::new(python).arg(script).arg(verb).args(paths));
    assert!(output.status.success(), "load.py {verb}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn safetensors_reads_every_dtype_from_the_mount() {
    let Some(python) = python() else { return };
    mount_test(move |rig| {
        let plain = rig.mkdir("plain").join("model.safetensors");
        load(&python, "write", &[&plain]);
        let packed = rig.path("packed");
        bsz(["pack".as_ref(), rig.path("plain").as_os_str(), "-o".as_ref(), packed.as_os_str()]);
        let mount = rig.mount(&packed, "view", &[]);
        let said = load(&python, "compare", &[&plain, &mount.path("model.safetensors")]);
        assert_eq!(said, "58 tensors identical\n");
    });
}
