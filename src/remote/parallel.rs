//! How many requests run at once: more while the rate grows with them, half when a server asks for
//! fewer (additive increase, multiplicative decrease).

use std::time::{Duration, Instant};

/// The bounds.
const FEWEST: f64 = 4.0;
const MOST: f64 = 32.0;

/// How long the rate of one number is measured.
const WINDOW: Duration = Duration::from_millis(250);

/// More requests are tried for so many measurements, and again after so many at rest.
const PROBE: u32 = 2;
const REST: u32 = 20;

/// One burst of refusals counts once.
const PAUSE: Duration = Duration::from_secs(1);

/// The number of requests at once, and what was measured with it.
#[derive(Debug)]
pub struct Parallelism {
    limit: f64,
    /// The best rate so far, in bytes per second, and the limit that it was reached with.
    best: f64,
    settled: f64,
    /// Measurements since the limit was changed.
    quiet: u32,
    bytes: u64,
    since: Instant,
    /// Whether requests had to wait for others all the time.
    saturated: bool,
    halved: Option<Instant>,
}

impl Parallelism {
    /// Begin with the fewest.
    pub fn new(now: Instant) -> Self {
        Self {
            limit: FEWEST,
            best: 0.0,
            settled: FEWEST,
            quiet: 0,
            bytes: 0,
            since: now,
            saturated: true,
            halved: None,
        }
    }

    /// The number of requests that may run at once.
    pub fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Bytes have arrived; `saturated` tells whether further requests wait.
    pub fn arrived(&mut self, bytes: u64, saturated: bool, now: Instant) {
        self.bytes += bytes;
        self.saturated &= saturated;
        let elapsed = now.duration_since(self.since);
        if elapsed < WINDOW {
            return;
        }
        let rate = self.bytes as f64 / elapsed.as_secs_f64();
        if self.saturated {
            self.measured(rate);
        }
        (self.bytes, self.since, self.saturated) = (0, now, true);
    }

    fn measured(&mut self, rate: f64) {
        self.quiet += 1;
        if rate > self.best * 1.05 {
            (self.best, self.settled) = (rate, self.limit);
            self.probe();
        } else if self.limit > self.settled && self.quiet >= PROBE {
            (self.limit, self.quiet) = (self.settled, 0);
        } else if self.quiet >= REST {
            // Links change: what counts is the rate of today.
            self.best = rate;
            self.probe();
        }
    }

    fn probe(&mut self) {
        (self.limit, self.quiet) = ((self.limit + 2.0).min(MOST), 0);
    }

    /// A server asks for fewer requests.
    pub fn throttled(&mut self, now: Instant) {
        if self.halved.is_some_and(|at| now.duration_since(at) < PAUSE) {
            return;
        }
        self.halved = Some(now);
        self.limit = (self.limit / 2.0).max(FEWEST);
        (self.best, self.settled, self.quiet) = (f64::INFINITY, self.limit, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Run it against a link on which each request has `each` bytes per second up to `all`.
    fn settle(each: f64, all: f64) -> usize {
        let mut now = Instant::now();
        let mut parallel = Parallelism::new(now);
        for _ in 0..200 {
            let rate = (each * parallel.limit() as f64).min(all);
            now += WINDOW;
            parallel.arrived((rate * WINDOW.as_secs_f64()) as u64, true, now);
        }
        parallel.limit()
    }

    #[test]
    fn it_grows_as_long_as_that_helps() {
        assert_eq!(settle(80e6, f64::INFINITY), 32);
        let few = settle(80e6, 118e6);
        assert!((4..=6).contains(&few), "{few} requests for a link that two fill");
        let some = settle(80e6, 1.2e9);
        assert!((14..=18).contains(&some), "{some} requests for a link that fifteen fill");
    }

    #[test]
    fn it_halves_once_for_a_burst_of_refusals() {
        let mut now = Instant::now();
        let mut parallel = Parallelism::new(now);
        parallel.limit = 32.0;
        for _ in 0..20 {
            parallel.throttled(now);
        }
        assert_eq!(parallel.limit(), 16);
        parallel.arrived(1 << 20, true, now + WINDOW);
        assert_eq!(parallel.limit(), 16, "it does not grow at once");
        for _ in 0..9 {
            now += PAUSE;
            parallel.throttled(now);
        }
        assert_eq!(parallel.limit(), 4);
    }
}
