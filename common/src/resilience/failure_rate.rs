//! Which share of the calls of the last while failed, in memory that does not grow with them.

use std::time::{Duration, Instant};

/// Parts a window is kept in: a call is forgotten after nine to ten tenths of the window.
const BUCKETS: usize = 10;

/// `failure_rate` of a breaker, and the keys that go with it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FailureRate {
    /// `failure_rate`: this share (above 0, at most 1) of the calls of the window opens the breaker.
    pub share: f64,
    /// `window`: how long a call is remembered. Default PT1M.
    pub window: Duration,
    /// `minimum_calls`: with fewer calls in the window nothing is judged. Default 20.
    pub minimum_calls: u32,
    /// `slow_call`: a call that took longer counts as failed here. None: however long it took.
    pub slow_call: Option<Duration>,
}

impl FailureRate {
    /// The more careful of two.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        Self {
            share: self.share.min(other.share),
            window: self.window.max(other.window),
            minimum_calls: self.minimum_calls.min(other.minimum_calls),
            slow_call: self.slow_call.into_iter().chain(other.slow_call).min(),
        }
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    calls: u32,
    failed: u32,
}

/// The calls of the last while.
#[derive(Debug)]
pub(super) struct CallWindow {
    rate: FailureRate,
    /// When its first call ended.
    began: Option<Instant>,
    /// A ring: bucket number `n`, counted from `began`, is at `n` modulo its length.
    buckets: [Bucket; BUCKETS],
    newest: u64,
}

impl CallWindow {
    /// One without calls.
    pub(super) fn new(rate: FailureRate) -> Self {
        Self { rate, began: None, buckets: [Bucket::default(); BUCKETS], newest: 0 }
    }

    /// Takes in a call that ended at `now`. Whether the rate is reached with it.
    pub(super) fn is_reached_by(&mut self, failed: bool, took: Duration, now: Instant) -> bool {
        let is_slow = self.rate.slow_call.is_some_and(|most| took > most);
        self.forget_until(now);
        let bucket = &mut self.buckets[at(self.newest)];
        bucket.calls = bucket.calls.saturating_add(1);
        bucket.failed = bucket.failed.saturating_add(u32::from(failed || is_slow));
        let sum =
            |of: fn(&Bucket) -> u32| self.buckets.iter().map(|bucket| u64::from(of(bucket))).sum::<u64>();
        let (calls, failed) = (sum(|bucket| bucket.calls), sum(|bucket| bucket.failed));
        calls >= u64::from(self.rate.minimum_calls) && failed as f64 / calls as f64 >= self.rate.share
    }

    /// Empties the buckets that are used anew by `now`.
    fn forget_until(&mut self, now: Instant) {
        let began = *self.began.get_or_insert(now);
        let width = (self.rate.window.as_nanos() / BUCKETS as u128).max(1);
        let number = now.saturating_duration_since(began).as_nanos() / width;
        let number = u64::try_from(number).unwrap_or(u64::MAX);
        let passed = number.saturating_sub(self.newest).min(BUCKETS as u64);
        for back in 0..passed {
            self.buckets[at(number - back)] = Bucket::default();
        }
        self.newest = self.newest.max(number);
    }
}

fn at(number: u64) -> usize {
    usize::try_from(number % BUCKETS as u64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RATE: FailureRate = FailureRate {
        share: 0.5,
        window: Duration::from_secs(10),
        minimum_calls: 4,
        slow_call: Some(Duration::from_secs(2)),
    };

    const QUICK: Duration = Duration::from_millis(5);

    #[test]
    fn nothing_is_judged_before_there_are_enough_calls() {
        let now = Instant::now();
        let mut window = CallWindow::new(RATE);
        let reached: Vec<bool> =
            [true, true, false, false].map(|failed| window.is_reached_by(failed, QUICK, now)).to_vec();
        assert_eq!(reached, [false, false, false, true], "two of four are the half");
    }

    #[test]
    fn a_share_that_no_binary_number_is_exactly_is_reached_exactly() {
        let mut window = CallWindow::new(FailureRate { share: 0.1, minimum_calls: 30, ..RATE });
        let reached = (1..=30).map(|call| window.is_reached_by(call > 27, QUICK, Instant::now())).last();
        assert_eq!(reached, Some(true), "three of thirty are a tenth");
    }

    #[test]
    fn a_slow_call_counts_as_failed_and_one_just_in_time_does_not() {
        let now = Instant::now();
        for (took, expected) in [(Duration::from_millis(2_001), true), (Duration::from_secs(2), false)] {
            let mut window = CallWindow::new(RATE);
            let reached = (0..4).map(|_| window.is_reached_by(false, took, now)).last();
            assert_eq!(reached, Some(expected), "{took:?}");
        }
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let now = Instant::now();
        let mut window = CallWindow::new(RATE);
        for _ in 0..3 {
            assert!(!window.is_reached_by(true, QUICK, now));
        }
        assert!(!window.is_reached_by(true, QUICK, now + RATE.window), "one call alone is not judged");
    }

    #[test]
    fn of_two_the_more_careful_values_hold() {
        let other =
            FailureRate { share: 0.9, window: Duration::from_secs(60), minimum_calls: 9, slow_call: None };
        let both = FailureRate { window: Duration::from_secs(60), ..RATE };
        assert_eq!((RATE.stricter(other), other.stricter(RATE)), (both, both));
    }

    proptest! {
        /// The ring says what a list of all calls would say.
        #[test]
        fn the_ring_agrees_with_a_list_of_every_call(
            calls in prop::collection::vec((any::<bool>(), 0u64..4_000, 0u64..6_000), 1..300)
        ) {
            let began = Instant::now();
            let mut window = CallWindow::new(RATE);
            let mut all: Vec<(u64, bool)> = Vec::new();
            let mut at_ms = 0;
            for (failed, took_ms, pause_ms) in calls {
                at_ms += if all.is_empty() { 0 } else { pause_ms };
                let now = began + Duration::from_millis(at_ms);
                let reached = window.is_reached_by(failed, Duration::from_millis(took_ms), now);
                all.push((at_ms / 1_000, failed || took_ms > 2_000));
                let known = || all.iter().filter(|(second, _)| second + 10 > at_ms / 1_000);
                let (calls, failed) = (known().count(), known().filter(|(_, failed)| *failed).count());
                prop_assert_eq!(reached, calls >= 4 && failed * 2 >= calls, "{} of {}", failed, calls);
            }
        }
    }
}
