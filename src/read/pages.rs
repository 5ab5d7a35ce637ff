//! Memory for chunks: slabs cut into slots, in huge pages where the system has them. Memory that is used for the first time
//! comes 512 pages at once then.

#![allow(unsafe_code)]

use super::{
    account::Account,
    pace::{Kind, Pace},
};
use crate::error::{Context, Result};
use memmap2::{Advice, MmapMut, MmapRaw, UncheckedAdvice};
use std::{
    ops::{Deref, DerefMut, RangeInclusive},
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// What a huge page is on most systems. Where it is not, this is an alignment.
pub(super) const HUGE: usize = 2 << 20;

/// What a small page is on most systems.
pub(super) const SMALL: usize = 4096;

/// Slabs of memory cut into slots. What they hold is kept until it is [cleared](Shelf::clear): to bring it anew would take
/// longer than to decode what it is for.
///
/// Large slots are of a size of which a huge page has room for few, and a part of one more; a slab of several is used
/// nearly to its end. It comes and goes page by page. Pages of small slots are smaller.
pub(super) struct Shelf {
    /// Bytes of a slot.
    size: usize,
    /// Bytes of a page.
    page: usize,
    /// Bytes that are counted with a page for what else is kept for each of its slots.
    beside: u64,
    /// What pages are taken from.
    account: Arc<Account>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slabs: Vec<Slab>,
    /// No slab before this one has a free slot.
    first_free: usize,
    /// Slots that have memory and are not in use.
    free: usize,
    /// Whether there may be pages of which no slot is in use.
    has_unused: bool,
    /// Address space for more slabs, and where what is left of it starts.
    space: Option<(Arc<Memory>, usize)>,
    /// Whether somebody brings a page before it is needed.
    stocking: bool,
    pace: Pace,
}

/// Pages of a slab.
const PAGES: usize = 4;
/// Bytes of address space that is taken at a time: that of a slab, where pages are huge.
const SPACE: usize = PAGES * HUGE;
/// Most slots of a slab.
const MOST_SLOTS: usize = u128::BITS as usize;

struct Slab {
    memory: Arc<Memory>,
    /// Where it starts there.
    at: usize,
    /// A bit for each slot that is in use.
    used: u128,
    /// A bit for each slot all of whose memory is there.
    there: u128,
    /// Which of its pages are there.
    pages: [Presence; PAGES],
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Presence {
    Away,
    /// Somebody brings it, or gives it back.
    Moving,
    There,
}

impl Slab {
    /// The slots that could be taken.
    fn free(&self) -> u128 {
        self.there & !self.used
    }

    /// See which slots have all of their memory. Returns how many more can be taken now, or fewer.
    fn see(&mut self, shelf: &Shelf) -> isize {
        let before = self.free().count_ones() as isize;
        self.there = 0;
        for slot in 0..shelf.slots() {
            if shelf.pages_of(slot).all(|page| self.pages[page] == Presence::There) {
                self.there |= 1 << slot;
            }
        }
        self.free().count_ones() as isize - before
    }

    /// Which pages are there, and no slot that is in use has some of them.
    fn unused(&self, shelf: &Shelf) -> [bool; PAGES] {
        std::array::from_fn(|page| {
            self.pages[page] == Presence::There && self.used & shelf.slots_of(page) == 0
        })
    }
}

/// The address space of slabs.
struct Memory {
    map: MmapRaw,
    skip: usize,
}

impl Memory {
    fn new() -> Result<Self> {
        // Before and behind, wherever it comes to lie, stays unused.
        let map = MmapRaw::from(MmapMut::map_anon(SPACE + HUGE).about("memory")?);
        let skip = map.as_ptr().align_offset(HUGE);
        // Pages that are asked for one by one, so that no more come than are counted.
        if let Err(e) = map.advise(Advice::NoHugePage) {
            log::debug!("huge pages may be taken: {e}");
        }
        Ok(Self { map, skip })
    }

    /// Have the system bring a page now: at first use it would come little by little.
    fn bring(&self, at: usize, len: usize, kind: Kind) {
        let start = self.skip + at;
        if len == HUGE {
            let advice = if kind == Kind::Huge { Advice::HugePage } else { Advice::NoHugePage };
            if let Err(e) = self.map.advise_range(advice, start, len) {
                log::debug!("{advice:?} was not taken: {e}");
            }
        }
        if self.map.advise_range(Advice::PopulateWrite, start, len).is_err() {
            // Linux before 5.14.
            for at in (start..start + len).step_by(SMALL) {
                // SAFETY: within the map, and of no slot that is in use: those have all of their pages.
                unsafe { self.map.as_mut_ptr().add(at).write_volatile(0) };
            }
        }
    }

    /// Give a page back to the system.
    fn give_back(&self, at: usize, len: usize) {
        // SAFETY: its bytes become zero, which is as good as any; no slot that is in use has some of them.
        let given = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.skip + at, len)
        };
        if let Err(e) = given {
            log::debug!("unused memory is kept: {e}");
        }
    }
}

