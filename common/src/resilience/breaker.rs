//! When to stop calling a destination that fails, and how to find out that it works again.
//!
//! The textbook breaker: *closed*, calls flow; *open*, none is made; *half-open*, one call at a time probes.
//! Time is passed in, and what a call showed is said by the caller in four words ([`Sign`]).

use std::time::{Duration, Instant};

use super::failure_rate::CallWindow;
pub use super::failure_rate::FailureRate;

/// `breaker` of a destination.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BreakerSpec {
    /// `failures`: so many calls in a row that failed open it. Default 5, or `minimum_calls` where there is a
    /// `failure_rate`: a row is a coarse measure, since a service that fails one call in six at random has five
    /// failures in a row once in 9,300 calls.
    pub failures: u32,
    /// `failure_rate` and what goes with it: the share of failed calls that opens it as well. Off by default.
    pub failure_rate: Option<FailureRate>,
    /// `open`: how long no call is made after that. Default PT5M.
    pub open: Duration,
    /// `probe_interval`: how long no call is made after a probe that failed. Default PT2M.
    pub probe_interval: Duration,
}

impl Default for BreakerSpec {
    fn default() -> Self {
        Self {
            failures: 5,
            failure_rate: None,
            open: Duration::from_secs(5 * 60),
            probe_interval: Duration::from_secs(2 * 60),
        }
    }
}

impl BreakerSpec {
    /// The more careful of two, for a destination that two job files describe.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        Self {
            failures: self.failures.min(other.failures),
            failure_rate: match (self.failure_rate, other.failure_rate) {
                (Some(one), Some(other)) => Some(one.stricter(other)),
                (one, other) => one.or(other),
            },
            open: self.open.max(other.open),
            probe_interval: self.probe_interval.max(other.probe_interval),
        }
    }
}

/// What a call showed about its destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// It works: it gave an answer, be it that this item is wrong.
    Works,
    /// It does not: no connection, no answer in time, an error of its own.
    Fails,
    /// It refused the call because of a limit.
    Throttles,
    /// Nothing.
    Nothing,
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Calls flow.
    Closed,
    /// No call before this time; the first one after it is a probe.
    Open(Instant),
    /// One call at a time.
    HalfOpen,
}

/// The answer to whoever wants to make a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// Make it, and say how it went ([`Breaker::note`]) or that it was not made ([`Breaker::forget`]).
    Call(Pass),
    /// Not before this time.
    NotBefore(Instant),
    /// Not while another call probes.
    Probing,
}

/// The right to make one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pass {
    epoch: u64,
    began: Instant,
    /// Whether the call is a probe.
    pub is_probe: bool,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed {
        failures: u32,
    },
    /// `own`: until when, by what was seen here; None when others said that the destination is down.
    Open {
        until: Instant,
        own: Option<Instant>,
    },
    HalfOpen {
        probing: bool,
    },
}

/// A breaker.
#[derive(Debug)]
pub struct Breaker {
    spec: BreakerSpec,
    phase: Phase,
    /// The calls of this phase, where a rate is asked for.
    recent: Option<CallWindow>,
    /// Grows with each change of phase. A call tells nothing about a phase it did not begin in.
    epoch: u64,
}

impl Breaker {
    /// A closed one.
    pub fn new(spec: BreakerSpec) -> Self {
        let recent = spec.failure_rate.map(CallWindow::new);
        Self { spec, phase: Phase::Closed { failures: 0 }, recent, epoch: 0 }
    }

    /// Where it stands.
    pub fn state(&self) -> State {
        match self.phase {
            Phase::Closed { .. } => State::Closed,
            Phase::Open { until, .. } => State::Open(until),
            Phase::HalfOpen { .. } => State::HalfOpen,
        }
    }

