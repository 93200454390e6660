//! A destination's rates as one consumer may use them: the permits the collector has lent it (law 8).

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use windrow_common::clock;
use windrow_common::envelope::control::{Demand, Has, LEASE, Lease};
use windrow_common::ids::ProcessId;
use windrow_common::resilience::rate::{Permits, Rate};

use super::Outage;

/// A call that has to wait for longer than this for its permit waits in the broker, not in a slot (law 5).
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// It is put aside for at most so long at a time: another consumer may give up permits meanwhile.
const LONGEST_ASIDE: Duration = Duration::from_secs(60);

/// Demands are this far apart while calls wait for permits ...
const EAGER_INTERVAL: Duration = Duration::from_millis(100);

/// ... and this far otherwise.
const CALM_INTERVAL: Duration = Duration::from_secs(1);

/// The gate of a destination that has rates.
#[derive(Debug)]
pub(crate) struct RateGate {
    destination: String,
    /// In the job files of this process.
    rates: Vec<Rate>,
    state: Mutex<State>,
    /// Something a waiting call may be waiting for has changed.
    changed: Notify,
    waiting: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// The latest demand's number, and when it was sent.
    sequence: u64,
    demanded_at: Option<Instant>,
    /// Permits of the lease, and until when they may be used.
    lent: Vec<Share>,
    lent_until: Instant,
    /// Permits for the time without a lease.
    floor: Option<Permits>,
    /// Calls begun since the latest demand.
    begun: u32,
}

/// What is lent of one rate.
#[derive(Debug)]
struct Share {
    window: Duration,
    permits: Permits,
    /// See [`Lent::is_all`](windrow_common::envelope::control::Lent::is_all).
    is_all: bool,
}

/// The right to make one call now, until dropped, which is the call's end.
#[derive(Debug)]
pub(crate) struct RatePass {
    gate: Arc<RateGate>,
    /// Of the lease; else of the floor.
    is_lent: bool,
    is_used: bool,
}

impl RatePass {
    /// The call is not made after all.
    pub(crate) fn give_back(mut self) {
        self.is_used = false;
    }
}

impl Drop for RatePass {
    fn drop(&mut self) {
        let now = clock::now();
        let mut state = self.gate.state();
        let State { lent, floor, .. } = &mut *state;
        let lent = lent.iter_mut().map(|share| &mut share.permits).filter(|_| self.is_lent);
        let floor = floor.iter_mut().filter(|_| !self.is_lent);
        for permits in lent.chain(floor) {
            if self.is_used {
                permits.ended(now);
            } else {
                permits.unused(now);
            }
        }
        drop(state);
        self.gate.changed.notify_waiters();
    }
}

impl RateGate {
    /// The gate of a destination with these rates, at least one, and this floor.
    pub(crate) fn new(destination: &str, rates: Vec<Rate>, floor: Option<Rate>) -> Arc<Self> {
        let now = clock::now();
        let with_floor = |rate: Rate| {
            let mut permits = Permits::new(rate.window);
            permits.set_target(rate.calls, now);
            permits
        };
        let state = State {
            sequence: 0,
            demanded_at: None,
            lent: Vec::new(),
            lent_until: now,
            floor: floor.map(with_floor),
            begun: 0,
        };
        Arc::new(Self {
            destination: destination.to_owned(),
            rates,
            state: Mutex::new(state),
            changed: Notify::new(),
            waiting: AtomicU32::new(0),
        })
    }

