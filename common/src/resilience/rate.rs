//! How often a destination may be called, by the whole fleet, and what one process may use of that.
//!
//! A rate of 200 calls a second is 200 permits. A permit makes one call and is free again one window after that
//! call's *end*: so however long a call is on its way, no window of the destination's own clock sees more calls than
//! there are permits (a strict limit). The collector lends permits to processes; [`Permits`] are those of one process.

use std::collections::VecDeque;
use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Permits that cool are kept in so many groups at most, each of calls that ended at about the same time.
const GROUPS_PER_WINDOW: u32 = 500;

/// At most so many calls in any window. A window of no length bounds the calls in flight at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Rate {
    /// How long the window is; zero: calls in flight.
    pub window: Duration,
    /// How many calls, from 1 on.
    pub calls: u32,
}

/// What is wrong with the text of a rate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a rate: write calls and a unit of time, such as \"10/s\", \"600/m\", \"5000/h\" or \"100000/d\""
)]
pub struct RateError(String);

const UNITS: [(&str, u64); 4] = [("s", 1), ("m", 60), ("h", 3_600), ("d", 86_400)];

/// The most calls of a rate.
const MAX_CALLS: u32 = 10_000_000;

/// Behind the number of calls in flight.
const AT_ONCE: &str = " at once";

impl Rate {
    /// So many calls in flight.
    pub fn at_once(calls: u32) -> Self {
        Self { window: Duration::ZERO, calls }
    }
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let wrong = || RateError(text.chars().take(40).collect());
        let (calls, unit) = text.split_once('/').ok_or_else(wrong)?;
        let calls: u32 = calls.trim().parse().map_err(|_| wrong())?;
        let unit = UNITS.iter().find(|(name, _)| *name == unit.trim());
        let (_, seconds) = unit.filter(|_| (1..=MAX_CALLS).contains(&calls)).ok_or_else(wrong)?;
        Ok(Self { window: Duration::from_secs(*seconds), calls })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.window.is_zero() {
            return write!(f, "{}{AT_ONCE}", self.calls);
        }
        let unit = UNITS.iter().find(|(_, seconds)| *seconds == self.window.as_secs());
        write!(f, "{}/{}", self.calls, unit.map_or("s", |(name, _)| name))
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

impl TryFrom<String> for Rate {
    type Error = RateError;

    fn try_from(text: String) -> Result<Self, RateError> {
        match text.strip_suffix(AT_ONCE) {
            Some(calls) => {
                calls.parse().map(Self::at_once).map_err(|_| RateError(text.chars().take(40).collect()))
            }
            None => text.parse(),
        }
    }
}

/// Two rates for one window: one of them would mean nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} and {1} are rates for the same window; leave one")]
pub struct SameWindow(pub Rate, pub Rate);

/// Looks for two rates for one window.
///
/// # Errors
/// The first two there are.
pub fn check_windows(rates: &[Rate]) -> Result<(), SameWindow> {
    for (index, rate) in rates.iter().enumerate() {
        if let Some(other) = rates[..index].iter().find(|other| other.window == rate.window) {
            return Err(SameWindow(*other, *rate));
        }
    }
    Ok(())
}

/// The permits of one window that one process has.
#[derive(Debug)]
pub struct Permits {
    window: Duration,
    /// How many there are to be; more are given up as soon as they are free.
    target: u32,
    free: u32,
    in_use: u32,
    /// Used ones, in the order in which they are free again.
    cooling: VecDeque<Cooling>,
}

/// Permits whose calls ended at about the same time. They are free together, when the last of them is.
#[derive(Debug, Clone, Copy)]
struct Cooling {
    first: Instant,
    last: Instant,
    count: u32,
}

impl Permits {
    /// None, of a window.
    pub fn new(window: Duration) -> Self {
        Self { window, target: 0, free: 0, in_use: 0, cooling: VecDeque::new() }
    }

    /// From now on there are to be `target`: new ones are free at once; too many are given up when they are free.
    pub fn set_target(&mut self, target: u32, now: Instant) {
        self.target = target;
        self.settle(now);
        let missing = target.saturating_sub(self.held());
        self.free += missing;
    }

    /// Takes one for a call, if one is free.
    pub fn take(&mut self, now: Instant) -> bool {
        self.settle(now);
        if self.free == 0 {
            return false;
        }
        self.free -= 1;
        self.in_use += 1;
        true
    }

    /// The call of a permit ended at `now`.
    pub fn ended(&mut self, now: Instant) {
        if self.window.is_zero() {
            return self.unused(now);
        }
        self.in_use = self.in_use.saturating_sub(1);
        let free_at = now + self.window;
        let group = self.window / GROUPS_PER_WINDOW;
        match self.cooling.back_mut() {
            Some(latest) if free_at.saturating_duration_since(latest.first) < group => {
                latest.last = latest.last.max(free_at);
                latest.count += 1;
            }
            _ => self.cooling.push_back(Cooling { first: free_at, last: free_at, count: 1 }),
        }
    }

    /// The call of a permit was not made.
    pub fn unused(&mut self, now: Instant) {
        self.in_use = self.in_use.saturating_sub(1);
        self.free += 1;
        self.settle(now);
    }

    /// Whether one is free at `now`.
    pub fn has_free(&mut self, now: Instant) -> bool {
        self.settle(now);
        self.free > 0
    }

    /// When a permit is free: now, later, or None when no time is known (all are in calls, or there are none).
    pub fn next_free(&mut self, now: Instant) -> Option<Instant> {
        if self.has_free(now) { Some(now) } else { self.cooling.front().map(|cooling| cooling.last) }
    }

