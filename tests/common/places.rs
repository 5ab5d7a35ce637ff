//! Where the repository and the programs are. A test program that runs on a machine other than the
//! one that built it is told by the environment: see `tests/gpu/run`.

use std::{env, path::PathBuf};

/// The repository, or the copy of a part of it that `BSZ_ROOT` names.
pub fn root() -> PathBuf {
    named("BSZ_ROOT").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into())
}

/// The `bsz` program, or the one that `BSZ_PROGRAM` names.
pub fn program() -> PathBuf {
    named("BSZ_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_bsz").into())
}

/// The library that `examples/dlpack.rs` is built to, or the one that `BSZ_DLPACK` names. Cargo
/// builds it along with all tests, but not along with a single one.
pub fn dlpack() -> PathBuf {
    let built = || env::current_exe().expect("this program");
    named("BSZ_DLPACK").unwrap_or_else(|| built().with_file_name("../examples/libdlpack.so"))
}

fn named(variable: &str) -> Option<PathBuf> {
    env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from)
}