impl Shelf {
    /// With slots of so many bytes, of which a slab has [`MOST_SLOTS`] at most: multiples of [`SMALL`], or small parts of
    /// that. For what else is kept for a slot in use, `each` bytes are counted.
    pub(super) fn new(size: usize, each: u64, account: &Arc<Account>) -> Arc<Self> {
        let page = HUGE.min(size * MOST_SLOTS / PAGES);
        debug_assert!(
            page.is_multiple_of(SMALL) && PAGES * page / size <= MOST_SLOTS && size <= page
        );
        let beside = each * page.div_ceil(size) as u64;
        Arc::new(Self { size, page, beside, account: Arc::clone(account), state: Mutex::default() })
    }

    /// The bytes of a slot.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Bytes that are taken from the account at a time.
    pub(super) fn grows_by(&self) -> u64 {
        self.page as u64 + self.beside
    }

    /// Slots of a slab.
    fn slots(&self) -> usize {
        PAGES * self.page / self.size
    }

    /// The pages of its slab that a slot has some of.
    fn pages_of(&self, slot: usize) -> RangeInclusive<usize> {
        slot * self.size / self.page..=((slot + 1) * self.size - 1) / self.page
    }

    /// A bit for each slot that has some of a page.
    fn slots_of(&self, page: usize) -> u128 {
        let first = page * self.page / self.size;
        let last = (((page + 1) * self.page - 1) / self.size).min(self.slots() - 1);
        if first > last { 0 } else { u128::MAX >> (MOST_SLOTS - 1 - (last - first)) << first }
    }

    /// A slot with any content, if one has memory.
    pub(super) fn slot(self: &Arc<Self>) -> Option<Slot> {
        let mut state = self.lock();
        state.free = state.free.checked_sub(1)?;
        let first = state.first_free;
        let has_one = state.slabs[first..].iter().position(|slab| slab.free() != 0);
        let slab = first + has_one.expect("free slots are counted");
        state.first_free = slab;
        let taken = &mut state.slabs[slab];
        let number = taken.free().trailing_zeros() as usize;
        taken.used |= 1 << number;
        let (memory, at) = (Arc::clone(&taken.memory), taken.at);
        Some(Slot { shelf: Arc::clone(self), memory, at, slab, number })
    }

    /// What is counted for the pages that slots in use have some of.
    pub(super) fn used_bytes(&self) -> u64 {
        let state = self.lock();
        let used =
            |slab: &Slab| (0..PAGES).filter(|&page| slab.used & self.slots_of(page) != 0).count();
        state.slabs.iter().map(used).sum::<usize>() as u64 * self.grows_by()
    }

