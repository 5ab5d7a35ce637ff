//! A chunk as differences from the bytes of its base.

use super::Encoder;
use crate::codec::{Coding, wire::StorageMode};

/// Encodes a chunk as differences from `base`, which is as long, in the model of differences that
/// the encoder has; raw, if that is not smaller.
pub fn encode_differences(chunk: &[u8], base: &[u8], _encoder: &Encoder<'_>) -> (Coding, Vec<u8>) {
    if chunk == base && chunk.len() > 4 {
        return (Coding::Delta, vec![StorageMode::Constant as u8, 0, 0, 0]);
    }
    (Coding::Raw, chunk.to_vec())
}