    /// Whether a call may be made at `now`. An open breaker whose time is over becomes half-open by this.
    pub fn admit(&mut self, now: Instant) -> Admission {
        match self.phase {
            Phase::Closed { .. } => self.pass(false, now),
            Phase::Open { until, .. } if now < until => Admission::NotBefore(until),
            Phase::HalfOpen { probing: true } => Admission::Probing,
            Phase::Open { .. } => {
                self.enter(Phase::HalfOpen { probing: true });
                self.pass(true, now)
            }
            Phase::HalfOpen { probing: false } => {
                self.phase = Phase::HalfOpen { probing: true };
                self.pass(true, now)
            }
        }
    }

    /// Takes in what the call of `pass` showed at `now`.
    pub fn note(&mut self, pass: Pass, sign: Sign, now: Instant) {
        if pass.epoch != self.epoch {
            return;
        }
        match (self.phase, sign) {
            (Phase::Closed { failures }, Sign::Works | Sign::Fails) => {
                let failed = sign == Sign::Fails;
                let took = now.saturating_duration_since(pass.began);
                let failures = if failed { failures.saturating_add(1) } else { 0 };
                let recent = self.recent.as_mut();
                let too_often = recent.is_some_and(|recent| recent.is_reached_by(failed, took, now));
                if failures >= self.spec.failures || too_often {
                    self.open(now + self.spec.open);
                } else {
                    self.phase = Phase::Closed { failures };
                }
            }
            (Phase::HalfOpen { .. }, Sign::Works) => self.enter(Phase::Closed { failures: 0 }),
            // A throttled probe proves nothing, and another one at once would be throttled too.
            (Phase::HalfOpen { .. }, Sign::Fails | Sign::Throttles) => {
                self.open(now + self.spec.probe_interval);
            }
            (Phase::HalfOpen { .. }, Sign::Nothing) => self.phase = Phase::HalfOpen { probing: false },
            (Phase::Closed { .. }, Sign::Throttles | Sign::Nothing) | (Phase::Open { .. }, _) => {}
        }
    }

    /// Others found the destination down: no call before `until`. A probe under way comes to its end.
    pub fn others_say_down(&mut self, until: Instant) {
        match self.phase {
            Phase::Closed { .. } | Phase::HalfOpen { probing: false } => {
                self.enter(Phase::Open { until, own: None });
            }
            Phase::Open { until: known, own } => self.phase = Phase::Open { until: known.max(until), own },
            Phase::HalfOpen { probing: true } => {}
        }
    }

    /// Others found that the destination works again. What was seen here holds for its own time all the same: their word
    /// never closes this breaker earlier.
    pub fn others_say_up(&mut self, now: Instant) {
        match self.phase {
            Phase::Open { own: Some(own), .. } if own > now => {
                self.phase = Phase::Open { until: own, own: Some(own) };
            }
            Phase::Open { .. } | Phase::HalfOpen { probing: false } => {
                self.enter(Phase::Closed { failures: 0 });
            }
            Phase::Closed { .. } | Phase::HalfOpen { probing: true } => {}
        }
    }

    fn open(&mut self, until: Instant) {
        self.enter(Phase::Open { until, own: Some(until) });
    }

    /// The call of `pass` was not made, or was dropped before its end.
    pub fn forget(&mut self, pass: Pass, now: Instant) {
        self.note(pass, Sign::Nothing, now);
    }

