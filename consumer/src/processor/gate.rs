//! A limit of a destination as one consumer may use it: the permits the collector has lent it (law 8). One gate is for
//! calls in flight, another for rates.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use windrow_common::clock;
use windrow_common::envelope::control::{Demand, Has, LEASE, Lease, Scope};
use windrow_common::ids::ProcessId;
use windrow_common::resilience::rate::{Permits, Rate};

use super::Outage;

/// A call that has to wait for longer than this for its permit waits in the broker, not in a slot (law 5).
pub(super) const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// It is put aside for at most so long at a time: another consumer may give up permits meanwhile.
const LONGEST_ASIDE: Duration = Duration::from_secs(60);

/// Demands are this far apart while calls wait for permits ...
const EAGER_INTERVAL: Duration = Duration::from_millis(100);

/// ... or this process has given some up, and this far otherwise ...
const CALM_INTERVAL: Duration = Duration::from_secs(1);

/// ... or this far for connections, which are free to be given up at any time.
const CONNECTIONS_INTERVAL: Duration = Duration::from_millis(500);

/// Without a collector a rate's floor may be used once none has been heard of for this long beyond the last lease ...
const RATE_FLOOR_AFTER: Duration = LEASE;

/// ... and each consumer keeps `max_connections` by itself after this long: a collector that died is replaced by then.
const CONNECTIONS_FLOOR_AFTER: Duration = Duration::from_secs(10);

/// The gate of one limit of a destination.
#[derive(Debug)]
pub(crate) struct LimitGate {
    destination: String,
    scope: Scope,
    /// In the job files of this process.
    rates: Vec<Rate>,
    state: Mutex<State>,
    /// Whose turn it is to wait for a permit: first come, first served.
    turn: tokio::sync::Mutex<()>,
    /// Something a waiting call may be waiting for has changed.
    changed: Notify,
    waiting: AtomicU32,
}

#[derive(Debug)]
struct State {
    /// The latest demand's number, and when it was sent.
    sequence: u64,
    demanded_at: Option<Instant>,
    /// Permits were given up: others wait for the collector to hear of it.
    has_given_up: bool,
    /// Permits of the lease, and until when they may be used.
    lent: Vec<Share>,
    lent_until: Instant,
    /// Permits for the time without a collector.
    floor: Option<Permits>,
    floor_after: Duration,
    /// When a collector was last heard of, or looked for; None while this process is in no fleet.
    heard_at: Option<Instant>,
    /// Calls begun since the latest demand.
    begun: u32,
    /// The most calls in flight since then, and between the demands before it.
    peak: u32,
    earlier_peaks: [u32; 2],
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
pub(crate) struct LimitPass {
    gate: Arc<LimitGate>,
    /// Of the lease; else of the floor.
    is_lent: bool,
    is_used: bool,
}

impl LimitPass {
    /// The call is not made after all.
    pub(crate) fn give_back(mut self) {
        self.is_used = false;
    }
}

impl Drop for LimitPass {
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

impl LimitGate {
    /// The gate of a destination's rates, at least one, with this floor.
    pub(crate) fn of_rates(destination: &str, rates: Vec<Rate>, floor: Option<Rate>) -> Arc<Self> {
        Self::new(destination, Scope::Rates, rates, floor, RATE_FLOOR_AFTER)
    }

    /// The gate of so many calls in flight to a destination, which this process keeps by itself without a collector.
    pub(crate) fn of_connections(destination: &str, most: u32) -> Arc<Self> {
        let limit = Rate::at_once(most);
        Self::new(destination, Scope::Connections, vec![limit], Some(limit), CONNECTIONS_FLOOR_AFTER)
    }

    fn new(
        destination: &str,
        scope: Scope,
        rates: Vec<Rate>,
        floor: Option<Rate>,
        floor_after: Duration,
    ) -> Arc<Self> {
        let now = clock::now();
        let with_floor = |rate: Rate| {
            let mut permits = Permits::new(rate.window);
            permits.set_target(rate.calls, now);
            permits
        };
        let state = State {
            sequence: 0,
            demanded_at: None,
            has_given_up: false,
            lent: Vec::new(),
            lent_until: now,
            floor: floor.map(with_floor),
            floor_after,
            heard_at: None,
            begun: 0,
            peak: 0,
            earlier_peaks: [0; 2],
        };
        Arc::new(Self {
            destination: destination.to_owned(),
            scope,
            rates,
            state: Mutex::new(state),
            turn: tokio::sync::Mutex::new(()),
            changed: Notify::new(),
            waiting: AtomicU32::new(0),
        })
    }

