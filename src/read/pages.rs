//! Memory in huge pages where the system has them, for what is large and used again and again.
//!
//! A direct read needs its memory page by page: one of 1 MiB into pages of 4 KiB, each somewhere else, is 256 pieces for
//! the disk to fill, and into a huge page it is one. Memory that is used for the first time comes 512 pages at once.

#![allow(unsafe_code)]

use crate::error::{Context, Result};
use memmap2::{Advice, MmapMut, MmapRaw, UncheckedAdvice};
use std::{
    ops::{Deref, DerefMut, RangeInclusive},
    slice,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What a huge page is on most systems. Where it is not, this is an alignment.
const HUGE: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Huge,
    Small,
}

/// Zeroed memory that starts at a multiple of [`HUGE`], given back when dropped.
pub(super) struct Pages {
    map: MmapMut,
    skip: usize,
    len: usize,
}

impl Pages {
    /// At least `len` bytes, in multiples of [`HUGE`]. What is not used takes no memory.
    ///
    /// # Errors
    /// Io, where there is no memory.
    pub(super) fn new(len: usize) -> Result<Self> {
        let len = len.next_multiple_of(HUGE);
        // Before and behind, wherever it comes to lie, stays unused.
        let map = MmapMut::map_anon(len + HUGE).about("memory")?;
        let skip = map.as_ptr().align_offset(HUGE);
        if let Err(e) = map.advise_range(Advice::HugePage, skip, len) {
            log::debug!("huge pages were not taken: {e}");
        }
        Ok(Self { map, skip, len })
    }
}

impl Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.map[self.skip..][..self.len]
    }
}

impl DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.map[self.skip..][..self.len]
    }
}

/// What a small page is on most systems.
pub(super) const SMALL: usize = 4096;

/// Slabs of memory cut into slots. What they hold is kept until it is [cleared](Shelf::clear): to bring it anew would take
/// longer than to decode what it is for.
///
/// Slots are of a size of which a huge page has room for few, and a part of one more; a slab of several is used nearly
/// to its end. It comes and goes page by page.
pub(super) struct Shelf {
    /// Bytes of a slot.
    size: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    slabs: Vec<Slab>,
    /// Slots that have memory and are not in use.
    free: usize,
    /// Whether somebody brings a page before it is needed.
    stocking: bool,
    pace: Pace,
}

/// Huge pages of a slab.
const PAGES: usize = 4;
/// Bytes of a slab.
const SLAB: usize = PAGES * HUGE;
/// Most slots of a slab.
const MOST_SLOTS: usize = u128::BITS as usize;

struct Slab {
    memory: Arc<Memory>,
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
}

/// How long the system took to bring a page. Huge ones come five times as fast as small ones; but in a virtual machine
/// that gives unused memory back to its host, they can take three times as long.
#[derive(Default)]
struct Pace {
    huge: Duration,
    small: Duration,
}

impl Pace {
    /// The kind that is faster, as far as is known.
    fn choice(&self) -> Kind {
        if self.huge <= self.small { Kind::Huge } else { Kind::Small }
    }

    /// A page of this kind took so long. The other one is believed to be a little better each time, to be tried again.
    fn took(&mut self, kind: Kind, time: Duration) {
        let (this, other) = match kind {
            Kind::Huge => (&mut self.huge, &mut self.small),
            Kind::Small => (&mut self.small, &mut self.huge),
        };
        *this = time;
        *other -= *other / 64;
    }
}

/// The address space of a slab.
struct Memory {
    map: MmapRaw,
    skip: usize,
}

impl Memory {
    fn new() -> Result<Self> {
        // Before and behind, wherever it comes to lie, stays unused.
        let map = MmapRaw::from(MmapMut::map_anon(SLAB + HUGE).about("memory")?);
        let skip = map.as_ptr().align_offset(HUGE);
        Ok(Self { map, skip })
    }

