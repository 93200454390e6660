//! Destinations as one process sees them: how many calls it may have in flight to each, and whether any call may be
//! made at all.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use windrow_common::envelope::control;
use windrow_common::ids::ProcessId;
use windrow_common::job::{DestinationSpec, Job};
use windrow_common::resilience::adaptive::Seen;
use windrow_common::resilience::breaker::{Admission, Breaker, Pass, Sign, State};
use windrow_common::telemetry::metrics::{InFlight, IntGauge, Metrics};

use super::rates::{RateGate, RatePass};
use super::{Attempt, BuildFault, http};
use crate::fleet::Finding;

/// Whoever is to probe a destination is this far ahead of the others, who probe if nothing is heard of it.
const PROBER_AHEAD: Duration = Duration::from_secs(10);

/// The destinations of all jobs of this process, by name, and the HTTP client that calls them.
#[derive(Debug, Default)]
pub struct Destinations {
    by_name: BTreeMap<String, Arc<Destination>>,
    http_client: OnceLock<reqwest::Client>,
}

impl Destinations {
    /// The destinations of these jobs. One name is one outside system, whichever job names it: of several
    /// limits for it the smallest holds, and of several breakers the strictest values.
    pub fn of_jobs<'a>(jobs: impl IntoIterator<Item = &'a Job>) -> Self {
        let mut specs: BTreeMap<&str, DestinationSpec> = BTreeMap::new();
        for (name, spec) in jobs.into_iter().flat_map(|job| &job.destinations) {
            specs.entry(name).or_insert_with(|| spec.clone()).stricter(spec);
        }
        let open = |(name, spec): (&str, DestinationSpec)| (name.to_owned(), Destination::new(name, &spec));
        Self { by_name: specs.into_iter().map(open).collect(), http_client: OnceLock::new() }
    }

    /// Has the calls in flight to each destination, and the state of its breaker, shown there.
    pub fn show_in(&self, metrics: &Metrics) {
        for (name, destination) in &self.by_name {
            // A second place to show it in changes nothing.
            let _ = destination
                .shown
                .set(Shown { calls: metrics.calls_in_flight(name), breaker: metrics.breaker_state(name) });
        }
    }

    /// All of them, by name.
    pub(crate) fn by_name(&self) -> &BTreeMap<String, Arc<Destination>> {
        &self.by_name
    }

    /// Has told there what this process finds of each by its own calls: for how long it is down, or that it works
    /// again.
    pub(crate) fn tell_findings(&self, findings: &mpsc::UnboundedSender<Finding>) {
        for destination in self.by_name.values() {
            // A second place to tell it to changes nothing.
            let _ = destination.findings.set(findings.clone());
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<Arc<Destination>> {
        self.by_name.get(name).cloned()
    }

    /// The client all http stages share, and with it connections: a destination has as many as its permits allow.
    pub(super) fn http_client(&self) -> Result<reqwest::Client, BuildFault> {
        if let Some(client) = self.http_client.get() {
            return Ok(client.clone());
        }
        let client = http::client().map_err(BuildFault::Client)?;
        Ok(self.http_client.get_or_init(|| client).clone())
    }
}

/// An outside system.
pub(crate) struct Destination {
    name: String,
    max_connections: u32,
    permits: Arc<Semaphore>,
    rates: Option<Arc<RateGate>>,
    breaker: Option<Mutex<Breaker>>,
    state: watch::Sender<State>,
    shown: OnceLock<Shown>,
    findings: OnceLock<mpsc::UnboundedSender<Finding>>,
}

/// Where a destination is shown.
struct Shown {
    calls: IntGauge,
    breaker: IntGauge,
}

/// The destination takes no call before this time: its breaker is open, or its rates are used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// When it may be called again.
    pub until: Instant,
}

/// The right to have one call in flight, until dropped.
#[derive(Debug)]
pub struct Permit {
    _held: Option<OwnedSemaphorePermit>,
    rate: Option<RatePass>,
    destination: Arc<Destination>,
    pass: Option<Pass>,
    _in_flight: Option<InFlight>,
}

