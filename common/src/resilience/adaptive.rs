//! How many calls to make at once when the job says `concurrency = "auto"`: one more now and then while answers come as
//! fast as ever, far fewer as soon as calls are refused or answers slow down (additive increase, multiplicative
//! decrease). Time is passed in.

use std::time::{Duration, Instant};

/// Between what the limit moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Never fewer.
    pub least: u32,
    /// Never more.
    pub most: u32,
}

/// What a call showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Seen {
    /// An answer.
    Answer,
    /// A refusal by a limit, or a failure of the destination's own.
    Refusal,
}

/// The limit before anything is known.
const FIRST: u32 = 4;

/// Answers have slowed down when they take so many times what they took at their fastest.
const SLOWED: f64 = 2.0;

/// What is left of the limit after a refusal, and after answers have slowed down.
const AFTER_REFUSAL: f64 = 0.5;
const AFTER_SLOWING: f64 = 0.8;

/// After a decrease nothing changes until its effect is seen: for as long as a call took, and at least so long.
const CALM: Duration = Duration::from_millis(100);

/// The weight of one answer in the smoothed time of answers.
const WEIGHT: f64 = 0.1;

/// So often it is measured anew, with half as many calls, how fast answers can be: a service may have become slower for
/// good.
const REMEASURE: Duration = Duration::from_secs(10 * 60);

/// A limit that adapts.
#[derive(Debug)]
pub struct AdaptiveLimit {
    bounds: Bounds,
    limit: f64,
    /// The smoothed time of answers, in seconds; None before the first.
    usual: Option<f64>,
    /// The same at its fastest.
    fastest: f64,
    /// When that began to be measured.
    measured_at: Option<Instant>,
    calm_until: Option<Instant>,
}

impl AdaptiveLimit {
    /// One that knows nothing yet.
    pub fn new(bounds: Bounds) -> Self {
        let limit = f64::from(FIRST.clamp(bounds.least, bounds.most));
        Self { bounds, limit, usual: None, fastest: 0.0, measured_at: None, calm_until: None }
    }