    fn pass(&self, is_probe: bool, now: Instant) -> Admission {
        Admission::Call(Pass { epoch: self.epoch, began: now, is_probe })
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recent = self.spec.failure_rate.map(CallWindow::new);
        self.epoch += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SPEC: BreakerSpec = BreakerSpec {
        failures: 3,
        failure_rate: None,
        open: Duration::from_secs(300),
        probe_interval: Duration::from_secs(120),
    };

    /// As [`SPEC`], but by the rate alone.
    fn by_rate(slow_call: Option<Duration>) -> Breaker {
        let rate = FailureRate { share: 0.5, window: Duration::from_secs(60), minimum_calls: 20, slow_call };
        Breaker::new(BreakerSpec { failures: u32::MAX, failure_rate: Some(rate), ..SPEC })
    }

    fn call(breaker: &mut Breaker, now: Instant) -> Pass {
        match breaker.admit(now) {
            Admission::Call(pass) => pass,
            other => panic!("{other:?}"),
        }
    }

    fn see(breaker: &mut Breaker, sign: Sign, now: Instant) {
        let pass = call(breaker, now);
        breaker.note(pass, sign, now);
    }

    fn opened(now: Instant) -> Breaker {
        let mut breaker = Breaker::new(SPEC);
        for _ in 0..3 {
            see(&mut breaker, Sign::Fails, now);
        }
        assert_eq!(breaker.state(), State::Open(now + SPEC.open));
        breaker
    }

    #[test]
    fn only_failures_in_a_row_open_it() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SPEC);
        for sign in [Sign::Fails, Sign::Fails, Sign::Works, Sign::Fails, Sign::Fails] {
            see(&mut breaker, sign, now);
        }
        for _ in 0..100 {
            see(&mut breaker, Sign::Throttles, now);
            see(&mut breaker, Sign::Nothing, now);
        }
        assert_eq!(breaker.state(), State::Closed);
        see(&mut breaker, Sign::Fails, now);
        assert_eq!(breaker.state(), State::Open(now + SPEC.open));
    }

    #[test]
    fn one_probe_at_a_time_and_its_success_closes() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let early = now + SPEC.open.saturating_sub(Duration::from_nanos(1));
        assert_eq!(breaker.admit(early), Admission::NotBefore(now + SPEC.open));
        let later = now + SPEC.open;
        let probe = call(&mut breaker, later);
        assert!(probe.is_probe);
        assert_eq!(breaker.admit(later), Admission::Probing);
        breaker.note(probe, Sign::Works, later);
        assert_eq!(breaker.state(), State::Closed);
        assert!(!call(&mut breaker, later).is_probe);
    }

    #[test]
    fn the_word_of_others_opens_and_closes_what_they_opened() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SPEC);
        let before = call(&mut breaker, now);
        breaker.others_say_down(now + SPEC.open);
        assert_eq!(breaker.admit(now), Admission::NotBefore(now + SPEC.open));
        breaker.note(before, Sign::Works, now);
        assert_eq!(breaker.state(), State::Open(now + SPEC.open), "a call from before shows nothing of it");
        breaker.others_say_up(now);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn the_word_of_others_never_closes_earlier_what_was_opened_here_but_may_keep_it_open() {
        let now = Instant::now();
        let mut breaker = opened(now);
        breaker.others_say_up(now);
        assert_eq!(breaker.state(), State::Open(now + SPEC.open));
        let longer = now + 2 * SPEC.open;
        breaker.others_say_down(longer);
        assert_eq!(breaker.state(), State::Open(longer));
        breaker.others_say_up(now + SPEC.open / 2);
        assert_eq!(
            breaker.state(),
            State::Open(now + SPEC.open),
            "what was seen here holds for its own time"
        );
        breaker.others_say_up(now + SPEC.open);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn a_probe_under_way_comes_to_its_end_whatever_others_say() {
        let now = Instant::now();
        let mut breaker = opened(now);
        let probe = call(&mut breaker, now + SPEC.open);
        breaker.others_say_down(now + 3 * SPEC.open);
        breaker.others_say_up(now + SPEC.open);
        assert_eq!(breaker.admit(now + SPEC.open), Admission::Probing);
        breaker.note(probe, Sign::Works, now + SPEC.open);
        assert_eq!(breaker.state(), State::Closed);
    }

    #[test]
    fn a_failed_or_throttled_probe_opens_again_and_a_dropped_one_lets_the_next_probe() {
        for sign in [Sign::Fails, Sign::Throttles] {
            let now = Instant::now();
            let mut breaker = opened(now);
            let later = now + SPEC.open;
            let dropped = call(&mut breaker, later);
            breaker.forget(dropped, later);
            see(&mut breaker, sign, later);
            assert_eq!(breaker.state(), State::Open(later + SPEC.probe_interval));
        }
    }

    #[test]
    fn a_call_tells_nothing_about_a_phase_it_did_not_begin_in() {
        let now = Instant::now();
        let mut breaker = Breaker::new(SPEC);
        let slow = call(&mut breaker, now);
        for _ in 0..3 {
            see(&mut breaker, Sign::Fails, now);
        }
        breaker.note(slow, Sign::Works, now);
        assert_eq!(breaker.state(), State::Open(now + SPEC.open));
    }

    #[test]
    fn one_failure_in_six_leaves_a_rate_of_a_half_closed_and_every_second_one_opens_it() {
        let began = Instant::now();
        for (one_in, expected) in [(6, State::Closed), (2, State::Open(began + SPEC.open))] {
            let mut breaker = by_rate(None);
            for call in 0..20 {
                see(&mut breaker, Sign::Throttles, began);
                see(&mut breaker, if call % one_in == 0 { Sign::Fails } else { Sign::Works }, began);
            }
            assert_eq!(breaker.state(), expected, "one in {one_in}");
        }
    }

    #[test]
    fn slow_calls_open_it_and_the_calls_before_an_outage_are_not_held_against_it_after() {
        let mut now = Instant::now();
        let mut breaker = by_rate(Some(Duration::from_secs(2)));
        let mut slow = |breaker: &mut Breaker| {
            let pass = call(breaker, now);
            now += Duration::from_millis(2_500);
            breaker.note(pass, Sign::Works, now);
            now
        };
        for _ in 0..19 {
            slow(&mut breaker);
        }
        assert_eq!(breaker.state(), State::Closed, "too few calls to judge");
        let opened_at = slow(&mut breaker);
        assert_eq!(breaker.state(), State::Open(opened_at + SPEC.open));
        let later = opened_at + SPEC.open;
        see(&mut breaker, Sign::Works, later);
        see(&mut breaker, Sign::Fails, later);
        assert_eq!(breaker.state(), State::Closed);
    }

    fn sign() -> impl Strategy<Value = Sign> {
        prop_oneof![Just(Sign::Works), Just(Sign::Fails), Just(Sign::Throttles), Just(Sign::Nothing)]
    }

    proptest! {
        /// Whatever calls show and however they overlap: an open breaker admits nothing before its time, at most one
        /// probe is under way, it opens from closed only by so many failures in a row, and it always goes on.
        #[test]
        fn whatever_calls_show_its_rules_hold(
            steps in proptest::collection::vec((any::<bool>(), any::<prop::sample::Index>(), sign(), 0u64..200), 1..200)
        ) {
            let mut now = Instant::now();
            let mut breaker = Breaker::new(SPEC);
            let mut under_way: Vec<Pass> = Vec::new();
            let mut since_success = 0;
            for (begin, which, sign, seconds) in steps {
                now += Duration::from_secs(seconds);
                let before = breaker.state();
                if begin || under_way.is_empty() {
                    match breaker.admit(now) {
                        Admission::Call(pass) => {
                            prop_assert!(!matches!(before, State::Open(until) if now < until));
                            prop_assert_eq!(pass.is_probe, before != State::Closed);
                            under_way.push(pass);
                        }
                        Admission::NotBefore(until) => prop_assert!(now < until && before == State::Open(until)),
                        Admission::Probing => prop_assert!(before == State::HalfOpen),
                    }
                } else {
                    let pass = under_way.swap_remove(which.index(under_way.len()));
                    let is_current = pass.epoch == breaker.epoch;
                    breaker.note(pass, sign, now);
                    if is_current && !pass.is_probe {
                        since_success = if sign == Sign::Works { 0 } else { since_success + u32::from(sign == Sign::Fails) };
                    }
                    if let (State::Closed, State::Open(_)) = (before, breaker.state()) {
                        prop_assert_eq!(since_success, SPEC.failures);
                    }
                }
                if breaker.state() != State::Closed {
                    since_success = 0;
                }
                let probes = under_way.iter().filter(|pass| pass.is_probe && pass.epoch == breaker.epoch).count();
                prop_assert!(probes <= 1);
            }
            now += SPEC.open;
            for pass in under_way {
                breaker.forget(pass, now);
            }
            prop_assert!(matches!(breaker.admit(now), Admission::Call(_)), "it always goes on");
        }
    }
}
