//! `bszfs._native`: the part of the Python package that is Rust, a thin layer over the library.
//!
//! Whatever takes long releases the GIL, and looks for signals, such as that of Ctrl-C, meanwhile.

mod archive;
mod commands;
mod cuda;
mod errors;
mod layers;
mod memory;
mod work;

use pyo3::prelude::*;

#[pymodule(gil_used = false)]
mod _native {
    use super::{errors, work};
    use pyo3::prelude::*;

    #[pymodule_export]
    use super::archive::Archive;
    #[pymodule_export]
    use super::commands::{info, main, pack, unpack, verify};
    #[pymodule_export]
    use super::cuda::Cuda;
    #[pymodule_export]
    use super::layers::layers;
    #[pymodule_export]
    use super::memory::advise_huge;
    #[pymodule_export]
    use super::work::thread_limit;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        work::prepare();
        module.add("BszError", errors::bsz_error(module.py())?)?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
