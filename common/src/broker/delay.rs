//! Delay levels: how long a message can be put aside in the broker.

use std::time::Duration;

/// The levels, in seconds. A message put aside waits at the lowest level at or above its wait; what waits more
/// exactly, or longer, does so in steps ([`step`]).
pub const LEVELS: [u64; 20] =
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];

/// The level for a wait: the lowest at or above `wanted`, the highest when there is none.
pub fn level(wanted: Duration) -> Duration {
    let seconds = LEVELS.into_iter().find(|level| Duration::from_secs(*level) >= wanted);
    Duration::from_secs(seconds.unwrap_or(LEVELS[LEVELS.len() - 1]))
}

/// One step of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// The level to wait at.
    pub level: Duration,
    /// Whether nothing remains to be waited for after it. Otherwise the message carries a `not_before`, comes back
    /// before it and takes the next step.
    pub is_last: bool,
}

/// The first step of a wait: the level above where that is at most a tenth (or a second) too long, else the one
/// below. So the steps of a wait are few, and add up to no less than it and at most a tenth (or a second) more.
pub fn step(wanted: Duration) -> Step {
    let above = level(wanted);
    let slack = (wanted / 10).max(Duration::from_secs(1));
    let below = LEVELS.into_iter().rev().map(Duration::from_secs).find(|level| *level <= wanted);
    match below {
        Some(below) if above < wanted || above > wanted + slack => {
            Step { level: below, is_last: below == wanted }
        }
        _ => Step { level: above, is_last: true },
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_level_is_the_lowest_that_is_no_shorter_and_a_step_is_a_level(wanted_ms in 0u64..3_000_000) {
            let wanted = Duration::from_millis(wanted_ms);
            let lowest = LEVELS.map(Duration::from_secs).into_iter().find(|level| *level >= wanted);
            prop_assert_eq!(level(wanted), lowest.unwrap_or(Duration::from_secs(1_024)));
            let step = step(wanted);
            prop_assert!(LEVELS.contains(&step.level.as_secs()));
            prop_assert_eq!(step.is_last, step.level >= wanted);
        }
    }

    #[test]
    fn the_steps_of_a_wait_are_few_and_at_most_a_tenth_or_a_second_too_long() {
        for wanted in
            (0..4_000).map(|tenths| Duration::from_millis(tenths * 100)).chain([Duration::from_secs(9_999)])
        {
            let (mut waited, mut steps) = (Duration::ZERO, 0);
            loop {
                let step = step(wanted.saturating_sub(waited));
                waited += step.level;
                steps += 1;
                if step.is_last {
                    break;
                }
                assert!(waited < wanted, "{wanted:?} has come to its end unsaid");
            }
            let most = wanted + (wanted / 10).max(Duration::from_secs(1));
            assert!((wanted..=most).contains(&waited), "{wanted:?} becomes {waited:?}");
            assert!(steps <= 5 + wanted.as_secs() / 1_024, "{wanted:?} takes {steps} steps");
        }
    }

    #[test]
    fn five_minutes_are_no_more_than_304_seconds() {
        let seconds = |wanted| {
            let step = step(Duration::from_secs(wanted));
            (step.level.as_secs(), step.is_last)
        };
        assert_eq!([seconds(300), seconds(44), seconds(120)], [(256, false), (48, true), (128, true)]);
    }

    #[test]
    fn a_wait_is_rounded_up_to_a_level_and_never_down() {
        for (wanted, expected) in [(0, 1), (1, 1), (5, 6), (30, 32), (1024, 1024), (5000, 1024)] {
            assert_eq!(level(Duration::from_secs(wanted)), Duration::from_secs(expected));
        }
        assert_eq!(level(Duration::from_millis(2001)), Duration::from_secs(3));
    }
}
