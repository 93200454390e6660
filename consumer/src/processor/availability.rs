//! Whether a destination may be called at all at the moment: by its breaker, and by what it asked for when it refused a
//! call.

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use windrow_common::clock;
use windrow_common::envelope::control;
use windrow_common::ids::ProcessId;
use windrow_common::job::{DestinationSpec, ThrottleScope};
use windrow_common::resilience::breaker::{Admission, Breaker, Pass, Sign, State};
use windrow_common::resilience::pause::Pause;
use windrow_common::telemetry::metrics::{IntCounter, IntGauge, Metrics};

use super::gate::LONGEST_WAIT;
use super::{Attempt, Outage};
use crate::fleet::{Finding, Found};

/// Whoever is to probe a destination is this far ahead of the others, who probe if nothing is heard of it.
const PROBER_AHEAD: Duration = Duration::from_secs(10);

/// What decides whether calls may be made.
pub(crate) struct Availability {
    name: String,
    breaker: Option<Mutex<Breaker>>,
    throttle: ThrottleScope,
    pause: Mutex<Pause>,
    standing: watch::Sender<Standing>,
    shown: OnceLock<Shown>,
    findings: OnceLock<mpsc::UnboundedSender<Finding>>,
}

/// Where it is shown.
struct Shown {
    breaker: IntGauge,
    pauses: IntCounter,
}

/// Whether a call may be made.
#[derive(Debug)]
pub(super) enum Admitted {
    /// It may, and the breaker, if there is one, is to be told how it went.
    Call(Option<Pass>),
    /// The destination is to be left alone.
    Paused,
    /// The breaker is open until then.
    NotBefore(Instant),
    /// Not while another call probes.
    Probing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    breaker: State,
    paused_until: Option<Instant>,
}

impl Standing {
    /// Until when no call is made, if it is worth waiting elsewhere.
    fn outage(self) -> Option<Outage> {
        let now = clock::now();
        let open = match self.breaker {
            State::Open(until) if until > now => Some(until),
            _ => None,
        };
        let paused = self.paused_until.filter(|until| *until > now + LONGEST_WAIT);
        open.max(paused).map(|until| Outage { until })
    }

    fn is_callable(self) -> bool {
        self.breaker == State::Closed && self.outage().is_none()
    }
}

impl Availability {
    /// Of a destination of this name.
    pub(super) fn new(name: &str, spec: &DestinationSpec) -> Self {
        Self {
            name: name.to_owned(),
            breaker: spec.breaker.map(|spec| Mutex::new(Breaker::new(spec))),
            throttle: spec.throttle,
            pause: Mutex::default(),
            standing: watch::Sender::new(Standing { breaker: State::Closed, paused_until: None }),
            shown: OnceLock::new(),
            findings: OnceLock::new(),
        }
    }

    /// Has its state shown there. A second place to show it in changes nothing.
    pub(super) fn show_in(&self, metrics: &Metrics) {
        let _ = self.shown.set(Shown {
            breaker: metrics.breaker_state(&self.name),
            pauses: metrics.destination_pauses(&self.name),
        });
    }

    /// Has told there what this process finds by its own calls. A second place to tell it to changes nothing.
    pub(super) fn tell_findings(&self, findings: &mpsc::UnboundedSender<Finding>) {
        let _ = self.findings.set(findings.clone());
    }

    /// Until when no call is made: the breaker is open, or the destination is left alone for more than 2 s.
    pub(crate) fn outage_now(&self) -> Option<Outage> {
        self.standing.borrow().outage()
    }

    /// Waits until no call is made for a while.
    pub(crate) async fn outage(&self) -> Outage {
        self.changes().outage().await
    }

    /// Whether the breaker is closed, and the destination is not left alone for a while.
    pub(crate) fn is_callable(&self) -> bool {
        self.standing.borrow().is_callable()
    }

