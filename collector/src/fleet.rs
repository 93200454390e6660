//! The collector as the fleet's control plane: it says where it is, lends permits of rates and connections, says which
//! destinations are down or are to be left alone (law 8), and hears what consumers are working on (law 4).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use windrow_common::broker::{Broker, BrokerError, Outgoing, Queue, Subscription, Target};
use windrow_common::clock;
use windrow_common::envelope::Message;
use windrow_common::envelope::control::{Beat, Control};
use windrow_common::ids::ProcessId;
use windrow_common::job::{DestinationSpec, JobSet, Rate};

use crate::collector::Controller;
use crate::engine::Engine;
use crate::ledger::Changes;
use crate::limits::{LentBefore, Limits, Stated};
use crate::outages::Outages;
use crate::pauses::Pauses;
use crate::working::LongWork;

/// How often the fleet is told where the active collector is.
const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// Every so many beats it is told again which destinations are down.
const OUTAGE_BEATS: u64 = 5;

/// Demands are small and answered at once.
const PREFETCH: u16 = 1_000;

/// Begins to serve the fleet, in a task that ends when the returned handle is dropped.
///
/// # Errors
/// The broker refuses the subscription.
pub(crate) async fn serve(
    broker: Arc<dyn Broker>,
    process: ProcessId,
    mut ruling: Ruling,
    kept: Kept,
    long_work: Arc<Mutex<LongWork>>,
    controller: Controller,
) -> Result<Serving, BrokerError> {
    let subscription = broker.subscribe(vec![Queue::Process(process.clone())], PREFETCH).await?;
    let Kept { outages, pauses, lent } = kept;
    let limits = Limits::new(ruling.now(), lent, clock::now());
    let speaker = Speaker { broker, process, limits, outages, long_work, pauses, controller };
    Ok(Serving(tokio::spawn(speaker.run(subscription, ruling))))
}

/// The fleet is served until this is dropped.
#[derive(Debug)]
pub(crate) struct Serving(tokio::task::JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the ledger has kept of destinations.
pub(crate) struct Kept {
    outages: Outages,
    pauses: Pauses,
    lent: LentBefore,
}

impl Kept {
    /// Taken out of this engine, which has no use for it.
    pub(crate) fn of(engine: &mut Engine) -> Self {
        Self {
            outages: Outages::new(std::mem::take(&mut engine.outages)),
            pauses: Pauses::new(std::mem::take(&mut engine.pauses)),
            lent: match (engine.is_first, engine.options.is_alone) {
                (true, _) => LentBefore::Never,
                (false, true) => LentBefore::ToNobodyLeft,
                (false, false) => LentBefore::Perhaps,
            },
        }
    }
}

/// Which limits hold: the rates an operator has set, else what the job files say.
pub(crate) struct Ruling {
    stated: BTreeMap<String, Stated>,
    set: watch::Receiver<BTreeMap<String, Vec<Rate>>>,
}

impl Ruling {
    /// As this engine's ledger and job files say.
    pub(crate) fn of(engine: &Engine) -> Self {
        Self { stated: stated(&engine.jobs), set: engine.limits.subscribe() }
    }

    fn now(&mut self) -> BTreeMap<String, Stated> {
        let mut stated = self.stated.clone();
        let set = self.set.borrow_and_update();
        for (destination, ruling) in &mut stated {
            if let Some(set) = set.get(destination).filter(|_| !ruling.rates.is_empty()) {
                ruling.rates.clone_from(set);
            }
        }
        stated
    }
}

/// The limits of each destination, whichever job file states them.
pub(crate) fn stated(jobs: &JobSet) -> BTreeMap<String, Stated> {
    let mut specs: BTreeMap<&str, DestinationSpec> = BTreeMap::new();
    for (name, spec) in jobs.iter().flat_map(|job| &job.destinations) {
        specs.entry(name).or_insert_with(|| spec.clone()).stricter(spec);
    }
    let stated = |spec: DestinationSpec| Stated { rates: spec.rates, connections: spec.max_connections };
    specs.into_iter().map(|(name, spec)| (name.to_owned(), stated(spec))).collect()
}

/// Says and hears what concerns the whole fleet.
struct Speaker {
    broker: Arc<dyn Broker>,
    process: ProcessId,
    limits: Limits,
    outages: Outages,
    long_work: Arc<Mutex<LongWork>>,
    pauses: Pauses,
    controller: Controller,
}

impl Speaker {
    async fn run(mut self, mut subscription: Subscription, mut ruling: Ruling) {
        let mut beat = tokio::time::interval(BEAT_INTERVAL);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut beats = 0;
        loop {
            tokio::select! {
                Ok(()) = ruling.set.changed() => self.limits.restate(ruling.now()),
                _ = beat.tick() => {
                    self.beat(beats).await;
                    beats += 1;
                }
                delivery = subscription.next() => {
                    let Some(delivery) = delivery else { return };
                    self.hear(&delivery.message).await;
                }
            }
        }
    }

    async fn beat(&mut self, beats: u64) {
        self.say(Target::Everybody, Control::Beat(Beat { collector: self.process.clone() })).await;
        let now_ms = clock::unix_ms();
        let (paused, over) = self.pauses.told_again(now_ms);
        for throttle in paused {
            self.say(Target::Everybody, Control::Paused(throttle)).await;
        }
        self.keep(Changes { pauses: over, ..Changes::default() });
        if beats.is_multiple_of(OUTAGE_BEATS) {
            let over = self.outages.forget(now_ms).into_iter().map(|destination| (destination, None));
            self.keep(Changes { outages: over.collect(), ..Changes::default() });
            for outage in self.outages.told_again(now_ms) {
                self.say(Target::Everybody, Control::Outage(outage)).await;
            }
        }
    }

    fn keep(&self, changes: Changes) {
        if !changes.is_empty() {
            self.controller.keep(changes);
        }
    }

    async fn hear(&mut self, message: &Message) {
        match Control::from_message(message) {
            Ok(Control::Demand(demand)) => {
                let lease = self.limits.grant(&demand, clock::now());
                self.say(Target::Process(demand.process), Control::Lease(lease)).await;
            }
            Ok(Control::Found(found)) => {
                let (outage, until_ms) = self.outages.hear(&found, clock::unix_ms());
                self.say(Target::Everybody, Control::Outage(outage)).await;
                self.keep(Changes { outages: vec![(found.destination, until_ms)], ..Changes::default() });
            }
            Ok(Control::Throttled(throttled)) => {
                let (told, kept) = self.pauses.hear(&throttled, clock::unix_ms());
                if let Some(told) = told {
                    self.say(Target::Everybody, Control::Paused(told)).await;
                }
                self.keep(Changes { pauses: kept.into_iter().collect(), ..Changes::default() });
            }
            Ok(Control::Working(working)) => {
                let mut long_work = self.long_work.lock().unwrap_or_else(PoisonError::into_inner);
                long_work.hear(working, clock::now());
            }
            // What is told to everybody comes here too.
            _ => {}
        }
    }

    /// Whoever misses this asks, or is told, again.
    async fn say(&self, target: Target, control: Control) {
        if let Err(error) = self.broker.publish(Outgoing { target, message: control.to_message() }).await {
            tracing::debug!(%error, "the fleet could not be told");
        }
    }
}
