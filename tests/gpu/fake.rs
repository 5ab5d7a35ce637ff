//! The stand-in for the CUDA driver, and tests that run with it.

use super::common::cxx::{self, Built};
use std::{path::Path, process::Command, sync::OnceLock};

/// The directory that contains the driver's library.
pub fn driver() -> Option<&'static Path> {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    let flags = ["-O2", "-shared", "-fPIC"];
    let built = BUILT.get_or_init(|| cxx::build("tests/gpu/driver.cpp", "libcuda.so", &flags));
    built.as_ref().and_then(|b| b.path.parent())
}

/// Run an ignored test of this program with the stand-in driver and these variables.
pub fn with_driver(test: &str, variables: &[(&str, &str)]) {
    let Some(dir) = driver() else { return };
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--ignored", "--exact", test, "--nocapture"]).env("LD_LIBRARY_PATH", dir);
    let ran = command.envs(variables.iter().copied()).output().expect("runs");
    let said = [ran.stdout, ran.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    let passed = ran.status.success() && said.contains("1 passed");
    assert!(passed, "{test} with {variables:?}: {said}");
}
