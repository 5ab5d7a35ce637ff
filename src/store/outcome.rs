//! What the packer is to do, and what becomes of a file.

/// What the packer's thread is to do.
pub(super) enum Task {
    /// Find files to pack.
    Walk,
    /// Examine an archive.
    Examine,
    /// Pack a node. `Tree::forget` is owed for it.
    Pack(u64),
    Stop,
}

/// What became of a file.
#[derive(Debug)]
pub(super) enum Outcome {
    Packed {
        original: u64,
        stored: u64,
    },
    /// It is not worth packing as long as it does not change.
    Left(String),
    /// It is no longer there, or is not a candidate.
    Gone,
    /// Try again later.
    Later(String),
    /// Try again, but not soon: an archive was made, and could not take its place.
    Failed(String),
}
