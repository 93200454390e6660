//! What a consumer and the active collector tell each other: permits of rates, which destinations are down, which are to
//! be left alone, and which chunks are worked on for long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use windrow_common::broker::{Broker, BrokerError, Outgoing, Target};
use windrow_common::clock;
use windrow_common::envelope::control::{self, Beat, Control, Lease, Outage, Throttle, Working};
use windrow_common::ids::ProcessId;
use windrow_common::telemetry::metrics::IntGauge;

use crate::in_hand::InHand;
use crate::processor::{Destination, Destinations, LimitGate};

/// How often it is looked whether a demand is due.
const TICK: Duration = Duration::from_millis(50);

/// How often the collector is told of the chunks that are worked on for long.
const WORKING_INTERVAL: Duration = Duration::from_secs(1);

/// The destinations of a process, and who speaks for the fleet.
#[derive(Debug)]
pub(crate) struct Fleet {
    process: ProcessId,
    destinations: BTreeMap<String, Arc<Destination>>,
    in_hand: Arc<InHand>,
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
    /// Of this process, which works on what is in hand, and what it finds, to be told. `collector` is the active
    /// collector, where it is known already.
    pub(crate) fn new(
        process: ProcessId,
        collector: Option<ProcessId>,
        destinations: &Destinations,
        in_hand: Arc<InHand>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Finding>) {
        let (sender, findings) = mpsc::unbounded_channel();
        destinations.tell_findings(&sender);
        let destinations = destinations.by_name().clone();
        let fleet = Self { process, destinations, in_hand, collector: watch::Sender::new(collector) };
        fleet.hear_collector();
        (Arc::new(fleet), findings)
    }

    /// A collector says that it is the active one.
    pub(crate) fn beat(&self, beat: Beat) {
        self.hear_collector();
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

    fn hear_collector(&self) {
        let now = clock::now();
        self.gates().for_each(|gate| gate.hear_collector(now));
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

    /// Demands permits whenever it is time, tells findings and what takes long, until the broker is closed. `long_chunks`
    /// shows how many chunks were told of.
    pub(crate) async fn speak(
        self: Arc<Self>,
        broker: Arc<dyn Broker>,
        mut findings: mpsc::UnboundedReceiver<Finding>,
        long_chunks: IntGauge,
    ) {
        let has_limits = !self.destinations.is_empty();
        let mut tick = tokio::time::interval(TICK);
        let mut working = tokio::time::interval(WORKING_INTERVAL);
        for interval in [&mut tick, &mut working] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        let mut named = 0;
        loop {
            let sent = tokio::select! {
                _ = tick.tick(), if has_limits => self.demand(&broker).await,
                _ = working.tick() => self.name_long(&broker, &mut named, &long_chunks).await,
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

    /// Gives up all permits, so that others have them at once: this process makes no more calls, and works on nothing.
    pub(crate) async fn leave(&self, broker: &Arc<dyn Broker>) {
        if let Err(error) = self.send(Control::Working(self.working()), broker).await {
            tracing::debug!(%error, "the collector could not be told that nothing is worked on any more");
        }
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

    /// Names the chunks that are worked on for long; also once when there are none any more.
    async fn name_long(
        &self,
        broker: &Arc<dyn Broker>,
        named: &mut usize,
        shown: &IntGauge,
    ) -> Result<(), BrokerError> {
        let working = self.working();
        let count = working.chunks.len();
        if count == 0 && *named == 0 {
            return Ok(());
        }
        self.send(Control::Working(working), broker).await?;
        shown.add(i64::try_from(count).unwrap_or(0) - i64::try_from(*named).unwrap_or(0));
        *named = count;
        Ok(())
    }

    fn working(&self) -> Working {
        Working { process: self.process.clone(), chunks: self.in_hand.long(clock::now()) }
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
