//! The C++ code of `tests/gpu`, compiled if there is a compiler.

use super::places;
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// A compiled file, removed when this is dropped.
pub struct Built {
    pub path: PathBuf,
    _dir: tempfile::TempDir,
}

/// Compile `source` to a file called `name` in a directory of its own. Without a working compiler,
/// returns `None` with a message, or panics if `BSZ_REQUIRE_CXX=1`.
///
/// # Panics
/// If the compiler works but the source does not compile.
pub fn build(source: &str, name: &str, flags: &[&str]) -> Option<Built> {
    let dir = tempfile::tempdir().expect("a directory");
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
    let compile = |source: &Path, path: &Path| {
        let built = Command::new(&compiler)
            .args(["-std=c++20", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"])
            .args(flags)
            .args([Path::new("-o"), path, source])
            .output();
        match built {
            Ok(o) if o.status.success() => Ok(()),
            Ok(o) => Err(String::from_utf8_lossy(&o.stderr).into_owned()),
            Err(e) => Err(e.to_string()),
        }
    };
    // An empty program shows whether the compiler works.
    let nothing = dir.path().join("nothing.cpp");
    std::fs::write(&nothing, "#include <ucontext.h>\nint main() {}\n").expect("written");
    if let Err(why) = compile(&nothing, &dir.path().join("nothing")) {
        let required = std::env::var_os("BSZ_REQUIRE_CXX").is_some_and(|v| v == "1");
        assert!(!required, "{compiler} does not compile anything: {why}");
        eprintln!(
            "\n*** SKIPPED: {source} is not tested, \
             since {compiler} does not compile anything: {why}\n"
        );
        return None;
    }
    let path = dir.path().join(name);
    let built = compile(&places::root().join(source), &path);
    built.unwrap_or_else(|why| panic!("{source} does not compile: {why}"));
    Some(Built { path, _dir: dir })
}
