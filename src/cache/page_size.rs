//! Chooses between huge and small pages, whichever the system supplies faster.

use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PageSize {
    Huge,
    Small,
}

/// How long the system took to populate memory with each page size. Huge pages usually arrive five
/// times as fast as small ones, but they can take three times as long in a virtual machine that
/// returns free memory to its host.
#[derive(Default)]
pub(super) struct PopulateTimes {
    huge: Duration,
    small: Duration,
}

impl PopulateTimes {
    /// The faster page size, as far as it is known.
    pub(super) fn fastest(&self) -> PageSize {
        if self.huge <= self.small { PageSize::Huge } else { PageSize::Small }
    }

    /// Record a measurement. The estimate of the other size decays, so that it is retried now and
    /// then.
    pub(super) fn record(&mut self, size: PageSize, time: Duration) {
        let (this, other) = match size {
            PageSize::Huge => (&mut self.huge, &mut self.small),
            PageSize::Small => (&mut self.small, &mut self.huge),
        };
        *this = time;
        *other -= *other / 64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_faster_size_wins_and_the_slower_one_is_retried() {
        let mut times = PopulateTimes::default();
        let [slow, fast] = [3, 1].map(Duration::from_millis);
        let mut huge = 0;
        for _ in 0..1000 {
            let size = times.fastest();
            huge += u32::from(size == PageSize::Huge);
            times.record(size, if size == PageSize::Huge { slow } else { fast });
        }
        assert!((2..50).contains(&huge), "{huge}");
    }
}
