//! Tests of the slab pool.

use super::*;

const SIZE: usize = 65 * PAGE;

fn pool(size: usize) -> Arc<SlabPool> {
    SlabPool::new(size, 9, &MemoryBudget::new(u64::MAX))
}

/// A slot; the pool grows if it has none.
fn slot(pool: &Arc<SlabPool>) -> Slot {
    std::iter::repeat_with(|| {
        pool.take().or_else(|| {
            pool.budget.reserve(pool.growth());
            pool.grow().expect("memory");
            pool.take()
        })
    })
    .flatten()
    .next()
    .expect("endless")
}

#[test]
fn slots_never_overlap_and_trimming_returns_unused_pages() {
    for size in [SIZE, PAGE * 17, HUGE_PAGE, 1 << 10, 16 << 10] {
        let pool = pool(size);
        let counted = || pool.budget.used() / pool.growth();
        let take = |n: usize| -> Vec<Slot> { (0..n).map(|_| slot(&pool)).collect() };
        let mut slots = take(3 * pool.slots());
        for (i, slot) in slots.iter_mut().enumerate() {
            slot.fill(i as u8);
        }
        for (i, slot) in slots.iter().enumerate() {
            assert!(slot.len() == size && slot.iter().all(|&byte| byte == i as u8), "slot {i}");
        }
        assert_eq!((pool.resident_pages(), counted()), (3 * PAGES, 3 * PAGES as u64));
        assert_eq!(pool.bytes_in_use(), pool.budget.used());
        // Keep the last slot of each slab and reuse the others.
        slots.retain(|slot| slot.number == pool.slots() - 1);
        slots.extend(take(3 * (pool.slots() - 1)));
        assert_eq!(pool.resident_pages(), 3 * PAGES);
        slots.truncate(3);
        assert!(pool.trim() && !pool.trim());
        assert_eq!((pool.resident_pages(), pool.lock().free), (3, 3 * pool.slots_of_last_page()));
        drop(slots);
        pool.trim();
        assert_eq!((pool.resident_pages(), pool.lock().free, counted()), (0, 0, 0));
        // Returned pages are populated again, lowest first.
        let slots = take(pool.slots());
        assert!(slots.iter().all(|slot| slot.slab == 0) && pool.resident_pages() == PAGES);
    }
}

impl SlabPool {
    /// Slots entirely in the last page of a slab, except for the last slot.
    fn slots_of_last_page(&self) -> usize {
        (0..self.slots() - 1).filter(|slot| *self.pages_of(*slot).start() == PAGES - 1).count()
    }
}

#[test]
fn many_threads_can_take_and_return_slots() {
    let pool = pool(SIZE);
    std::thread::scope(|scope| {
        for thread in 0..8u8 {
            let pool = &pool;
            scope.spawn(move || {
                for round in 0..200 {
                    if round % 16 == 0 {
                        pool.trim();
                    }
                    let mut slots: Vec<Slot> = (0..1 + round % 11).map(|_| slot(pool)).collect();
                    slots.iter_mut().for_each(|slot| slot[..64].fill(thread));
                    assert!(slots.iter().all(|slot| slot[..64] == [thread; 64]));
                }
            });
        }
    });
    let state = pool.lock();
    let free: u32 = state.slabs.iter().map(|slab| slab.free().count_ones()).sum();
    assert!(state.free == free as usize && state.slabs.iter().all(|slab| slab.in_use == 0));
}
