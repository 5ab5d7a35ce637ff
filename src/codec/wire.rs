//! Constants of a chunk's stored form that encoder and decoder share (`docs/FORMAT.md`, "Planes").

use super::LANES;

/// How the symbols or a plane of one chunk are stored, as numbered on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum StorageMode {
    /// Symbols: entropy-coded. A plane: packed.
    Stored = 0,
    /// One value for all elements.
    Constant = 1,
    /// A plane: packed, without the blocks in which it is zero.
    Sparse = 2,
}

/// Bytes of a plane that the encoder's initial states carry, 16 bits each. The decoder finds them
/// in its final states.
pub(super) const CARRIED: usize = 2 * LANES;
