//! Slabs: memory for chunks of one size, in huge pages where the system has them.
//!
//! Populating a page costs more than decoding what it will hold, so the pages of a slab stay
//! resident until the pool is trimmed.

#![allow(unsafe_code)]

use super::{budget::MemoryBudget, page_size::PopulateTimes, region::Region};
use crate::{
    error::Result,
    read::{HUGE_PAGE, PAGE},
};
use std::{
    ops::{Deref, DerefMut, RangeInclusive},
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Pages of a slab.
const PAGES: usize = 4;
/// Bytes of address space to reserve at a time: those of a slab with huge pages.
const REGION_BYTES: usize = PAGES * HUGE_PAGE;
/// Most slots of a slab.
const MAX_SLOTS: usize = u128::BITS as usize;

/// A pool of slabs that are cut into slots of equal size.
///
/// A huge page has room for a few large slots and a part of another one. A slab therefore spans
/// several pages, so that little of its end is wasted; its pages come and go one by one. Slabs of
/// small slots have smaller pages.
pub(super) struct SlabPool {
    /// Bytes of a slot.
    slot_size: usize,
    /// Bytes of a page.
    page_size: usize,
    /// Bytes that are reserved with a page for the bookkeeping of its slots.
    overhead: u64,
    budget: Arc<MemoryBudget>,
    slabs: Mutex<Slabs>,
}

#[derive(Default)]
struct Slabs {
    slabs: Vec<Slab>,
    /// No slab before this one has a free slot.
    first_free: usize,
    /// Slots that are resident and not in use.
    free: usize,
    /// Whether some page may be resident without a slot in use.
    may_trim: bool,
    /// Address space for more slabs, and the offset of its unused rest.
    spare: Option<(Arc<Region>, usize)>,
    preallocating: bool,
    populate_times: PopulateTimes,
}

struct Slab {
    region: Arc<Region>,
    /// Offset of the slab in its region.
    at: usize,
    /// A bit for each slot in use.
    in_use: u128,
    /// A bit for each slot all of whose pages are resident.
    resident: u128,
    pages: [Residency; PAGES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Residency {
    Absent,
    /// A thread is populating the page, or returning it.
    InTransit,
    Resident,
}

impl Slab {
    /// A bit for each slot that can be taken.
    fn free(&self) -> u128 {
        self.resident & !self.in_use
    }

    /// Recompute which slots are resident. Returns the change in the number of free slots.
    fn update_resident(&mut self, pool: &SlabPool) -> isize {
        let before = self.free().count_ones() as isize;
        self.resident = 0;
        for slot in 0..pool.slots() {
            if pool.pages_of(slot).all(|page| self.pages[page] == Residency::Resident) {
                self.resident |= 1 << slot;
            }
        }
        self.free().count_ones() as isize - before
    }

    /// Which pages are resident and not used by any slot.
    fn unused_pages(&self, pool: &SlabPool) -> [bool; PAGES] {
        std::array::from_fn(|page| {
            self.pages[page] == Residency::Resident && self.in_use & pool.slots_of(page) == 0
        })
    }
}

impl SlabPool {
    /// A pool of slots of `slot_size` bytes, which is a multiple of [`PAGE`] or a small part of it.
    /// For each slot, `overhead` bytes of bookkeeping are reserved as well.
    pub(super) fn new(slot_size: usize, overhead: u64, budget: &Arc<MemoryBudget>) -> Arc<Self> {
        let page_size = HUGE_PAGE.min(slot_size * MAX_SLOTS / PAGES);
        debug_assert!(
            page_size.is_multiple_of(PAGE)
                && PAGES * page_size / slot_size <= MAX_SLOTS
                && slot_size <= page_size
        );
        let overhead = overhead * page_size.div_ceil(slot_size) as u64;
        let (budget, slabs) = (Arc::clone(budget), Mutex::default());
        Arc::new(Self { slot_size, page_size, overhead, budget, slabs })
    }

    /// Bytes of a slot.
    pub(super) fn slot_size(&self) -> usize {
        self.slot_size
    }

    /// Bytes to reserve for each page by which the pool grows.
    pub(super) fn growth(&self) -> u64 {
        self.page_size as u64 + self.overhead
    }

    /// Slots of a slab.
    fn slots(&self) -> usize {
        PAGES * self.page_size / self.slot_size
    }

    /// The pages of its slab that a slot overlaps.
    fn pages_of(&self, slot: usize) -> RangeInclusive<usize> {
        slot * self.slot_size / self.page_size..=((slot + 1) * self.slot_size - 1) / self.page_size
    }

    /// A bit for each slot that overlaps a page.
    fn slots_of(&self, page: usize) -> u128 {
        let first = page * self.page_size / self.slot_size;
        let last = (((page + 1) * self.page_size - 1) / self.slot_size).min(self.slots() - 1);
        if first > last { 0 } else { u128::MAX >> (MAX_SLOTS - 1 - (last - first)) << first }
    }

    /// Take a resident slot with arbitrary content, if there is one.
    pub(super) fn take(self: &Arc<Self>) -> Option<Slot> {
        let mut slabs = self.lock();
        slabs.free = slabs.free.checked_sub(1)?;
        let first = slabs.first_free;
        let found = slabs.slabs[first..].iter().position(|slab| slab.free() != 0);
        let slab = first + found.expect("free slots are counted");
        slabs.first_free = slab;
        let taken = &mut slabs.slabs[slab];
        let number = taken.free().trailing_zeros() as usize;
        taken.in_use |= 1 << number;
        let (region, at) = (Arc::clone(&taken.region), taken.at);
        Some(Slot { pool: Arc::clone(self), region, at, slab, number })
    }

    /// Reserved bytes of the pages that slots in use overlap.
    pub(super) fn bytes_in_use(&self) -> u64 {
        let slabs = self.lock();
        let in_use =
            |slab: &Slab| (0..PAGES).filter(|&page| slab.in_use & self.slots_of(page) != 0).count();
        slabs.slabs.iter().map(in_use).sum::<usize>() as u64 * self.growth()
    }

    #[cfg(test)]
    pub(super) fn resident_pages(&self) -> usize {
        let resident =
            |slab: &Slab| slab.pages.iter().filter(|page| **page == Residency::Resident).count();
        self.lock().slabs.iter().map(resident).sum()
    }

    /// Whether the caller should run [`SlabPool::preallocate`], because free slots run low. True
    /// for one caller until that has been done.
    pub(super) fn should_preallocate(&self) -> bool {
        let mut slabs = self.lock();
        let low = !slabs.preallocating && slabs.free <= self.page_size / self.slot_size / 2;
        slabs.preallocating |= low;
        low
    }

    /// Populate a page before it is needed, if the budget allows it.
    pub(super) fn preallocate(&self) {
        if self.budget.try_reserve(self.growth())
            && let Err(e) = self.grow()
        {
            log::debug!("no memory to preallocate: {e}");
        }
        self.lock().preallocating = false;
    }

    /// Populate a page, for which the caller has reserved [`SlabPool::growth`] bytes.
    ///
    /// # Errors
    /// Io, if the system has no memory; the reservation is released then.
    pub(super) fn grow(&self) -> Result<()> {
        let mut slabs = self.lock();
        let absent = |slab: &Slab| slab.pages.iter().position(|page| *page == Residency::Absent);
        let place = slabs.slabs.iter().enumerate().find_map(|(i, slab)| Some((i, absent(slab)?)));
        let place = place.map_or_else(|| slabs.add_slab(self.page_size), Ok);
        let (slab, page) = place.inspect_err(|_| self.budget.release(self.growth()))?;
        slabs.slabs[slab].pages[page] = Residency::InTransit;
        let (region, at) = (Arc::clone(&slabs.slabs[slab].region), slabs.slabs[slab].at);
        let size = slabs.populate_times.fastest();
        drop(slabs);
        let begun = Instant::now();
        region.populate(at + page * self.page_size, self.page_size, size);
        let time = begun.elapsed();
        let mut slabs = self.lock();
        if self.page_size == HUGE_PAGE {
            slabs.populate_times.record(size, time);
        }
        slabs.set_residency(self, slab, page, Residency::Resident);
        slabs.may_trim = true;
        Ok(())
    }

    /// Return all unused pages to the system; `false` if there were none.
    pub(super) fn trim(&self) -> bool {
        let mut unused = Vec::new();
        let mut slabs = self.lock();
        if !std::mem::take(&mut slabs.may_trim) {
            return false;
        }
        for i in 0..slabs.slabs.len() {
            let unused_pages = slabs.slabs[i].unused_pages(self);
            for page in (0..PAGES).filter(|&page| unused_pages[page]) {
                let slab = &slabs.slabs[i];
                unused.push((Arc::clone(&slab.region), slab.at, i, page));
                slabs.set_residency(self, i, page, Residency::InTransit);
            }
        }
        drop(slabs);
        // Without the lock, because the system call takes a while.
        for (region, at, slab, page) in &unused {
            region.release(at + page * self.page_size, self.page_size);
            self.lock().set_residency(self, *slab, *page, Residency::Absent);
            self.budget.release(self.growth());
        }
        !unused.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Slabs> {
        self.slabs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slabs {
    fn set_residency(&mut self, pool: &SlabPool, slab: usize, page: usize, now: Residency) {
        self.first_free = self.first_free.min(slab);
        let slab = &mut self.slabs[slab];
        slab.pages[page] = now;
        let change = slab.update_resident(pool);
        self.free = self.free.checked_add_signed(change).expect("free slots are counted");
    }

    /// Add a slab without resident pages. Returns its index, and that of its first page.
    fn add_slab(&mut self, page_size: usize) -> Result<(usize, usize)> {
        let bytes = PAGES * page_size;
        let (region, at) = match self.spare.take() {
            Some(spare) => spare,
            None => (Arc::new(Region::new(REGION_BYTES)?), 0),
        };
        let end = at + bytes;
        if end + bytes <= REGION_BYTES {
            self.spare = Some((Arc::clone(&region), end));
        }
        let pages = [Residency::Absent; PAGES];
        self.slabs.push(Slab { region, at, in_use: 0, resident: 0, pages });
        Ok((self.slabs.len() - 1, 0))
    }
}

/// A slot of a [`SlabPool`], returned to it on drop.
pub(super) struct Slot {
    pool: Arc<SlabPool>,
    region: Arc<Region>,
    /// Offset of the slab in its region.
    at: usize,
    slab: usize,
    number: usize,
}

impl Slot {
    pub(super) fn pool(&self) -> &Arc<SlabPool> {
        &self.pool
    }

    fn start(&self) -> *mut u8 {
        self.region.address(self.at + self.number * self.pool.slot_size)
    }
}

impl Deref for Slot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the bytes lie in a region that lives as long as `self`, and the system has
        // initialised them. No other slot has them: a bit of `in_use` is set by one `Slot` at a
        // time and cleared when that is dropped. Until then, none of its pages is released.
        unsafe { slice::from_raw_parts(self.start(), self.pool.slot_size) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        unsafe { slice::from_raw_parts_mut(self.start(), self.pool.slot_size) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let pool = &self.pool;
        let mut slabs = pool.lock();
        slabs.free += 1;
        slabs.first_free = slabs.first_free.min(self.slab);
        let slab = &mut slabs.slabs[self.slab];
        slab.in_use &= !(1 << self.number);
        let in_use = slab.in_use;
        slabs.may_trim |= pool.pages_of(self.number).any(|page| in_use & pool.slots_of(page) == 0);
    }
}

#[cfg(test)]
#[path = "slab_tests.rs"]
mod tests;