    /// Those in calls.
    pub fn in_use(&self) -> u32 {
        self.in_use
    }

    /// Those in calls or cooling: nobody else may have them.
    pub fn busy(&self) -> u32 {
        self.in_use + self.cooling.iter().map(|cooling| cooling.count).sum::<u32>()
    }

    /// All there are.
    pub fn held(&self) -> u32 {
        self.busy() + self.free
    }

    fn settle(&mut self, now: Instant) {
        while let Some(cooling) = self.cooling.front().filter(|cooling| cooling.last <= now) {
            self.free += cooling.count;
            self.cooling.pop_front();
        }
        let too_many = self.held().saturating_sub(self.target).min(self.free);
        self.free -= too_many;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn lent(count: u32, window: Duration, now: Instant) -> Permits {
        let mut permits = Permits::new(window);
        permits.set_target(count, now);
        permits
    }

    #[test]
    fn a_rate_is_calls_and_a_unit_and_is_written_as_it_is_read() {
        for text in ["1/s", "600/m", "5000/h", "100000/d"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!(" 10 / s ".parse::<Rate>().unwrap(), Rate { window: SECOND, calls: 10 });
        for wrong in ["", "10", "10/", "/s", "0/s", "-1/s", "1.5/s", "10/w", "10/s/s", "99999999/s"] {
            let error = wrong.parse::<Rate>().unwrap_err().to_string();
            assert!(error.contains("10/s"), "{wrong}: {error}");
        }
    }

    #[test]
    fn calls_at_once_are_a_window_of_no_length_that_no_job_file_can_write() {
        let limit = Rate::at_once(20);
        assert_eq!(serde_json::to_string(&limit).unwrap(), r#""20 at once""#);
        assert_eq!(serde_json::from_str::<Rate>(r#""20 at once""#).unwrap(), limit);
        assert!("20 at once".parse::<Rate>().is_err());
        assert!(serde_json::from_str::<Rate>(r#""x at once""#).is_err());
        let now = Instant::now();
        let mut permits = lent(1, limit.window, now);
        assert!(permits.take(now) && !permits.take(now));
        permits.ended(now);
        assert_eq!((permits.busy(), permits.take(now)), (0, true), "free as soon as its call has ended");
    }

    #[test]
    fn two_rates_for_one_window_are_named() {
        let rates: Vec<Rate> = ["10/s", "100/m", "5/s"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(check_windows(&rates[..2]), Ok(()));
        let error = check_windows(&rates).unwrap_err().to_string();
        assert_eq!(error, "10/s and 5/s are rates for the same window; leave one");
    }

    #[test]
    fn a_permit_is_free_one_window_after_its_call_ended() {
        let start = Instant::now();
        let mut permits = lent(1, SECOND, start);
        assert!(permits.take(start));
        assert!(!permits.take(start + 5 * SECOND), "the call is still under way");
        assert_eq!(permits.next_free(start + 5 * SECOND), None);
        permits.ended(start + 5 * SECOND);
        assert_eq!(permits.next_free(start + 5 * SECOND), Some(start + 6 * SECOND));
        assert!(!permits.take(start + Duration::from_millis(5_999)));
        assert!(permits.take(start + 6 * SECOND));
    }

    #[test]
    fn what_is_to_be_given_up_is_given_up_when_it_is_free_and_not_before() {
        let start = Instant::now();
        let mut permits = lent(3, SECOND, start);
        assert!(permits.take(start) && permits.take(start));
        permits.set_target(1, start);
        assert_eq!((permits.held(), permits.busy()), (2, 2), "the free one is gone at once");
        permits.ended(start);
        permits.ended(start);
        assert_eq!(permits.held(), 2, "cooling ones are nobody else's yet");
        assert!(permits.take(start + SECOND));
        assert_eq!(permits.held(), 1);
    }

    #[test]
    fn a_call_that_was_not_made_costs_nothing() {
        let start = Instant::now();
        let mut permits = lent(1, SECOND, start);
        assert!(permits.take(start));
        permits.unused(start);
        assert!(permits.take(start));
    }

    proptest! {
        /// Whatever calls are asked for and however long they take: no window sees more than the permits, seen from
        /// any moment of each call, and cooling permits take little memory.
        #[test]
        fn no_window_sees_more_calls_than_permits(
            count in 1..20u32,
            steps in prop::collection::vec((0..300u64, 0..1_500u64, 1..20u32), 1..300),
        ) {
            let start = Instant::now();
            let mut permits = lent(count, SECOND, start);
            let mut now = start;
            let (mut under_way, mut calls): (Vec<Instant>, Vec<(Instant, Instant)>) = (Vec::new(), Vec::new());
            let mut target = count;
            for (pause, takes, wanted) in steps {
                now += Duration::from_millis(pause);
                under_way.sort();
                while under_way.first().is_some_and(|end| *end <= now) {
                    permits.ended(under_way.remove(0).max(now));
                }
                if permits.take(now) {
                    let end = now + Duration::from_millis(takes);
                    under_way.push(end);
                    calls.push((now, end));
                }
                if wanted < target {
                    permits.set_target(wanted, now);
                    target = wanted;
                }
                prop_assert!(permits.held() <= count);
                prop_assert!(permits.cooling.len() <= GROUPS_PER_WINDOW as usize + 1);
            }
            // A call arrives at some moment between its begin and its end; a window that begins with one's begin may
            // see each call that is under way in it.
            for (first, _) in &calls {
                let in_window = calls.iter().filter(|(from, to)| *to >= *first && *from < *first + SECOND).count();
                prop_assert!(in_window <= count as usize, "{in_window} of {count}");
            }
        }
    }
}
