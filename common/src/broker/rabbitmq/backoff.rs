//! How long to wait before trying the broker again.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_millis(2_500);

/// After this many failures in a row the pause grows no more.
const MOST_FAILURES: u32 = 8;

/// The pause after `failures` failed tries in a row (1 or more): 0.1 s doubled with each failure up to 2.5 s, plus
/// a random part of up to as much again, so that a fleet does not come back all at once.
pub(super) fn pause(failures: u32) -> Duration {
    let pauses = ExponentialBuilder::default().with_min_delay(FIRST).with_max_delay(LONGEST).with_jitter();
    let tries = failures.clamp(1, MOST_FAILURES) as usize;
    pauses.without_max_times().build().nth(tries - 1).unwrap_or(LONGEST)
}

/// An even draw from 0 to 1.
pub(super) fn chance() -> f64 {
    // The low 53 bits of a version 4 UUID are all random, and as many as a float between 0 and 1 can hold.
    const BITS: u64 = (1 << 53) - 1;
    let (_, low) = uuid::Uuid::new_v4().as_u64_pair();
    (low & BITS) as f64 / BITS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_and_are_spread_over_as_much_again() {
        for (failures, least) in [(1, 100), (2, 200), (3, 400), (5, 1600), (6, 2500), (u32::MAX, 2500)] {
            let (least, pause) = (Duration::from_millis(least), pause(failures));
            assert!((least..=least * 2).contains(&pause), "{failures}: {pause:?}");
        }
        assert!((0.0..=1.0).contains(&chance()));
    }
}
