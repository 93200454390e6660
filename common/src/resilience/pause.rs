//! How long a destination is left alone once it has refused a call because of a limit. Time is passed in.

use std::time::{Duration, Instant};

/// No destination is left alone for longer than this on its own word. The item it refused may wait longer.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(60 * 60);

/// A refusal that does not say for how long: this, doubled each time until a call works ...
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// ... up to this.
const LONGEST_UNASKED: Duration = Duration::from_secs(10);

/// Shorter pauses are over before others have heard of them.
const WORTH_TELLING: Duration = Duration::from_secs(1);

/// Others are told of a pause this much longer than it is, and of no later end within that: the refusals of calls that
/// were under way together are told once.
const TOLERANCE: Duration = Duration::from_millis(100);

/// Whom a refused call concerns: `throttle` of a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ThrottleScope {
    /// `item`: the item alone.
    Item,
    /// `destination`: every call to the destination. The default.
    Destination,
}

/// Until when a destination is left alone.
#[derive(Debug, Default)]
pub struct Pause {
    until: Option<Instant>,
    told_until: Option<Instant>,
    /// The latest pause that the destination had not asked for.
    unasked: Duration,
}

impl Pause {
    /// None when calls may be made at `now`.
    pub fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }

    /// A call was refused at `now`; the destination `asked` to be left alone for so long, if it said. Returns for how
    /// long others are to make no call, if they are to be told.
    pub fn refused(&mut self, asked: Option<Duration>, now: Instant) -> Option<Duration> {
        let pause = match asked {
            Some(asked) => asked.min(LONGEST_PAUSE),
            // One of several calls under way; they count once.
            None if self.until(now).is_some() => return None,
            None => {
                self.unasked = (2 * self.unasked).clamp(FIRST_PAUSE, LONGEST_UNASKED);
                self.unasked
            }
        };
        self.until = self.until.max(Some(now + pause));
        if pause < WORTH_TELLING || self.told_until >= self.until {
            return None;
        }
        self.told_until = self.until.map(|until| until + TOLERANCE);
        Some(pause + TOLERANCE)
    }

    /// A call worked.
    pub fn works(&mut self) {
        self.unasked = Duration::ZERO;
    }

    /// Others were refused: no call for so long from `now` on.
    pub fn others_say(&mut self, pause: Duration, now: Instant) {
        self.until = self.until.max(Some(now + pause.min(LONGEST_PAUSE + TOLERANCE)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_pause_is_as_long_as_asked_for_and_never_ends_earlier_for_a_later_word() {
        let now = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(pause.until(now), None);
        assert_eq!(pause.refused(Some(3 * SECOND), now), Some(3 * SECOND + TOLERANCE));
        pause.refused(Some(SECOND), now);
        pause.refused(Some(Duration::ZERO), now);
        pause.refused(None, now);
        pause.others_say(2 * SECOND, now);
        assert_eq!(pause.until(now + 2 * SECOND), Some(now + 3 * SECOND));
        assert_eq!(pause.until(now + 3 * SECOND), None);
        pause.others_say(9 * SECOND, now);
        assert_eq!(pause.until(now), Some(now + 9 * SECOND));
    }

    #[test]
    fn a_pause_is_bounded() {
        let now = Instant::now();
        let mut pause = Pause::default();
        pause.refused(Some(24 * LONGEST_PAUSE), now);
        assert_eq!(pause.until(now), Some(now + LONGEST_PAUSE));
    }

    #[test]
    fn refusals_of_calls_under_way_together_are_told_once() {
        let now = Instant::now();
        let mut pause = Pause::default();
        let told = |pause: &mut Pause, after_ms| {
            pause.refused(Some(SECOND), now + Duration::from_millis(after_ms)).is_some()
        };
        assert_eq!(
            [0, 20, 90, 150, 180].map(|after| told(&mut pause, after)),
            [true, false, false, true, false]
        );
        assert_eq!(Pause::default().refused(Some(SECOND / 2), now), None, "too short to be told");
    }

    #[test]
    fn a_refusal_without_a_time_pauses_longer_each_time_until_a_call_works() {
        let mut now = Instant::now();
        let mut pause = Pause::default();
        let mut next = |pause: &mut Pause| {
            pause.refused(None, now);
            // Of calls under way.
            pause.refused(None, now);
            let until = pause.until(now).unwrap();
            let took = until - now;
            now = until;
            took.as_millis()
        };
        let pauses: Vec<u128> = (0..9).map(|_| next(&mut pause)).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1_600, 3_200, 6_400, 10_000, 10_000]);
        pause.works();
        assert_eq!(next(&mut pause), 100);
    }
}