impl Permit {
    fn new(
        held: Option<OwnedSemaphorePermit>,
        rate: Option<RatePass>,
        destination: &Arc<Destination>,
        pass: Option<Pass>,
    ) -> Self {
        let in_flight = destination.shown.get().map(|shown| InFlight::enter(&shown.calls));
        Self { _held: held, rate, destination: Arc::clone(destination), pass, _in_flight: in_flight }
    }

    /// The call is not made after all.
    pub(crate) fn unused(mut self) {
        if let Some(rate) = self.rate.take() {
            rate.give_back();
        }
    }

    /// Tells the breaker how the call ended. Returns when to try again when it was a probe that found the
    /// destination still down.
    pub fn note(&mut self, attempt: &Attempt) -> Option<Outage> {
        let pass = self.pass.take()?;
        let outage = self.destination.note(pass, sign(attempt))?;
        pass.is_probe.then_some(outage)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.destination.note(pass, Sign::Nothing);
        }
    }
}

impl Destination {
    fn new(name: &str, spec: &DestinationSpec) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            max_connections: spec.max_connections,
            permits: Arc::new(Semaphore::new(spec.max_connections as usize)),
            rates: (!spec.rates.is_empty()).then(|| RateGate::new(name, spec.rates.clone(), spec.rate_floor)),
            breaker: spec.breaker.map(|spec| Mutex::new(Breaker::new(spec))),
            state: watch::Sender::new(State::Closed),
            shown: OnceLock::new(),
            findings: OnceLock::new(),
        })
    }

    /// Waits until fewer than `max_connections` calls of this process are in flight, first come, first served, until
    /// the rates let one more through, and while another call probes. An error as soon as the breaker is open, also
    /// while waiting, and when the rates let none through for a while.
    pub(super) async fn permit(self: &Arc<Self>) -> Result<Permit, Outage> {
        let mut states = self.state.subscribe();
        loop {
            let (held, rate) = tokio::select! {
                biased;
                outage = outage(&mut states) => return Err(outage),
                passed = self.pass_limits() => passed?,
            };
            states.borrow_and_update();
            let refused = match self.admit() {
                Some(Admission::Call(pass)) => return Ok(Permit::new(held, rate, self, Some(pass))),
                None => return Ok(Permit::new(held, rate, self, None)),
                Some(Admission::NotBefore(until)) => Some(Outage { until }),
                Some(Admission::Probing) => None,
            };
            if let Some(rate) = rate {
                rate.give_back();
            }
            if let Some(outage) = refused {
                return Err(outage);
            }
            drop(held);
            // Fails only when the sender is gone, and that is ours.
            let _ = states.changed().await;
        }
    }

    async fn pass_limits(&self) -> Result<(Option<OwnedSemaphorePermit>, Option<RatePass>), Outage> {
        // The semaphore is never closed, so this is never None.
        let held = self.permits.clone().acquire_owned().await.ok();
        let rate = match &self.rates {
            Some(gate) => Some(gate.pass().await?),
            None => None,
        };
        Ok((held, rate))
    }

    /// Until when no call is made, if the breaker is open now.
    pub(crate) fn outage_now(&self) -> Option<Outage> {
        outage_of(&self.state.borrow())
    }

    /// Waits until the breaker is open.
    pub(crate) async fn outage(&self) -> Outage {
        outage(&mut self.state.subscribe()).await
    }

    /// Whether calls flow.
    pub(crate) fn is_closed(&self) -> bool {
        *self.state.borrow() == State::Closed
    }

    /// Waits until the breaker is closed.
    pub(crate) async fn closed(&self) {
        // Fails only when the sender is gone, and that is ours.
        let _ = self.state.subscribe().wait_for(|state| *state == State::Closed).await;
    }

    fn admit(&self) -> Option<Admission> {
        let mut breaker = self.breaker.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let admission = breaker.admit(Instant::now());
        self.tell(breaker.state());
        Some(admission)
    }

    fn note(&self, pass: Pass, sign: Sign) -> Option<Outage> {
        let mut breaker = self.breaker.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        let (before, now) = (breaker.state(), Instant::now());
        breaker.note(pass, sign, now);
        let state = breaker.state();
        if state != before {
            self.find(state, now);
        }
        self.tell(state);
        if pass.is_probe {
            // A probe that showed nothing leaves the state as it is, and the next one may go.
            self.state.send_modify(|_| {});
        }
        self.outage_now()
    }

    /// What the fleet says of this destination. The process named to probe goes by what it sees itself.
    pub(crate) fn hear(&self, outage: &control::Outage, this_process: &ProcessId) {
        let Some(breaker) = &self.breaker else { return };
        let mut breaker = breaker.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
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

    /// Tells the fleet of a change this process saw by itself.
    fn find(&self, state: State, now: Instant) {
        let down = match state {
            State::Open(until) => Some(until.saturating_duration_since(now)),
            State::Closed => None,
            State::HalfOpen => return,
        };
        if let Some(findings) = self.findings.get() {
            // Whoever was to be told may be gone.
            let _ = findings.send((self.name.clone(), down));
        }
    }

    /// The gate of its rates, if it has some.
    pub(crate) fn rates(&self) -> Option<&Arc<RateGate>> {
        self.rates.as_ref()
    }

    /// Passes a change on. Called under the breaker's lock, so that changes come in their order.
    fn tell(&self, state: State) {
        let changed = self.state.send_if_modified(|known| std::mem::replace(known, state) != state);
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
            let seconds = until.saturating_duration_since(Instant::now()).as_secs_f64().round();
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

fn outage_of(state: &State) -> Option<Outage> {
    match *state {
        State::Open(until) if until > Instant::now() => Some(Outage { until }),
        _ => None,
    }
}

async fn outage(states: &mut watch::Receiver<State>) -> Outage {
    loop {
        if let Some(outage) = outage_of(&states.borrow_and_update()) {
            return outage;
        }
        if states.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What an attempt shows about how many calls at once are good; None when nothing.
pub(crate) fn seen(attempt: &Attempt) -> Option<Seen> {
    match sign(attempt) {
        Sign::Works => Some(Seen::Answer),
        Sign::Fails | Sign::Throttles => Some(Seen::Refusal),
        Sign::Nothing => None,
    }
}

/// What an attempt shows about its destination. A wrong item is an answer; a request that could not be made, or
/// a program that failed, shows nothing.
fn sign(attempt: &Attempt) -> Sign {
    match attempt {
        Attempt::Succeeded(_) | Attempt::Skipped(_) => Sign::Works,
        Attempt::Throttled { .. } => Sign::Throttles,
        Attempt::Failed { error, .. } => match (error.class.as_str(), error.status) {
            ("http_status", Some(429)) => Sign::Throttles,
            ("http_status", Some(500..))
            | ("timeout" | "connect" | "connect_timeout" | "connection" | "tls", _) => Sign::Fails,
            ("http_status", _) => Sign::Works,
            _ => Sign::Nothing,
        },
    }
}

impl fmt::Debug for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Destination({} of {} free)", self.permits.available_permits(), self.max_connections)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::processor::Retry;

    #[test]
    fn only_what_the_destination_does_wrong_counts_against_it() {
        let status = |status| {
            let mut attempt = Attempt::failed("http_status", "", Retry::Later);
            if let Attempt::Failed { error, .. } = &mut attempt {
                error.status = Some(status);
            }
            sign(&attempt)
        };
        for failing in [500, 501, 503, 599] {
            assert_eq!(status(failing), Sign::Fails, "{failing}");
        }
        for answered in [301, 400, 401, 404, 422] {
            assert_eq!(status(answered), Sign::Works, "{answered}");
        }
        assert_eq!(status(429), Sign::Throttles);
        for (class, expected) in [
            ("timeout", Sign::Fails),
            ("connect", Sign::Fails),
            ("connection", Sign::Fails),
            ("request", Sign::Nothing),
            ("exit_code", Sign::Nothing),
        ] {
            assert_eq!(sign(&Attempt::failed(class, "", Retry::Later)), expected, "{class}");
        }
    }
}
