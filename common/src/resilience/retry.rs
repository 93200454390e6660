//! When to try again.

use std::time::Duration;

use crate::job::{RetrySpec, Schedule};

/// The pause before the next attempt of an item tried `attempts` times (1 or more), or None when it has
/// had all its attempts. `chance` is drawn evenly from 0 to 1.
///
/// Pauses that stay in the process are spread over their whole length ("full jitter": between 0 and the
/// interval). Longer ones are the interval plus 0 to 20 %, never less than the interval.
pub fn pause_before_next(retry: &RetrySpec, attempts: u32, chance: f64) -> Option<Duration> {
    if attempts > retry.count {
        return None;
    }
    let interval = interval(retry, attempts);
    Some(if interval < retry.in_place_below {
        interval.mul_f64(chance.clamp(0.0, 1.0))
    } else {
        interval + interval.mul_f64(0.2 * chance.clamp(0.0, 1.0))
    })
}

/// The interval after `attempts` attempts, before jitter: `interval` times 2^(n-1), n or 1, at most
/// `max_interval`.
fn interval(retry: &RetrySpec, attempts: u32) -> Duration {
    let factor = match retry.schedule {
        Schedule::Exponential => 2u32.saturating_pow(attempts.saturating_sub(1)),
        Schedule::Linear => attempts,
        Schedule::Fixed => 1,
    };
    retry.interval.saturating_mul(factor).min(retry.max_interval)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn retry(schedule: Schedule, interval: Duration) -> RetrySpec {
        RetrySpec {
            count: 4,
            interval,
            schedule,
            max_interval: Duration::from_secs(100),
            in_place_below: Duration::from_secs(2),
        }
    }

    #[test]
    fn pauses_follow_the_schedule_up_to_the_cap() {
        let seconds = |schedule| -> Vec<u64> {
            let retry = retry(schedule, Duration::from_secs(30));
            (1..).map_while(|n| pause_before_next(&retry, n, 0.0)).map(|pause| pause.as_secs()).collect()
        };
        assert_eq!(seconds(Schedule::Exponential), [30, 60, 100, 100]);
        assert_eq!(seconds(Schedule::Linear), [30, 60, 90, 100]);
        assert_eq!(seconds(Schedule::Fixed), [30, 30, 30, 30]);
    }

    #[test]
    fn long_pauses_are_never_shorter_than_the_interval_and_short_ones_are_spread() {
        let long = retry(Schedule::Fixed, Duration::from_secs(30));
        assert_eq!(pause_before_next(&long, 1, 1.0), Some(Duration::from_secs(36)));
        let short = retry(Schedule::Fixed, Duration::from_secs(1));
        assert_eq!(pause_before_next(&short, 1, 0.25), Some(Duration::from_millis(250)));
    }

    proptest! {
        /// Every schedule gives as many pauses as there are retries, none shorter than the one before it, each within its
        /// jitter: in the process over its whole length, in the broker up to a fifth more.
        #[test]
        fn every_schedule_keeps_its_bounds(
            schedule in prop::sample::select(vec![Schedule::Exponential, Schedule::Linear, Schedule::Fixed]),
            count in 0u32..40,
            interval_ms in 1u64..100_000,
            most_ms in 1u64..1_000_000,
            chance in -0.5f64..1.5,
        ) {
            let (interval, max_interval) = (Duration::from_millis(interval_ms), Duration::from_millis(most_ms));
            let spec = RetrySpec { count, max_interval, ..retry(schedule, interval) };
            let mut before = Duration::ZERO;
            for attempts in 1..=count {
                let whole = pause_before_next(&RetrySpec { in_place_below: Duration::ZERO, ..spec.clone() }, attempts, 0.0);
                let whole = whole.unwrap();
                prop_assert!(whole >= before && whole <= max_interval);
                prop_assert!(whole == max_interval || whole >= interval);
                before = whole;
                let pause = pause_before_next(&spec, attempts, chance).unwrap();
                if whole < spec.in_place_below {
                    prop_assert!(pause <= whole);
                } else {
                    prop_assert!(pause >= whole && pause <= whole.mul_f64(1.2));
                }
            }
            prop_assert_eq!(pause_before_next(&spec, count + 1, chance), None);
        }
    }
}