    /// How many pages are there.
    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        let there =
            |slab: &Slab| slab.pages.iter().filter(|page| **page == Presence::There).count();
        self.lock().slabs.iter().map(there).sum()
    }

    /// Whether a page should be brought before it is needed, by [`Shelf::stock`]; says so once until that was done.
    pub(super) fn runs_low(&self) -> bool {
        let mut state = self.lock();
        let low = !state.stocking && state.free <= self.page / self.size / 2;
        state.stocking |= low;
        low
    }

    /// Bring a page that will be needed, if there is room for it.
    pub(super) fn stock(&self) {
        if self.account.try_take(self.grows_by())
            && let Err(e) = self.grow()
        {
            log::debug!("no memory ahead: {e}");
        }
        self.lock().stocking = false;
    }

    /// Bring a page whose bytes have been taken from the account.
    ///
    /// # Errors
    /// Io, where there is no memory.
    pub(super) fn grow(&self) -> Result<()> {
        let mut state = self.lock();
        let away = |slab: &Slab| slab.pages.iter().position(|page| *page == Presence::Away);
        let place = state.slabs.iter().enumerate().find_map(|(i, slab)| Some((i, away(slab)?)));
        let place = place.map_or_else(|| state.add_slab(self), Ok);
        let (slab, page) = place.inspect_err(|_| self.account.give_back(self.grows_by()))?;
        state.slabs[slab].pages[page] = Presence::Moving;
        let (memory, at) = (Arc::clone(&state.slabs[slab].memory), state.slabs[slab].at);
        let kind = state.pace.choice();
        drop(state);
        let begun = Instant::now();
        memory.bring(at + page * self.page, self.page, kind);
        let time = begun.elapsed();
        let mut state = self.lock();
        if self.page == HUGE {
            state.pace.took(kind, time);
        }
        state.moved(self, slab, page, Presence::There);
        state.has_unused = true;
        Ok(())
    }

    /// Give back all pages of which no slot is in use; `false` if there were none.
    pub(super) fn clear(&self) -> bool {
        let mut given_back = Vec::new();
        let mut state = self.lock();
        if !std::mem::take(&mut state.has_unused) {
            return false;
        }
        for i in 0..state.slabs.len() {
            let unused = state.slabs[i].unused(self);
            for page in (0..PAGES).filter(|&page| unused[page]) {
                given_back.push((Arc::clone(&state.slabs[i].memory), i, page));
                state.moved(self, i, page, Presence::Moving);
            }
        }
        drop(state);
        // Unlocked, for it takes a while.
        for (memory, slab, page) in &given_back {
            let at = self.lock().slabs[*slab].at;
            memory.give_back(at + page * self.page, self.page);
            self.lock().moved(self, *slab, *page, Presence::Away);
            self.account.give_back(self.grows_by());
        }
        !given_back.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn moved(&mut self, shelf: &Shelf, slab: usize, page: usize, to: Presence) {
        self.first_free = self.first_free.min(slab);
        let slab = &mut self.slabs[slab];
        slab.pages[page] = to;
        self.free = self.free.checked_add_signed(slab.see(shelf)).expect("slots are counted");
    }

    /// Add a slab none of whose pages are there: its place and that of its first page.
    fn add_slab(&mut self, shelf: &Shelf) -> Result<(usize, usize)> {
        let bytes = PAGES * shelf.page;
        let (memory, at) = match self.space.take() {
            Some(space) => space,
            None => (Arc::new(Memory::new()?), 0),
        };
        let behind = at + bytes;
        if behind + bytes <= SPACE {
            self.space = Some((Arc::clone(&memory), behind));
        }
        self.slabs.push(Slab { memory, at, used: 0, there: 0, pages: [Presence::Away; PAGES] });
        Ok((self.slabs.len() - 1, 0))
    }
}

/// [`Shelf::size`] bytes of a [`Shelf`], given back when dropped.
pub(super) struct Slot {
    shelf: Arc<Shelf>,
    memory: Arc<Memory>,
    /// Where the slab starts there.
    at: usize,
    slab: usize,
    number: usize,
}

impl Slot {
    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the map has `SPACE` bytes from `skip` on, and all slots of all slabs are in these.
        unsafe {
            self.memory
                .map
                .as_mut_ptr()
                .add(self.memory.skip + self.at + self.number * self.shelf.size)
        }
    }
}