    /// Have the system bring a page now: at first use it would come little by little.
    fn bring(&self, page: usize, kind: Kind) {
        let start = self.skip + page * HUGE;
        let advice = if kind == Kind::Huge { Advice::HugePage } else { Advice::NoHugePage };
        if let Err(e) = self.map.advise_range(advice, start, HUGE) {
            log::debug!("{advice:?} was not taken: {e}");
        }
        if self.map.advise_range(Advice::PopulateWrite, start, HUGE).is_err() {
            // Linux before 5.14.
            for at in (start..start + HUGE).step_by(SMALL) {
                // SAFETY: within the map, and of no slot that is in use: those have all of their pages.
                unsafe { self.map.as_mut_ptr().add(at).write_volatile(0) };
            }
        }
    }

    /// Give a page back to the system.
    fn give_back(&self, page: usize) {
        // SAFETY: its bytes become zero, which is as good as any; no slot that is in use has some of them.
        let given = unsafe {
            self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, self.skip + page * HUGE, HUGE)
        };
        if let Err(e) = given {
            log::debug!("unused memory is kept: {e}");
        }
    }
}

impl Shelf {
    /// Bytes of memory that are taken at a time.
    pub(super) const GROWS_BY: u64 = HUGE as u64;

    /// With slots of so many bytes: multiples of [`SMALL`], of which a slab has 128 at most.
    pub(super) fn new(size: usize) -> Arc<Self> {
        debug_assert!(size.is_multiple_of(SMALL) && SLAB / size <= MOST_SLOTS && size <= HUGE);
        Arc::new(Self { size, state: Mutex::default() })
    }

    /// The bytes of a slot.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Slots of a slab.
    fn slots(&self) -> usize {
        SLAB / self.size
    }

    /// The pages of its slab that a slot has some of.
    fn pages_of(&self, slot: usize) -> RangeInclusive<usize> {
        slot * self.size / HUGE..=((slot + 1) * self.size - 1) / HUGE
    }

    /// A slot with any content.
    ///
    /// # Errors
    /// Io, where there is no memory.
    pub(super) fn slot(self: &Arc<Self>) -> Result<Slot> {
        let mut state = self.lock();
        while state.free == 0 {
            drop(state);
            self.grow()?;
            state = self.lock();
        }
        state.free -= 1;
        let slab = state.slabs.iter().position(|slab| slab.free() != 0).expect("free slots are counted");
        let taken = &mut state.slabs[slab];
        let number = taken.free().trailing_zeros() as usize;
        taken.used |= 1 << number;
        let memory = Arc::clone(&taken.memory);
        Ok(Slot { shelf: Arc::clone(self), memory, slab, number })
    }

