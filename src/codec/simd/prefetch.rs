//! Prefetching of cache lines.
#![allow(unsafe_code)]

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};

/// The prefetch distance of reads, in bytes. Hardware prefetchers stop at the end of a page.
const AHEAD: usize = 2048;
/// Bytes of a cache line.
const LINE: usize = 64;

/// Prefetches the line [`AHEAD`] of `bytes`.
#[inline(always)]
pub(super) fn to_read(bytes: &[u8]) {
    // SAFETY: any address may be prefetched.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(AHEAD).cast()) };
}

/// Prefetches `bytes`, all of which will be written: a store waits for its line, and only few can
/// wait at the same time.
#[inline(always)]
pub(super) fn to_write(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
}