    /// Waits for that.
    pub(crate) async fn callable(&self) {
        let mut changes = self.changes();
        loop {
            let standing = *changes.0.borrow_and_update();
            if standing.is_callable() {
                return;
            }
            let pause_over = async {
                match (standing.breaker, standing.paused_until) {
                    (State::Closed, Some(until)) => {
                        let left = until.saturating_duration_since(clock::now());
                        tokio::time::sleep(left.saturating_sub(LONGEST_WAIT)).await;
                    }
                    _ => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changes.next() => {}
                () = pause_over => {}
            }
        }
    }

    /// Waits until the destination is not left alone any more.
    pub(super) async fn unpaused(&self) {
        while let Some(until) = self.paused_until() {
            sleep_until(until).await;
        }
    }

    /// Until when the destination is left alone, if it is.
    pub(super) fn paused_until(&self) -> Option<Instant> {
        lock(&self.pause).until(clock::now())
    }

    /// What changes from now on, for whoever waits.
    pub(super) fn changes(&self) -> Changes {
        Changes(self.standing.subscribe())
    }

    /// Whether a call may be made now.
    pub(super) fn admit(&self) -> Admitted {
        if self.paused_until().is_some() {
            return Admitted::Paused;
        }
        let Some(breaker) = &self.breaker else { return Admitted::Call(None) };
        let mut breaker = lock(breaker);
        let admission = breaker.admit(clock::now());
        self.tell(breaker.state());
        match admission {
            Admission::Call(pass) => Admitted::Call(Some(pass)),
            Admission::NotBefore(until) => Admitted::NotBefore(until),
            Admission::Probing => Admitted::Probing,
        }
    }

    /// Takes in how a call of this pass ended. Returns how long to wait when the destination is down now.
    pub(super) fn note(&self, pass: Pass, sign: Sign) -> Option<Outage> {
        let mut breaker = lock(self.breaker.as_ref()?);
        let (before, now) = (breaker.state(), clock::now());
        breaker.note(pass, sign, now);
        let state = breaker.state();
        if state != before {
            match state {
                State::Open(until) => self.find(Found::Down(until.saturating_duration_since(now))),
                State::Closed => self.find(Found::Works),
                State::HalfOpen => {}
            }
        }
        self.tell(state);
        if pass.is_probe {
            // A probe that showed nothing leaves the state as it is, and the next one may go.
            self.standing.send_modify(|_| {});
        }
        self.outage_now()
    }

    /// Takes in whether a call was refused because of a limit: no call is made for as long as was asked for.
    pub(super) fn heed(&self, attempt: &Attempt) {
        let after = match attempt {
            Attempt::Throttled { after, .. } if self.throttle == ThrottleScope::Destination => *after,
            Attempt::Succeeded(_) => return lock(&self.pause).works(),
            _ => return,
        };
        let now = clock::now();
        let mut pause = lock(&self.pause);
        let told = pause.refused(after, now);
        self.tell_pause(&pause, now);
        if let Some(told) = told {
            if let Some(shown) = self.shown.get() {
                shown.pauses.inc();
            }
            tracing::info!(
                destination = self.name,
                seconds = told.as_secs_f64().round(),
                "the destination asked to be left alone: no calls are made"
            );
            self.find(Found::Throttles(told));
        }
    }

    /// What the fleet says of this destination. The process named to probe goes by what it sees itself.
    pub(crate) fn hear(&self, outage: &control::Outage, this_process: &ProcessId) {
        let Some(breaker) = &self.breaker else { return };
        let mut breaker = lock(breaker);
        let now = clock::now();
        match (outage.down_ms, &outage.prober) {
            (Some(_), Some(prober)) if prober == this_process => return,
            (Some(down_ms), prober) => {
                let ahead = if prober.is_some() { PROBER_AHEAD } else { Duration::ZERO };
                breaker.others_say_down(now + Duration::from_millis(down_ms) + ahead);
            }
            (None, _) => breaker.others_say_up(now),
        }
        self.tell(breaker.state());
    }

    /// The fleet says that the destination is to be left alone.
    pub(crate) fn hear_pause(&self, throttle: &control::Throttle) {
        let now = clock::now();
        let mut pause = lock(&self.pause);
        pause.others_say(Duration::from_millis(throttle.pause_ms), now);
        self.tell_pause(&pause, now);
    }

    /// Tells the fleet of a change this process saw by itself.
    fn find(&self, found: Found) {
        if let Some(findings) = self.findings.get() {
            // Whoever was to be told may be gone.
            let _ = findings.send(Finding { destination: self.name.clone(), found });
        }
    }

    /// Passes a pause on. Called under its lock, so that changes come in their order.
    fn tell_pause(&self, pause: &Pause, now: Instant) {
        let until = pause.until(now);
        self.standing.send_if_modified(|known| std::mem::replace(&mut known.paused_until, until) != until);
    }

    /// Passes a change on. Called under the breaker's lock, so that changes come in their order.
    fn tell(&self, state: State) {
        let changed =
            self.standing.send_if_modified(|known| std::mem::replace(&mut known.breaker, state) != state);
        if !changed {
            return;
        }
        let (word, number) = match state {
            State::Closed => ("closed", 0),
            State::HalfOpen => ("half-open", 1),
            State::Open(_) => ("open", 2),
        };
        if let Some(shown) = self.shown.get() {
            shown.breaker.set(number);
        }
        if let State::Open(until) = state {
            let seconds = until.saturating_duration_since(clock::now()).as_secs_f64().round();
            tracing::warn!(
                destination = self.name,
                probe_in_seconds = seconds,
                "breaker {word}: no calls are made"
            );
        } else {
            tracing::info!(destination = self.name, "breaker {word}");
        }
    }
}

/// Changes of whether a destination may be called.
pub(super) struct Changes(watch::Receiver<Standing>);

impl Changes {
    /// Waits until no call is made for a while.
    pub(super) async fn outage(&mut self) -> Outage {
        loop {
            if let Some(outage) = self.0.borrow_and_update().outage() {
                return outage;
            }
            self.next().await;
        }
    }

    /// Waits for a change after the last one seen; for ever when there will be none.
    pub(super) async fn next(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// What changed up to now has been seen.
    pub(super) fn see(&mut self) {
        self.0.mark_unchanged();
    }
}

async fn sleep_until(until: Instant) {
    tokio::time::sleep_until(until.into()).await;
}

/// What is behind these locks is whole after every statement, so a panic elsewhere spoils nothing.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
