//! Memory for stored bytes while they are decoded: in huge pages where the system has them, and bounded.
//!
//! A direct read needs its memory page by page: one of 1 MiB into pages of 4 KiB, each somewhere else, is 256 pieces for
//! the disk to fill, and into a huge page it is one.

use super::{account::Account, pages::HUGE};
use crate::error::{Context, Result};
use memmap2::{Advice, MmapMut};
use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// Memory for stored bytes, to be used again.
#[derive(Default)]
pub struct Scratch(Option<Pages>);

impl Scratch {
    pub(super) fn room(&mut self, len: usize) -> Result<&mut [u8]> {
        if self.0.as_ref().is_none_or(|m| m.len() < len) {
            // The old one first: never both.
            self.0 = None;
            self.0 = Some(Pages::new(len)?);
        }
        Ok(self.0.as_mut().map_or(&mut [], |m| &mut m[..len]))
    }
}

/// Scratch memory of threads that work for one cache, for as long as they need it.
pub(super) struct Scratches {
    most: u64,
    account: Arc<Account>,
    kept: Mutex<Kept>,
    returned: Condvar,
}

#[derive(Default)]
struct Kept {
    free: Vec<Lent>,
    /// Bytes of all, those that are lent included.
    bytes: u64,
}

/// Some scratch memory, and its bytes.
struct Lent {
    scratch: Scratch,
    bytes: u64,
}

impl Scratches {
    /// Bytes that are not at the expense of chunks.
    const FREE: u64 = 16 << 20;

    /// Of a cache that may take so many bytes: a quarter of them, where that is more than is free.
    pub(super) fn new(capacity: u64, account: &Arc<Account>) -> Self {
        let most = Self::FREE.max(capacity / 4);
        Self {
            most,
            account: Arc::clone(account),
            kept: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Work with room for `need` bytes. Waits until others give some back, where there is too little; who has some must
    /// not ask for more.
    pub(super) fn with<T>(&self, need: usize, work: impl FnOnce(&mut Scratch) -> T) -> T {
        let mut lent =
            Returned { to: self, lent: Some(self.lend(need.next_multiple_of(HUGE) as u64)) };
        work(&mut lent.lent.as_mut().expect("returned at the end").scratch)
    }

    fn lend(&self, need: u64) -> Lent {
        let mut kept = self.lock();
        loop {
            if let Some(i) = kept.free.iter().rposition(|lent| lent.bytes >= need) {
                return kept.free.swap_remove(i);
            }
            // One is lent in any case.
            if kept.bytes == 0 || kept.bytes + need <= self.most {
                self.count(&mut kept, |bytes| bytes + need);
                return Lent { scratch: Scratch::default(), bytes: need };
            }
            if let Some(Lent { bytes, .. }) = kept.free.pop() {
                self.count(&mut kept, |all| all - bytes);
            } else {
                kept = self.returned.wait(kept).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    /// Let `change` change the bytes of all. What is beyond the free share is taken from the account.
    fn count(&self, kept: &mut Kept, change: impl FnOnce(u64) -> u64) {
        let before = kept.bytes.saturating_sub(Self::FREE);
        kept.bytes = change(kept.bytes);
        let now = kept.bytes.saturating_sub(Self::FREE);
        self.account.take(now.saturating_sub(before));
        self.account.give_back(before.saturating_sub(now));
    }

    /// Give back to the system what nobody uses.
    pub(super) fn clear(&self) {
        let mut kept = self.lock();
        let free = std::mem::take(&mut kept.free);
        let unused: u64 = free.iter().map(|lent| lent.bytes).sum();
        self.count(&mut kept, |bytes| bytes - unused);
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns what was lent, even if the work panics.
struct Returned<'s> {
    to: &'s Scratches,
    lent: Option<Lent>,
}

impl Drop for Returned<'_> {
    fn drop(&mut self) {
        self.to.lock().free.extend(self.lent.take());
        // Whoever waits may need more than this one has: all look.
        self.to.returned.notify_all();
    }
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

    #[test]
    fn no_more_is_lent_than_may_be_and_who_waits_gets_what_others_return() {
        let account = Account::new(0);
        let scratches = Scratches { most: 3 * HUGE as u64, ..Scratches::new(0, &account) };
        let bytes = || scratches.lock().bytes;
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let (scratches, bytes) = (&scratches, &bytes);
                scope.spawn(move || {
                    for round in 0..200 {
                        let need = if (thread + round) % 5 == 0 { 2 * HUGE } else { 1 + round };
                        scratches.with(need, |scratch| {
                            assert!(scratch.room(need).expect("memory").len() == need);
                            assert!(bytes() <= scratches.most);
                        });
                    }
                });
            }
        });
        // More than there is for all is lent to one alone.
        scratches.with(5 * HUGE, |_| assert_eq!(bytes(), 5 * HUGE as u64));
        scratches.clear();
        assert_eq!((bytes(), account.taken()), (0, 0));
    }

    #[test]
    fn what_is_beyond_the_free_share_is_at_the_expense_of_chunks() {
        let account = Account::new(1 << 30);
        let scratches = Scratches::new(1 << 30, &account);
        scratches.with(Scratches::FREE as usize, |_| {
            assert_eq!(account.taken(), 0);
            scratches.with(3, |_| assert_eq!(account.taken(), HUGE as u64));
        });
        scratches.clear();
        assert_eq!(account.taken(), 0);
    }
}
