//! What a store packs, and when.

use std::time::Duration;

/// When to pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pack {
    /// Never, unless told to.
    Off,
    /// While the machine has nothing better to do.
    Idle,
    /// As soon as a file has settled.
    Now,
}

impl Pack {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Idle => "idle",
            Self::Now => "now",
        }
    }
}

/// What a store packs, and when.
#[derive(Clone, Copy, Debug)]
pub struct PackPolicy {
    /// When to pack.
    pub pack: Pack,
    /// How long a file must have been closed and unchanged.
    pub settle: Duration,
    /// Smaller files are left plain, in bytes.
    pub min_size: u64,
}
