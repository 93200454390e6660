//! Destinations as one process sees them: which calls may be made to each, by its limits and by its availability.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use tokio::sync::mpsc;
use windrow_common::envelope::control::Scope;
use windrow_common::job::{DestinationSpec, Job};
use windrow_common::resilience::adaptive::Seen;
use windrow_common::resilience::breaker::{Pass, Sign};
use windrow_common::telemetry::metrics::{InFlight, IntGauge, Metrics};

use super::availability::{Admitted, Availability};
use super::gate::{LimitGate, LimitPass};
use super::{Attempt, BuildFault, http};
use crate::fleet::Finding;

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

    /// Has the calls in flight to each destination, the state of its breaker, and its pauses shown there.
    pub fn show_in(&self, metrics: &Metrics) {
        for (name, destination) in &self.by_name {
            // A second place to show it in changes nothing.
            let _ = destination.calls.set(metrics.calls_in_flight(name));
            destination.availability.show_in(metrics);
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
            destination.availability.tell_findings(findings);
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
    connections: Arc<LimitGate>,
    rates: Option<Arc<LimitGate>>,
    availability: Availability,
    calls: OnceLock<IntGauge>,
}

/// The destination takes no call before this time: its breaker is open, it asked to be left alone, or its rates are used
/// up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Outage {
    /// When it may be called again.
    pub until: Instant,
}

/// The right to have one call in flight, until dropped.
#[derive(Debug)]
pub struct Permit {
    limits: Option<Passed>,
    destination: Arc<Destination>,
    pass: Option<Pass>,
    _in_flight: Option<InFlight>,
}

/// A place among the calls in flight, and one in each window of the rates.
#[derive(Debug)]
struct Passed {
    connection: LimitPass,
    rate: Option<LimitPass>,
}

impl Passed {
    /// The call is not made after all.
    fn give_back(self) {
        self.connection.give_back();
        if let Some(rate) = self.rate {
            rate.give_back();
        }
    }
}

impl Permit {
    fn new(limits: Passed, destination: &Arc<Destination>, pass: Option<Pass>) -> Self {
        let in_flight = destination.calls.get().map(InFlight::enter);
        Self { limits: Some(limits), destination: Arc::clone(destination), pass, _in_flight: in_flight }
    }

    /// The call is not made after all.
    pub(crate) fn unused(mut self) {
        if let Some(limits) = self.limits.take() {
            limits.give_back();
        }
    }

    /// Tells the destination how the call ended. Returns when to try again when it was a probe that found the
    /// destination still down.
    pub fn note(&mut self, attempt: &Attempt) -> Option<Outage> {
        self.destination.availability.heed(attempt);
        let pass = self.pass.take()?;
        let outage = self.destination.availability.note(pass, sign(attempt))?;
        pass.is_probe.then_some(outage)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            self.destination.availability.note(pass, Sign::Nothing);
        }
    }
}

impl Destination {
    fn new(name: &str, spec: &DestinationSpec) -> Arc<Self> {
        Arc::new(Self {
            connections: LimitGate::of_connections(name, spec.max_connections),
            rates: (!spec.rates.is_empty())
                .then(|| LimitGate::of_rates(name, spec.rates.clone(), spec.rate_floor)),
            availability: Availability::new(name, spec),
            calls: OnceLock::new(),
        })
    }

    /// Waits until the rates let one more call through, until fewer calls are in flight than this process may have, while
    /// the destination is left alone, and while another call probes. First come, first served. An error as soon as no
    /// call is made for a while, also while waiting, and when the rates let none through for a while.
    pub(super) async fn permit(self: &Arc<Self>) -> Result<Permit, Outage> {
        let mut changes = self.availability.changes();
        loop {
            let limits = tokio::select! {
                biased;
                outage = changes.outage() => return Err(outage),
                passed = self.pass_limits() => passed?,
            };
            changes.see();
            let refused = match self.availability.admit() {
                Admitted::Call(pass) => return Ok(Permit::new(limits, self, pass)),
                refused => refused,
            };
            limits.give_back();
            match refused {
                Admitted::NotBefore(until) => return Err(Outage { until }),
                Admitted::Probing => changes.next().await,
                // Waited for above.
                Admitted::Call(_) | Admitted::Paused => {}
            }
        }
    }

    async fn pass_limits(&self) -> Result<Passed, Outage> {
        self.availability.unpaused().await;
        // In this order: what waits for a rate must not keep others from the destination.
        let rate = match &self.rates {
            Some(gate) => Some(gate.pass().await?),
            None => None,
        };
        Ok(Passed { connection: self.connections.pass().await?, rate })
    }

    /// Whether it may be called at the moment.
    pub(crate) fn availability(&self) -> &Availability {
        &self.availability
    }

    /// The gates of its limits.
    pub(crate) fn gates(&self) -> impl Iterator<Item = &Arc<LimitGate>> {
        std::iter::once(&self.connections).chain(&self.rates)
    }

    /// The gate of one of its limits, if it has that.
    pub(crate) fn gate(&self, scope: &Scope) -> Option<&Arc<LimitGate>> {
        match scope {
            Scope::Connections => Some(&self.connections),
            Scope::Rates => self.rates.as_ref(),
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
        write!(f, "Destination({:?})", self.connections)
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