    /// How many calls may be under way.
    pub fn limit(&self) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between two bounds that fit"
        )]
        let limit = self.limit as u32;
        limit.clamp(self.bounds.least, self.bounds.most)
    }

    /// Takes in a call that ended at `now` after `took`, while `under_way` calls were (this one included).
    pub fn note(&mut self, seen: Seen, took: Duration, under_way: u32, now: Instant) {
        let usual = (seen == Seen::Answer).then(|| self.smooth(took.as_secs_f64()));
        let measured_at = *self.measured_at.get_or_insert(now);
        if self.calm_until.is_some_and(|until| now < until) {
            return;
        }
        if now.saturating_duration_since(measured_at) >= REMEASURE {
            (self.usual, self.measured_at) = (None, Some(now));
            return self.decrease(AFTER_REFUSAL, took, now);
        }
        match usual {
            None => self.decrease(AFTER_REFUSAL, took, now),
            Some(usual) if usual > self.fastest * SLOWED => self.decrease(AFTER_SLOWING, took, now),
            // Where the limit is not used, nothing is learnt about a higher one. So it grows by one a round.
            Some(_) if f64::from(under_way) * 2.0 >= self.limit => {
                self.limit = (self.limit + 1.0 / self.limit).min(f64::from(self.bounds.most));
            }
            Some(_) => {}
        }
    }

    fn smooth(&mut self, took: f64) -> f64 {
        let usual = self.usual.map_or(took, |usual| usual + (took - usual) * WEIGHT);
        self.fastest = if self.usual.is_none() { usual } else { usual.min(self.fastest) };
        self.usual = Some(usual);
        usual
    }

    fn decrease(&mut self, factor: f64, took: Duration, now: Instant) {
        self.limit = (self.limit * factor).max(f64::from(self.bounds.least));
        self.calm_until = Some(now + took.max(CALM));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { least: 2, most: 100 };

    /// A service that does `at_once` calls at a time and, beyond that, lets them queue or refuses them.
    #[derive(Clone, Copy)]
    struct Service {
        at_once: u32,
        refuses: bool,
        takes: Duration,
    }

    const SERVICE: Service = Service { at_once: 30, refuses: false, takes: Duration::from_millis(100) };

    impl Service {
        /// Has `limit` calls made again and again, for so many rounds; returns the limits at the end of the last 50.
        fn drive(self, limit: &mut AdaptiveLimit, now: &mut Instant, rounds: u32) -> Vec<u32> {
            let mut seen = Vec::new();
            for round in 0..rounds {
                let calls = limit.limit();
                let slower = f64::from(calls.max(self.at_once)) / f64::from(self.at_once);
                let took = self.takes.mul_f64(if self.refuses { 1.0 } else { slower });
                *now += took;
                for call in 0..calls {
                    let refused = self.refuses && call >= self.at_once;
                    limit.note(if refused { Seen::Refusal } else { Seen::Answer }, took, calls, *now);
                }
                if round + 50 >= rounds {
                    seen.push(limit.limit());
                }
            }
            seen
        }
    }

    #[test]
    fn it_finds_what_a_service_can_do_at_once_and_follows_when_that_changes() {
        for refuses in [true, false] {
            let (mut limit, mut now) = (AdaptiveLimit::new(BOUNDS), Instant::now());
            for at_once in [30, 10, 40] {
                let seen = Service { at_once, refuses, ..SERVICE }.drive(&mut limit, &mut now, 1_500);
                let (least, most) = (seen.iter().min().unwrap(), seen.iter().max().unwrap());
                assert!(*least * 5 >= at_once * 2, "refuses {refuses}, at once {at_once}: {seen:?}");
                assert!(*most <= at_once * 5 / 2, "refuses {refuses}, at once {at_once}: {seen:?}");
            }
        }
    }

    #[test]
    fn a_service_that_has_become_slower_for_good_is_measured_anew() {
        let (mut limit, mut now) = (AdaptiveLimit::new(BOUNDS), Instant::now());
        SERVICE.drive(&mut limit, &mut now, 500);
        let slower = Service { takes: Duration::from_millis(300), ..SERVICE };
        let seen = slower.drive(&mut limit, &mut now, 100);
        assert_eq!(seen.last(), Some(&2), "it is taken for overloaded at first");
        let rounds = u32::try_from(REMEASURE.as_millis() / 300).unwrap() + 500;
        let seen = slower.drive(&mut limit, &mut now, rounds);
        assert!(*seen.iter().min().unwrap() >= 12, "{seen:?}");
    }

    #[test]
    fn it_stays_within_its_bounds() {
        let (mut limit, mut now) = (AdaptiveLimit::new(BOUNDS), Instant::now());
        let seen = Service { at_once: 1_000, ..SERVICE }.drive(&mut limit, &mut now, 1_000);
        assert!(seen.iter().all(|limit| *limit == 100), "{seen:?}");
        for _ in 0..100 {
            now += CALM;
            limit.note(Seen::Refusal, Duration::ZERO, 1, now);
        }
        assert_eq!(limit.limit(), 2);
    }

    #[test]
    fn calls_that_are_refused_together_halve_it_once() {
        let (mut limit, now) = (AdaptiveLimit::new(Bounds { least: 1, most: 8 }), Instant::now());
        for _ in 0..4 {
            limit.note(Seen::Refusal, Duration::from_millis(5), 4, now);
        }
        assert_eq!(limit.limit(), 2);
    }

    #[test]
    fn it_does_not_grow_where_it_is_not_used() {
        let (mut limit, now) = (AdaptiveLimit::new(BOUNDS), Instant::now());
        for _ in 0..1_000 {
            limit.note(Seen::Answer, Duration::from_millis(5), 1, now);
        }
        assert_eq!(limit.limit(), FIRST);
    }
}
