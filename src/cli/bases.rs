//! Where commands look for the bases of archives.

use crate::read::look_for_bases_in;
use clap::Args;
use std::path::PathBuf;

/// The option of commands that read archives.
#[derive(Args)]
pub(super) struct BaseArgs {
    /// Look for bases in DIR, too, if they are not beside the archives that need them; may be
    /// repeated [default: the directories in BSZ_BASES, which are separated by colons]
    #[arg(long, value_name = "DIR")]
    bases: Vec<PathBuf>,
}

impl BaseArgs {
    /// Apply it to this process.
    pub(super) fn apply(&self) {
        apply(&self.bases);
    }
}

/// Look for bases in these directories, if there are any.
pub(super) fn apply(directories: &[PathBuf]) {
    if !directories.is_empty() {
        look_for_bases_in(directories.to_vec());
    }
}