    /// Waits for the right to make a call. An error when it will not come within 2 s: until when to wait elsewhere, at
    /// most [`LONGEST_ASIDE`].
    pub(crate) async fn pass(self: &Arc<Self>) -> Result<RatePass, Outage> {
        let _waiting = Waiting::enter(&self.waiting);
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = clock::now();
            let free_at = match self.state().take(now) {
                Taken::Permit { is_lent } => {
                    return Ok(RatePass { gate: Arc::clone(self), is_lent, is_used: true });
                }
                Taken::NotBefore(until) => until,
                Taken::Elsewhere(until) => return Err(Outage { until }),
                Taken::Unknown => now + LEASE,
            };
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(free_at.into()) => {}
            }
        }
    }

    /// What to ask the collector for, if it is time.
    pub(crate) fn demand(&self, process: &ProcessId, now: Instant) -> Option<Demand> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let mut state = self.state();
        let interval = if waiting > 0 { EAGER_INTERVAL } else { CALM_INTERVAL };
        let since = state.demanded_at.map(|at| now.duration_since(at));
        if since.is_some_and(|since| since < interval) {
            return None;
        }
        // As many calls as lately, twice over, in the time until the next lease, and those that wait.
        let begun = std::mem::take(&mut state.begun);
        let per_second = since.map_or(0.0, |since| f64::from(begun) / since.as_secs_f64().max(0.1));
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
        let lately = (2.0 * per_second) as u32;
        Some(self.ask(&mut state, process, waiting.saturating_add(lately).saturating_add(1), now))
    }

    /// The last demand of a process that makes no more calls: it gives up everything but what cools.
    pub(crate) fn farewell(&self, process: &ProcessId, now: Instant) -> Demand {
        let mut state = self.state();
        state.lent.iter_mut().for_each(|share| share.permits.set_target(0, now));
        let demand = self.ask(&mut state, process, 0, now);
        // Whatever the answer is, it comes too late.
        state.demanded_at = None;
        demand
    }

    fn ask(&self, state: &mut State, process: &ProcessId, need: u32, now: Instant) -> Demand {
        state.sequence += 1;
        state.demanded_at = Some(now);
        let has = |share: &Share| Has {
            window: share.window.as_secs(),
            held: share.permits.held(),
            busy: share.permits.busy(),
        };
        Demand {
            process: process.clone(),
            destination: self.destination.clone(),
            sequence: state.sequence,
            rates: self.rates.clone(),
            has: state.lent.iter().map(has).collect(),
            need,
        }
    }

    /// Takes in what the collector lends. An answer to an earlier demand than the latest is out of date.
    pub(crate) fn lend(&self, lease: &Lease, now: Instant) {
        let mut state = self.state();
        let (true, Some(demanded_at)) = (lease.sequence == state.sequence, state.demanded_at) else { return };
        // What cools in a window that the new lease does not speak of has no rate any more.
        state.lent.retain(|share| lease.lent.iter().any(|lent| lent.rate.window == share.window));
        for lent in &lease.lent {
            let window = lent.rate.window;
            let known = state.lent.iter().position(|share| share.window == window);
            let at = known.unwrap_or_else(|| {
                state.lent.push(Share { window, permits: Permits::new(window), is_all: false });
                state.lent.len() - 1
            });
            let share = &mut state.lent[at];
            share.permits.set_target(lent.permits, now);
            share.is_all = lent.is_all;
        }
        state.lent_until = demanded_at + LEASE;
        drop(state);
        self.changed.notify_waiters();
    }

    /// Each statement leaves the state whole, so a panic elsewhere spoils nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What came of asking for a permit.
#[derive(Debug, PartialEq, Eq)]
enum Taken {
    Permit {
        is_lent: bool,
    },
    /// To be waited for here.
    NotBefore(Instant),
    /// To be waited for in the broker.
    Elsewhere(Instant),
    Unknown,
}

impl State {
    fn take(&mut self, now: Instant) -> Taken {
        if now >= self.lent_until {
            return self.take_floor(now);
        }
        let mut free_at = (!self.lent.is_empty()).then_some(now);
        for Share { permits, is_all, .. } in &mut self.lent {
            // Of a window as short as the wait for the next lease what comes free here is all in any case.
            let free = permits.next_free(now).filter(|at| *at <= now + LONGEST_WAIT || *is_all);
            free_at = free_at.zip(free).map(|(latest, free)| latest.max(free));
        }
        match free_at {
            Some(at) if at > now + LONGEST_WAIT => Taken::Elsewhere(at.min(now + LONGEST_ASIDE)),
            Some(at) if at > now => Taken::NotBefore(at),
            Some(_) => {
                for share in &mut self.lent {
                    share.permits.take(now);
                }
                self.begun = self.begun.saturating_add(1);
                Taken::Permit { is_lent: true }
            }
            None => Taken::Unknown,
        }
    }

