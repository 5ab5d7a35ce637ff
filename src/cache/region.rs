//! Address space whose pages are populated and returned to the system one by one.

#![allow(unsafe_code)]

use super::page_size::PageSize;
use crate::{
    error::{Context, Result},
    read::{HUGE_PAGE, PAGE},
};
use memmap2::{Advice, MmapMut, MmapRaw, UncheckedAdvice};

/// An anonymous mapping that starts at a multiple of [`HUGE_PAGE`].
pub(super) struct Region {
    map: MmapRaw,
    /// Bytes before the aligned start.
    skip: usize,
}

impl Region {
    /// Reserve address space for `len` bytes.
    ///
    /// # Errors
    /// Io, if the system has no memory.
    pub(super) fn new(len: usize) -> Result<Self> {
        // The bytes around the aligned part are never touched.
        let map = MmapRaw::from(MmapMut::map_anon(len + HUGE_PAGE).about("memory")?);
        let skip = map.as_ptr().align_offset(HUGE_PAGE);
        // Pages are populated explicitly, so that no more become resident than are accounted for.
        if let Err(e) = map.advise(Advice::NoHugePage) {
            log::debug!("the kernel may populate huge pages by itself: {e}");
        }
        Ok(Self { map, skip })
    }

    /// Populate `len` bytes at `at` now. On first use, the kernel would populate them page by page.
    pub(super) fn populate(&self, at: usize, len: usize, size: PageSize) {
        let start = self.skip + at;
        if len == HUGE_PAGE {
            let huge = size == PageSize::Huge;
            let advice = if huge { Advice::HugePage } else { Advice::NoHugePage };
            if let Err(e) = self.map.advise_range(advice, start, len) {
                log::debug!("{advice:?} was refused: {e}");
            }
        }
        if self.map.advise_range(Advice::PopulateWrite, start, len).is_err() {
            // Linux before 5.14.
            for at in (start..start + len).step_by(PAGE) {
                // SAFETY: `at` is inside the map, and no slot in use overlaps a page that is not
                // resident yet.
                unsafe { self.map.as_mut_ptr().add(at).write_volatile(0) };
            }
        }
    }

    /// Return `len` bytes at `at` to the system.
    pub(super) fn release(&self, at: usize, len: usize) {
        // SAFETY: the bytes become zero, which is valid content, and no slot in use overlaps them.
        let released = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.skip + at, len)
        };
        if let Err(e) = released {
            log::debug!("unused memory stays resident: {e}");
        }
    }

    /// The address of the byte at `at`.
    pub(super) fn address(&self, at: usize) -> *mut u8 {
        // SAFETY: callers pass offsets below the length that they asked for in `new`.
        unsafe { self.map.as_mut_ptr().add(self.skip + at) }
    }
}
