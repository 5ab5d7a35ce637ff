//! Lines of memory brought into the processor's caches before they are needed.
#![allow(unsafe_code)]

use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};

/// Bytes ahead of what is read that are brought: hardware stops at the end of a page.
const AHEAD: usize = 2048;
/// Bytes of a line.
const LINE: usize = 64;

/// Bring what comes [`AHEAD`] of `bytes`.
#[inline(always)]
pub(super) fn to_read(bytes: &[u8]) {
    // SAFETY: it may name any address.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(bytes.as_ptr().wrapping_add(AHEAD).cast()) };
}

/// Bring `bytes`, all of which will be written: a store waits for its line, and few can wait at once.
#[inline(always)]
pub(super) fn to_write(bytes: &[u8]) {
    for line in bytes.chunks(LINE) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(line.as_ptr().cast()) };
    }
}
