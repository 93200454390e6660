//! What a consumer and the active collector tell each other: permits of rates, which destinations are down, and which are
//! to be left alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use windrow_common::broker::{Broker, BrokerError, Outgoing, Target};
use windrow_common::clock;
use windrow_common::envelope::control::{self, Beat, Control, Lease, Outage, Scope, Throttle};
use windrow_common::ids::ProcessId;

use crate::processor::{Destination, Destinations, LimitGate};

/// How often it is looked whether a demand is due.
const TICK: Duration = Duration::from_millis(50);

/// The destinations of a process, and who speaks for the fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    process: ProcessId,
    destinations: BTreeMap<String, Arc<Destination>>,
    collector: watch::Sender<Option<ProcessId>>,
}

/// What this process finds of a destination by its own calls.
#[derive(Debug)]
pub(crate) struct Finding {
    pub(crate) destination: String,
    pub(crate) found: Found,
}

/// See [`Finding`].
#[derive(Debug)]
pub(crate) enum Found {
    /// It is down for so long.
    Down(Duration),
    /// It works again.
    Works,
    /// It asked to be left alone for so long.
    Throttles(Duration),
}

impl Fleet {
    /// Of this process, and what it finds, to be told. `collector` is the active collector, where it is known already.
    pub(crate) fn new(
        process: ProcessId,
        collector: Option<ProcessId>,
        destinations: &Destinations,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Finding>) {
        let (sender, findings) = mpsc::unbounded_channel();
        destinations.tell_findings(&sender);
        let destinations = destinations.by_name().clone();
        let fleet = Self { process, destinations, collector: watch::Sender::new(collector) };
        fleet.hear_collector(true);
        (Arc::new(fleet), findings)
    }

    /// A collector says that it is the active one.
    pub(crate) fn beat(&self, beat: Beat) {
        self.hear_collector(beat.lends_connections);
        self.collector
            .send_if_modified(|known| known.replace(beat.collector.clone()) != Some(beat.collector));
    }

    /// A collector lends permits.
    pub(crate) fn lend(&self, lease: &Lease) {
        let destination = self.destinations.get(&lease.destination);
        if let Some(gate) = destination.and_then(|destination| destination.gate(&lease.scope)) {
            gate.lend(lease, clock::now());
        }
    }

    fn gates(&self) -> impl Iterator<Item = &Arc<LimitGate>> {
        self.destinations.values().flat_map(|destination| destination.gates())
    }

    /// A collector is there, or looked for from now on.
    fn hear_collector(&self, lends_connections: bool) {
        let now = clock::now();
        for gate in self.gates() {
            let lends = lends_connections || *gate.scope() != Scope::Connections;
            gate.hear_collector(lends.then_some(now));
        }
    }

    /// A collector says that a destination is down, or works again.
    pub(crate) fn hear(&self, outage: &Outage) {
        if let Some(destination) = self.destinations.get(&outage.destination) {
            destination.availability().hear(outage, &self.process);
        }
    }

    /// A collector says that a destination is to be left alone.
    pub(crate) fn hear_pause(&self, throttle: &Throttle) {
        if let Some(destination) = self.destinations.get(&throttle.destination) {
            destination.availability().hear_pause(throttle);
        }
    }

    /// Demands permits whenever it is time, and tells findings, until the broker is closed.
    pub(crate) async fn speak(
        self: Arc<Self>,
        broker: Arc<dyn Broker>,
        mut findings: mpsc::UnboundedReceiver<Finding>,
    ) {
        let has_limits = !self.destinations.is_empty();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let sent = tokio::select! {
                _ = tick.tick(), if has_limits => self.demand(&broker).await,
                finding = findings.recv() => match finding {
                    Some(finding) => self.tell(finding, &broker).await,
                    None => return,
                },
            };
            match sent {
                Err(BrokerError::Closed) => return,
                // Permits are asked for again soon, and each process is right about outages by itself.
                Err(error) => tracing::debug!(%error, "the collector could not be told"),
                Ok(()) => {}
            }
        }
    }

    /// Gives up all permits, so that others have them at once: this process makes no more calls.
    pub(crate) async fn leave(&self, broker: &Arc<dyn Broker>) {
        for gate in self.gates() {
            let demand = gate.farewell(&self.process, clock::now());
            if let Err(error) = self.send(Control::Demand(demand), broker).await {
                tracing::debug!(%error, "permits could not be given up; they run out");
            }
        }
    }

    async fn demand(&self, broker: &Arc<dyn Broker>) -> Result<(), BrokerError> {
        if self.collector.borrow().is_none() {
            return Ok(());
        }
        for gate in self.gates() {
            if let Some(demand) = gate.demand(&self.process, clock::now()) {
                self.send(Control::Demand(demand), broker).await?;
            }
        }
        Ok(())
    }

    async fn tell(&self, finding: Finding, broker: &Arc<dyn Broker>) -> Result<(), BrokerError> {
        let Finding { destination, found } = finding;
        let process = self.process.clone();
        let control = match found {
            Found::Down(down) => {
                Control::Found(control::Found { process, destination, down_ms: Some(millis(down)) })
            }
            Found::Works => Control::Found(control::Found { process, destination, down_ms: None }),
            Found::Throttles(pause) => Control::Throttled(Throttle { destination, pause_ms: millis(pause) }),
        };
        self.send(control, broker).await
    }

    /// To the active collector, if there is one.
    async fn send(&self, control: Control, broker: &Arc<dyn Broker>) -> Result<(), BrokerError> {
        let Some(collector) = self.collector.borrow().clone() else { return Ok(()) };
        let message = control.to_message();
        broker.publish(Outgoing { target: Target::Process(collector), message }).await
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