impl Deref for Slot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slot's bytes of memory that lives as long as `self`, initialised by the system. They are of no other
        // slot: a bit of `used` is set for one at a time, and cleared when that is dropped; until then none of its pages is
        // moved.
        unsafe { slice::from_raw_parts(self.start(), self.shelf.size) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        unsafe { slice::from_raw_parts_mut(self.start(), self.shelf.size) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let shelf = &self.shelf;
        let mut state = shelf.lock();
        state.free += 1;
        state.first_free = state.first_free.min(self.slab);
        let slab = &mut state.slabs[self.slab];
        slab.used &= !(1 << self.number);
        let used = slab.used;
        state.has_unused |=
            shelf.pages_of(self.number).any(|page| used & shelf.slots_of(page) == 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 65 * SMALL;

    fn shelf(size: usize) -> Arc<Shelf> {
        Shelf::new(size, 9, &Account::new(u64::MAX))
    }

    /// A slot, for which the shelf grows if it must.
    fn slot(shelf: &Arc<Shelf>) -> Slot {
        std::iter::repeat_with(|| {
            shelf.slot().or_else(|| {
                shelf.account.take(shelf.grows_by());
                shelf.grow().expect("memory");
                shelf.slot()
            })
        })
        .flatten()
        .next()
        .expect("endless")
    }

    #[test]
    fn no_two_slots_share_a_byte_and_unused_pages_are_given_back_when_cleared() {
        for size in [SIZE, SMALL * 17, HUGE, 1 << 10, 16 << 10] {
            let shelf = shelf(size);
            let counted = || shelf.account.taken() / shelf.grows_by();
            let take = |n: usize| -> Vec<Slot> { (0..n).map(|_| slot(&shelf)).collect() };
            let mut slots = take(3 * shelf.slots());
            for (i, slot) in slots.iter_mut().enumerate() {
                slot.fill(i as u8);
            }
            for (i, slot) in slots.iter().enumerate() {
                assert!(slot.len() == size && slot.iter().all(|&byte| byte == i as u8), "slot {i}");
            }
            assert_eq!((shelf.pages(), counted()), (3 * PAGES, 3 * PAGES as u64));
            assert_eq!(shelf.used_bytes(), shelf.account.taken());
            // The last of each slab stays; what they leave is used again.
            slots.retain(|slot| slot.number == shelf.slots() - 1);
            slots.extend(take(3 * (shelf.slots() - 1)));
            assert_eq!(shelf.pages(), 3 * PAGES);
            slots.truncate(3);
            assert!(shelf.clear() && !shelf.clear());
            assert_eq!((shelf.pages(), shelf.lock().free), (3, 3 * shelf.slots_of_last_page()));
            drop(slots);
            shelf.clear();
            assert_eq!((shelf.pages(), shelf.lock().free, counted()), (0, 0, 0));
            // What was given back comes again, and first.
            let slots = take(shelf.slots());
            assert!(slots.iter().all(|slot| slot.slab == 0) && shelf.pages() == PAGES);
        }
    }

    impl Shelf {
        /// Slots that are in the last page of a slab only, without the last one.
        fn slots_of_last_page(&self) -> usize {
            (0..self.slots() - 1).filter(|slot| *self.pages_of(*slot).start() == PAGES - 1).count()
        }
    }

    #[test]
    fn slots_are_taken_and_given_back_by_many_threads() {
        let shelf = shelf(SIZE);
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let shelf = &shelf;
                scope.spawn(move || {
                    for round in 0..200 {
                        if round % 16 == 0 {
                            shelf.clear();
                        }
                        let mut slots: Vec<Slot> =
                            (0..1 + round % 11).map(|_| slot(shelf)).collect();
                        slots.iter_mut().for_each(|slot| slot[..64].fill(thread));
                        assert!(slots.iter().all(|slot| slot[..64] == [thread; 64]));
                    }
                });
            }
        });
        let state = shelf.lock();
        let free: u32 = state.slabs.iter().map(|slab| slab.free().count_ones()).sum();
        assert!(state.free == free as usize && state.slabs.iter().all(|slab| slab.used == 0));
    }
}
