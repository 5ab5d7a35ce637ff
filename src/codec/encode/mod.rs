//! Encoding one chunk: its stored bytes, in the smallest coding.

mod delta;
mod encoder;
mod kernel;
mod table;

use super::Coding;

pub use delta::encode_differences;
pub(super) use encoder::EncodeKernel;
pub use encoder::{EncodeMemory, Encoder};
pub(super) use kernel::{Words, scalar_costs, scalar_rounds};
pub(super) use table::{Costs, TableEncoder};

/// The zstd level for chunks on which zstd is tried: matches matter there, speed hardly does.
const ZSTD_LEVEL: i32 = 9;

/// Encodes a chunk in the smallest way: in the planes of its model, with zstd if `try_zstd`, or
/// raw.
pub fn encode(chunk: &[u8], encoder: Option<&Encoder<'_>>, try_zstd: bool) -> (Coding, Vec<u8>) {
    let mut best = (Coding::Raw, None);
    let mut size = chunk.len();
    if let Some(planes) = encoder.and_then(|e| e.planes(chunk)).filter(|p| p.len() < size) {
        size = planes.len();
        best = (Coding::Planes, Some(planes));
    }
    if try_zstd
        && let Ok(z) = zstd::bulk::compress(chunk, ZSTD_LEVEL)
        && z.len() < size
    {
        best = (Coding::Zstd, Some(z));
    }
    (best.0, best.1.unwrap_or_else(|| chunk.to_vec()))
}

/// Whether zstd does about as well on a chunk as its model, which takes `planes` bytes, or better.
/// Asking this of a few chunks of a tensor decides whether zstd is tried on all of them.
pub(super) fn zstd_competes(chunk: &[u8], planes: usize) -> bool {
    let most = (planes + planes / 20).min(chunk.len() - chunk.len() / 50);
    // Where little is left, as of scales, a fast level says little about the one that is used.
    let level = if planes < chunk.len() / 4 { ZSTD_LEVEL } else { 1 };
    zstd::bulk::compress(chunk, level).is_ok_and(|z| z.len() < most)
}