    /// Waits for the right to make a call. An error when it will not come within 2 s: until when to wait elsewhere, at
    /// most [`LONGEST_ASIDE`].
    pub(crate) async fn pass(self: &Arc<Self>) -> Result<LimitPass, Outage> {
        let _waiting = Waiting::enter(&self.waiting);
        let _turn = self.turn.lock().await;
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let now = clock::now();
            let free_at = match self.state().take(now) {
                Taken::Permit { is_lent } => {
                    return Ok(LimitPass { gate: Arc::clone(self), is_lent, is_used: true });
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

    /// What its permits are for.
    pub(crate) fn scope(&self) -> &Scope {
        &self.scope
    }

    /// There is a collector at that time, or one is looked for from then on: the floor is for when there is none. None:
    /// nobody lends permits of this gate, so the floor may be used at once.
    pub(crate) fn hear_collector(&self, at: Option<Instant>) {
        self.state().heard_at = at;
    }

    /// What to ask the collector for, if it is time.
    pub(crate) fn demand(&self, process: &ProcessId, now: Instant) -> Option<Demand> {
        let waiting = self.waiting.load(Ordering::Relaxed);
        let mut state = self.state();
        let interval = match self.scope {
            _ if waiting > 0 || state.has_given_up => EAGER_INTERVAL,
            Scope::Connections => CONNECTIONS_INTERVAL,
            Scope::Rates => CALM_INTERVAL,
        };
        let since = state.demanded_at.map(|at| now.duration_since(at));
        if since.is_some_and(|since| since < interval) {
            return None;
        }
        let need = match self.scope {
            Scope::Connections => connections_needed(&mut state, waiting, now)?,
            Scope::Rates => calls_needed(&mut state, waiting, since),
        };
        Some(self.ask(&mut state, process, need, now))
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
        if now >= state.lent_until {
            // By now they may be lent to others.
            state.lent.iter_mut().for_each(|share| share.permits.set_target(0, now));
        }
        state.sequence += 1;
        state.demanded_at = Some(now);
        state.has_given_up = false;
        let has = |share: &Share| Has {
            window: share.window.as_secs(),
            held: share.permits.held(),
            busy: share.permits.busy(),
        };
        Demand {
            process: process.clone(),
            destination: self.destination.clone(),
            scope: self.scope.clone(),
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
        let mut has_given_up = false;
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
            let held = share.permits.held();
            share.permits.set_target(lent.permits, now);
            share.is_all = lent.is_all;
            has_given_up |= share.permits.held() < held;
        }
        state.has_given_up = has_given_up;
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
                self.peak = self.peak.max(self.lent.first().map_or(0, |share| share.permits.in_use()));
                Taken::Permit { is_lent: true }
            }
            None => Taken::Unknown,
        }
    }

    /// All permits lent of the connections, and those in use.
    fn connections(&mut self, now: Instant) -> (u32, u32) {
        let first = self.lent.first_mut();
        first.map_or((0, 0), |share| {
            // Settles what has been given up since.
            share.permits.has_free(now);
            (share.permits.held(), share.permits.in_use())
        })
    }

    /// Without a lease: the floor, once no collector has been heard of for a while.
    fn take_floor(&mut self, now: Instant) -> Taken {
        let from = self.heard_at.map_or(now, |heard_at| self.lent_until.max(heard_at) + self.floor_after);
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

/// As many calls in flight as lately and a quarter more, and those that wait. None when nothing is to be said. Lately is
/// since three demands ago: calls under a rate come in bursts a little more than a second apart.
fn connections_needed(state: &mut State, waiting: u32, now: Instant) -> Option<u32> {
    let (held, busy) = state.connections(now);
    let latest = std::mem::replace(&mut state.peak, busy);
    let [before, earliest] = state.earlier_peaks;
    state.earlier_peaks = [latest, before];
    let peak = latest.max(before).max(earliest);
    let need = (peak + peak.div_ceil(4)).saturating_sub(busy).saturating_add(waiting);
    (need > 0 || held > 0).then_some(need)
}

/// As many calls as lately, twice over, in the time until the next lease, and those that wait.
fn calls_needed(state: &mut State, waiting: u32, since: Option<Duration>) -> u32 {
    let begun = std::mem::take(&mut state.begun);
    let per_second = since.map_or(0.0, |since| f64::from(begun) / since.as_secs_f64().max(0.1));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a float saturates")]
    let lately = (2.0 * per_second) as u32;
    waiting.saturating_add(lately).saturating_add(1)
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
mod tests;