    /// Whether all slots are in use.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().free == 0
    }

    /// How many pages are there.
    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        let there = |slab: &Slab| slab.pages.iter().filter(|page| **page == Presence::There).count();
        self.lock().slabs.iter().map(there).sum()
    }

    /// Whether a page should be brought before it is needed, by [`Shelf::stock`]; says so once until that was done.
    pub(super) fn runs_low(&self) -> bool {
        let mut state = self.lock();
        let low = !state.stocking && state.free <= HUGE / self.size / 2;
        state.stocking |= low;
        low
    }

    /// Bring a page that will be needed.
    pub(super) fn stock(&self) {
        if let Err(e) = self.grow() {
            log::debug!("no memory ahead: {e}");
        }
        self.lock().stocking = false;
    }

    fn grow(&self) -> Result<()> {
        let mut state = self.lock();
        let away = |slab: &Slab| slab.pages.iter().position(|page| *page == Presence::Away);
        let place = state.slabs.iter().enumerate().find_map(|(i, slab)| Some((i, away(slab)?)));
        let (slab, page) = match place {
            Some(place) => place,
            None => {
                let memory = Arc::new(Memory::new()?);
                state.slabs.push(Slab { memory, used: 0, there: 0, pages: [Presence::Away; PAGES] });
                (state.slabs.len() - 1, 0)
            }
        };
        state.slabs[slab].pages[page] = Presence::Moving;
        let memory = Arc::clone(&state.slabs[slab].memory);
        let kind = state.pace.choice();
        drop(state);
        let begun = Instant::now();
        memory.bring(page, kind);
        let time = begun.elapsed();
        let mut state = self.lock();
        state.pace.took(kind, time);
        state.moved(self, slab, page, Presence::There);
        Ok(())
    }

    /// Give back all pages of which no slot is in use.
    pub(super) fn clear(&self) {
        let mut given_back = Vec::new();
        let mut state = self.lock();
        for i in 0..state.slabs.len() {
            let slab = &state.slabs[i];
            let mut unused = slab.pages.map(|page| page == Presence::There);
            let used = (0..self.slots()).filter(|slot| slab.used >> slot & 1 == 1);
            used.flat_map(|slot| self.pages_of(slot)).for_each(|page| unused[page] = false);
            for page in (0..PAGES).filter(|&page| unused[page]) {
                given_back.push((Arc::clone(&state.slabs[i].memory), i, page));
                state.moved(self, i, page, Presence::Moving);
            }
        }
        drop(state);
        // Unlocked, for it takes a while.
        for (memory, slab, page) in given_back {
            memory.give_back(page);
            self.lock().moved(self, slab, page, Presence::Away);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn moved(&mut self, shelf: &Shelf, slab: usize, page: usize, to: Presence) {
        let slab = &mut self.slabs[slab];
        slab.pages[page] = to;
        self.free = self.free.checked_add_signed(slab.see(shelf)).expect("slots are counted");
    }
}

/// [`Shelf::size`] bytes of a [`Shelf`], given back when dropped.
pub(super) struct Slot {
    shelf: Arc<Shelf>,
    memory: Arc<Memory>,
    slab: usize,
    number: usize,
}

impl Slot {
    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the map has `SLAB` bytes from `skip` on, and all slots are in these.
        unsafe { self.memory.map.as_mut_ptr().add(self.memory.skip + self.number * self.shelf.size) }
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
        let mut state = self.shelf.lock();
        state.free += 1;
        state.slabs[self.slab].used &= !(1 << self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_aligned_and_writable_as_a_whole() {
        for (len, expected) in [(1, HUGE), (HUGE, HUGE), (HUGE + 1, 2 * HUGE)] {
            let mut pages = Pages::new(len).expect("memory");
            assert_eq!((pages.len(), pages.as_ptr().align_offset(HUGE)), (expected, 0));
            assert!(pages.iter().all(|&byte| byte == 0));
            pages.fill(7);
        }
    }

    const SIZE: usize = 65 * SMALL;

    #[test]
    fn no_two_slots_share_a_byte_and_unused_pages_are_given_back_when_cleared() {
        for size in [SIZE, SMALL * 17, HUGE] {
            let shelf = Shelf::new(size);
            let take = |n: usize| -> Vec<Slot> { (0..n).map(|_| shelf.slot().expect("memory")).collect() };
            let mut slots = take(3 * shelf.slots());
            for (i, slot) in slots.iter_mut().enumerate() {
                slot.fill(i as u8);
            }
            for (i, slot) in slots.iter().enumerate() {
                assert!(slot.len() == size && slot.iter().all(|&byte| byte == i as u8), "slot {i}");
            }
            assert_eq!(shelf.pages(), 3 * PAGES);
            // The last of each slab stays; what they leave is used again.
            slots.retain(|slot| slot.number == shelf.slots() - 1);
            slots.extend(take(3 * (shelf.slots() - 1)));
            assert_eq!(shelf.pages(), 3 * PAGES);
            slots.truncate(3);
            shelf.clear();
            assert_eq!((shelf.pages(), shelf.lock().free), (3, 3 * shelf.slots_of_last_page()));
            drop(slots);
            shelf.clear();
            assert_eq!((shelf.pages(), shelf.lock().free), (0, 0));
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
    fn the_faster_kind_is_taken_and_the_other_one_tried_again() {
        let mut pace = Pace::default();
        let [slow, fast] = [3, 1].map(Duration::from_millis);
        let mut huge = 0;
        for _ in 0..1000 {
            let kind = pace.choice();
            huge += u32::from(kind == Kind::Huge);
            pace.took(kind, if kind == Kind::Huge { slow } else { fast });
        }
        assert!((2..50).contains(&huge), "{huge}");
    }

    #[test]
    fn slots_are_taken_and_given_back_by_many_threads() {
        let shelf = Shelf::new(SIZE);
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let shelf = &shelf;
                scope.spawn(move || {
                    for round in 0..200 {
                        if round % 16 == 0 {
                            shelf.clear();
                        }
                        let mut slots: Vec<Slot> =
                            (0..1 + round % 11).map(|_| shelf.slot().expect("memory")).collect();
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