    /// Without a lease: the floor, once what was lent last has cooled a while.
    fn take_floor(&mut self, now: Instant) -> Taken {
        let from = self.lent_until + LEASE;
        let Some(permits) = &mut self.floor else { return Taken::Unknown };
        if now < from {
            return Taken::NotBefore(from.min(now + LONGEST_WAIT));
        }
        if permits.take(now) {
            return Taken::Permit { is_lent: false };
        }
        permits.next_free(now).map_or(Taken::Unknown, |at| Taken::NotBefore(at.min(now + LONGEST_WAIT)))
    }
}

/// Counts a waiting call while it lives.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn enter(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use windrow_common::envelope::control::Lent;

    use super::*;

    const TEN: Rate = Rate { window: Duration::from_secs(1), calls: 10 };
    const TWO: Rate = Rate { window: Duration::from_secs(1), calls: 2 };

    fn takes(gate: &RateGate, now: Instant) -> usize {
        let mut state = gate.state();
        std::iter::repeat_with(|| state.take(now))
            .take_while(|taken| matches!(taken, Taken::Permit { .. }))
            .count()
    }

    fn process() -> ProcessId {
        ProcessId::generate()
    }

    fn lease(sequence: u64, permits: u32) -> Lease {
        lease_of(sequence, vec![Lent { rate: TEN, permits, is_all: false }])
    }

    fn lease_of(sequence: u64, lent: Vec<Lent>) -> Lease {
        Lease { destination: "d".to_owned(), sequence, lent }
    }

    #[test]
    fn without_a_lease_no_call_is_made_and_after_one_none_either() {
        let now = Instant::now();
        let gate = RateGate::new("d", vec![TEN], None);
        assert_eq!(takes(&gate, now + 100 * LEASE), 0);
        let demand = gate.demand(&process(), now).unwrap();
        gate.lend(&lease(demand.sequence, 3), now);
        assert_eq!(takes(&gate, now + LEASE), 0, "the lease has run out");
        assert_eq!(takes(&gate, now), 3);
    }

    #[test]
    fn an_answer_to_an_older_demand_lends_nothing() {
        let now = Instant::now();
        let gate = RateGate::new("d", vec![TEN], None);
        let old = gate.demand(&process(), now).unwrap();
        gate.demand(&process(), now + CALM_INTERVAL).unwrap();
        gate.lend(&lease(old.sequence, 3), now + CALM_INTERVAL);
        assert_eq!(takes(&gate, now + CALM_INTERVAL), 0);
    }

    /// What a call has to wait for at a gate with a rate of a second and one of a day, whose only permits were used
    /// between a demand and its answer.
    fn taken_after_a_late_answer(is_all: bool, now: Instant) -> Taken {
        let a_day = Rate { window: Duration::from_secs(86_400), calls: 1_000_000 };
        let gate = RateGate::new("d", vec![TEN, a_day], None);
        let lent = |rate| Lent { rate, permits: 1, is_all };
        for answered in [now, now + CALM_INTERVAL] {
            let demand = gate.demand(&process(), answered).unwrap();
            if takes(&gate, answered) > 0 {
                gate.state().lent.iter_mut().for_each(|share| share.permits.ended(answered));
            }
            gate.lend(&lease_of(demand.sequence, vec![lent(TEN), lent(a_day)]), answered);
        }
        gate.state().take(now + CALM_INTERVAL)
    }

    #[test]
    fn permits_used_up_before_their_answer_came_are_no_used_up_rate() {
        let now = Instant::now();
        assert_eq!(taken_after_a_late_answer(false, now), Taken::Unknown);
    }

    #[test]
    fn a_call_of_a_rate_that_is_used_up_is_put_aside_for_a_minute_at_most() {
        let now = Instant::now();
        let until = now + CALM_INTERVAL + LONGEST_ASIDE;
        assert_eq!(taken_after_a_late_answer(true, now), Taken::Elsewhere(until));
    }

    #[test]
    fn a_floor_may_be_used_once_the_last_lease_has_been_over_for_as_long_as_it_lasted() {
        let now = Instant::now();
        let gate = RateGate::new("d", vec![TEN], Some(TWO));
        let demand = gate.demand(&process(), now).unwrap();
        gate.lend(&lease(demand.sequence, 0), now);
        assert_eq!(takes(&gate, now + LEASE), 0);
        assert_eq!(takes(&gate, now + 2 * LEASE), 2);
    }
}
