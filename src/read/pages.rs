//! Memory in huge pages where the system has them, for what is large and used again and again.
//!
//! A direct read needs its memory page by page: one of 1 MiB into pages of 4 KiB, each somewhere else, is 256 pieces for
//! the disk to fill, and into a huge page it is one. Memory that is used for the first time comes 512 pages at once.

#![allow(unsafe_code)]

use crate::error::{Context, Result};
use memmap2::{Advice, MmapMut, MmapRaw};
use std::{
    ops::{Deref, DerefMut},
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
        Self::of(Kind::Huge, len)
    }

    fn of(kind: Kind, len: usize) -> Result<Self> {
        let len = len.next_multiple_of(HUGE);
        // Before and behind, wherever it comes to lie, stays unused.
        let map = MmapMut::map_anon(len + HUGE).about("memory")?;
        let skip = map.as_ptr().align_offset(HUGE);
        let advice = if kind == Kind::Huge { Advice::HugePage } else { Advice::NoHugePage };
        if let Err(e) = map.advise_range(advice, skip, len) {
            log::debug!("{advice:?} was not taken: {e}");
        }
        Ok(Self { map, skip, len })
    }

    /// Have the system bring all of it now: at first use it would come page by page.
    fn bring(&mut self) {
        if self.map.advise_range(Advice::PopulateWrite, self.skip, self.len).is_err() {
            // Linux before 5.14.
            self.chunks_mut(SMALL).for_each(|page| page[0] = 0);
        }
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

/// Pages cut into slots. They are kept until they are [cleared](Shelf::clear): to bring them anew would take longer than to
/// decode what they hold.
pub(super) struct Shelf {
    /// Slots of a page.
    slots: u32,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: Vec<Page>,
    /// Slots that are not in use.
    free: usize,
    /// Whether somebody brings a page before it is needed.
    stocking: bool,
    pace: Pace,
}

/// A page, or the place of one.
#[derive(Default)]
struct Page {
    /// A bit for each slot that is not in use.
    free: u32,
    memory: Option<Arc<Memory>>,
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

struct Memory {
    map: MmapRaw,
    skip: usize,
}

impl Shelf {
    /// Bytes of memory that are taken at a time.
    pub(super) const GROWS_BY: u64 = HUGE as u64;

    /// With so many slots in each page, 32 at most.
    pub(super) fn new(slots: u32) -> Arc<Self> {
        Arc::new(Self { slots, state: Mutex::default() })
    }

    /// The bytes of a slot.
    pub(super) fn size(&self) -> usize {
        HUGE / self.slots as usize / SMALL * SMALL
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
        let free = |page: &Page| page.free != 0;
        let page = state.pages.iter().position(free).expect("free slots are counted");
        let taken = &mut state.pages[page];
        let number = taken.free.trailing_zeros() as usize;
        taken.free &= !(1 << number);
        let memory = taken.memory.clone().expect("what has a free slot has memory");
        Ok(Slot { shelf: Arc::clone(self), memory, page, number })
    }

    /// Whether all slots are in use.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().free == 0
    }

    /// How many pages there are.
    #[cfg(test)]
    pub(super) fn pages(&self) -> usize {
        self.lock().pages.iter().filter(|page| page.memory.is_some()).count()
    }

    /// Whether a page should be brought before it is needed, by [`Shelf::stock`]; says so once until that was done.
    pub(super) fn runs_low(&self) -> bool {
        let mut state = self.lock();
        let low = !state.stocking && state.free <= self.slots as usize / 2;
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
        let kind = self.lock().pace.choice();
        let begun = Instant::now();
        let mut new = Pages::of(kind, HUGE)?;
        new.bring();
        let time = begun.elapsed();
        let new = Page {
            free: u32::MAX >> (32 - self.slots),
            memory: Some(Arc::new(Memory { skip: new.skip, map: new.map.into() })),
        };
        let mut state = self.lock();
        state.pace.took(kind, time);
        state.free += self.slots as usize;
        match state.pages.iter_mut().find(|page| page.memory.is_none()) {
            Some(place) => *place = new,
            None => state.pages.push(new),
        }
        Ok(())
    }

    /// Give back all pages of which no slot is in use.
    pub(super) fn clear(&self) {
        let mut state = self.lock();
        let unused = state.pages.iter_mut().filter(|page| page.free.count_ones() == self.slots);
        let given_back: Vec<Page> = unused.map(std::mem::take).collect();
        state.free -= given_back.len() * self.slots as usize;
        drop(state);
        // Unlocked, for it takes a while.
        drop(given_back);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`Shelf::size`] bytes of a [`Shelf`], given back when dropped.
pub(super) struct Slot {
    shelf: Arc<Shelf>,
    memory: Arc<Memory>,
    page: usize,
    number: usize,
}

impl Slot {
    pub(super) fn shelf(&self) -> &Arc<Shelf> {
        &self.shelf
    }

    fn start(&self) -> *mut u8 {
        // SAFETY: the map has `HUGE` bytes from `skip` on, and all slots are in these.
        unsafe { self.memory.map.as_mut_ptr().add(self.memory.skip + self.number * self.shelf.size()) }
    }
}

impl Deref for Slot {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the slot's bytes of memory that lives as long as `self`, initialised by the system. They are of no other
        // slot: a bit of `free` is taken by one at a time, and set again when that is dropped.
        unsafe { slice::from_raw_parts(self.start(), self.shelf.size()) }
    }
}

impl DerefMut for Slot {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`.
        unsafe { slice::from_raw_parts_mut(self.start(), self.shelf.size()) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.shelf.lock();
        state.free += 1;
        state.pages[self.page].free |= 1 << self.number;
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

    const SLOTS: usize = 7;

    #[test]
    fn no_two_slots_share_a_byte_and_unused_pages_are_given_back_when_cleared() {
        let shelf = Shelf::new(SLOTS as u32);
        let mut slots: Vec<Slot> = (0..5 * SLOTS).map(|_| shelf.slot().expect("memory")).collect();
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.fill(i as u8);
        }
        for (i, slot) in slots.iter().enumerate() {
            assert!(slot.len() == shelf.size() && slot.iter().all(|&byte| byte == i as u8), "slot {i}");
        }
        let held = || shelf.pages();
        assert_eq!(held(), 5);
        // One of each page stays.
        let mut i = 0;
        slots.retain(|_| {
            i += 1;
            i % SLOTS == 1
        });
        assert_eq!(held(), 5);
        slots.extend((0..5 * (SLOTS - 1)).map(|_| shelf.slot().expect("memory")));
        assert_eq!(held(), 5);
        let kept = slots.pop();
        drop(slots);
        assert_eq!(held(), 5);
        shelf.clear();
        assert_eq!(held(), 1);
        drop(kept);
        shelf.clear();
        assert_eq!(held(), 0);
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
        let shelf = Shelf::new(SLOTS as u32);
        std::thread::scope(|scope| {
            for thread in 0..8u8 {
                let shelf = &shelf;
                scope.spawn(move || {
                    for round in 0..200 {
                        let mut slots: Vec<Slot> =
                            (0..1 + round % 11).map(|_| shelf.slot().expect("memory")).collect();
                        slots.iter_mut().for_each(|slot| slot[..64].fill(thread));
                        assert!(slots.iter().all(|slot| slot[..64] == [thread; 64]));
                    }
                });
            }
        });
        let pages = shelf.pages();
        assert_eq!(shelf.lock().free, SLOTS * pages);
    }
}
