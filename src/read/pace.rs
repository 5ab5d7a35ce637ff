//! Which kind of page the system brings faster.

use std::time::Duration;

/// Kinds of pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Huge,
    Small,
}

/// How long the system took to bring a page. Huge ones come five times as fast as small ones; but in a virtual machine
/// that gives unused memory back to its host, they can take three times as long.
#[derive(Default)]
pub(super) struct Pace {
    huge: Duration,
    small: Duration,
}

impl Pace {
    /// The kind that is faster, as far as is known.
    pub(super) fn choice(&self) -> Kind {
        if self.huge <= self.small { Kind::Huge } else { Kind::Small }
    }

    /// A page of this kind took so long. The other one is believed to be a little better each time, to be tried again.
    pub(super) fn took(&mut self, kind: Kind, time: Duration) {
        let (this, other) = match kind {
            Kind::Huge => (&mut self.huge, &mut self.small),
            Kind::Small => (&mut self.small, &mut self.huge),
        };
        *this = time;
        *other -= *other / 64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
