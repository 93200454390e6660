//! The fleet, its cluster, its database and its destination, and the faults that befall them.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use windrow_tests::account::SinkWatch;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::own_network::{Network, OwnNetwork};
use windrow_tests::postgres_server::PostgresServer;
use windrow_tests::rabbitmq_cluster::{NODES, RabbitMqCluster};

use crate::schedule::{CONSUMERS, Fault, Who};
use crate::slot::Slot;

/// The run's name.
pub(crate) const RUN: &str = "chaos";

/// Without any progress for so long, the run has come to a standstill.
const STANDSTILL: Duration = Duration::from_secs(240);

/// How long the destination takes for a call, and how long while items settle faster than faults can follow.
const PACE: Duration = Duration::from_millis(150);
const SLOW_PACE: Duration = Duration::from_millis(1_500);

/// What a connection to the broker may miss before it counts as gone; and how long the first may take.
const BROKER_OPTIONS: &str = "heartbeat=3&connect_timeout=120";

/// The breaker is to stop calls in an outage: four retries a second apart do not outlast one. There are as many
/// connections as slots, so that an item that may run is called at once.
fn job(url: &str) -> String {
    format!(
        r#"
name = "chaos"
[source]
type = "jsonl"
path = "../items.jsonl"
[chunk]
items = 25
outstanding = 120
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 50
method = "POST"
url = "{url}"
headers = {{ x-caller = "${{{caller}}}" }}
body = "{{{{ item | tojson }}}}"
timeout = "30s"
retry = {{ count = 4, interval = "1s", type = "fixed" }}
[destination.paced]
max_connections = 150
breaker = {{ failures = 5, open = "2s", probe_interval = "1s" }}
[sink]
type = "jsonl"
path = "out.jsonl"
order = "arrival"
"#,
        caller = windrow_tests::fleet::CALLER
    )
}

/// Everything at once.
pub(crate) struct Battle {
    pub(crate) fleet: Fleet,
    pub(crate) cluster: Arc<RabbitMqCluster>,
    pub(crate) destination: Destination,
    pub(crate) watch: SinkWatch,
    pub(crate) producer: Slot,
    pub(crate) consumers: Vec<Slot>,
    pub(crate) collectors: Vec<Slot>,
    /// Outages of the destination, from and to.
    pub(crate) outages: Vec<(Instant, Instant)>,
    outage: Option<(Instant, Instant)>,
    network: Network,
    broker_fault: Option<JoinHandle<()>>,
    _database: PostgresServer,
}

impl Battle {
    /// Starts it all in `folder`, which has the input as `items.jsonl`.
    pub(crate) fn begin(folder: &Path, network: Network) -> Self {
        let destination = Destination::start(Behaviour { delay: PACE, fail_every: 400 });
        let cluster = Arc::new(RabbitMqCluster::start().unwrap());
        let database = PostgresServer::start();
        let fleet = Fleet::new(folder, &cluster.uri(BROKER_OPTIONS), &job(&destination.url()))
            .with_ledger(&database.url());
        let collectors = ["collector-a", "collector-b"].map(|name| {
            let fleet = fleet.clone();
            Slot::new(name, false, move |crash| fleet.collector_named(name, crash))
        });
        let consumers = (0..CONSUMERS).map(|number| {
            let fleet = fleet.clone();
            Slot::new(&format!("consumer-{number}"), false, move |crash| fleet.consumer(number, crash))
        });
        let of_producer = fleet.clone();
        Self {
            consumers: consumers.collect(),
            collectors: collectors.into(),
            producer: Slot::new("producer", true, move |crash| of_producer.producer(RUN, crash)),
            watch: SinkWatch::start(fleet.data().join("out.jsonl")),
            fleet,
            cluster,
            destination,
            outages: Vec::new(),
            outage: None,
            network,
            broker_fault: None,
            _database: database,
        }
    }

    /// The sink.
    pub(crate) fn sink(&self) -> PathBuf {
        self.fleet.data().join("out.jsonl")
    }

    /// Lets time pass, with the dead started again, until `condition`.
    pub(crate) fn wait(&mut self, what: &str, mut condition: impl FnMut(&Self) -> bool) {
        let mut progress = (self.watch.count(), Instant::now());
        loop {
            self.tick();
            if condition(self) {
                return;
            }
            if self.watch.count() != progress.0 {
                progress = (self.watch.count(), Instant::now());
            }
            assert!(progress.1.elapsed() < STANDSTILL, "a standstill, waiting: {what}; {}", self.account());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Slows the destination down, or no longer.
    pub(crate) fn set_slow(&self, is_slow: bool) {
        self.destination.set_delay(if is_slow { SLOW_PACE } else { PACE });
    }

    /// Whether a fault may begin now.
    pub(crate) fn may_begin(&self, fault: Fault) -> bool {
        !fault.is_of_the_broker() || self.broker_fault.is_none()
    }

    /// Whether every fault is over.
    pub(crate) fn is_calm(&self) -> bool {
        let mut slots = self.consumers.iter().chain(&self.collectors).chain([&self.producer]);
        self.broker_fault.is_none()
            && self.outage.is_none()
            && slots.all(|slot| slot.is_done || (slot.is_there() && !slot.is_frozen()))
    }

    /// Begins a fault. It ends by itself.
    pub(crate) fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Kill { who, away, then_at } => self.slot(who).kill(away, then_at),
            Fault::Freeze { who, lasts } => self.slot(who).freeze(lasts),
            Fault::RollConsumers => self.roll_consumers(),
            Fault::Outage { lasts } => {
                self.destination.set_down(true);
                self.outage = Some((Instant::now(), Instant::now() + lasts));
            }
            fault => {
                let (cluster, network) = (Arc::clone(&self.cluster), self.network);
                self.broker_fault = Some(std::thread::spawn(move || strike_broker(&cluster, network, fault)));
            }
        }
    }

    fn roll_consumers(&mut self) {
        for number in 0..CONSUMERS {
            let ends = self.consumers[number].ends.len();
            if self.consumers[number].terminate() {
                // A frozen one ends once it is thawed, by which time it may have been killed.
                self.wait("a consumer ends when asked to", |battle| {
                    battle.consumers[number].ends.len() > ends || !battle.consumers[number].is_there()
                });
            }
        }
    }

    fn slot(&mut self, who: Who) -> &mut Slot {
        let is_active = |slot: &Slot| {
            let log = slot.log();
            !slot.is_frozen() && log.rfind("collecting") > log.rfind("standing by")
        };
        let active = usize::from(is_active(&self.collectors[1]));
        match who {
            Who::Producer => &mut self.producer,
            Who::Consumer(number) => &mut self.consumers[number],
            Who::ActiveCollector => &mut self.collectors[active],
            Who::StandbyCollector => &mut self.collectors[1 - active],
        }
    }

    fn tick(&mut self) {
        for slot in self.consumers.iter_mut().chain(&mut self.collectors).chain([&mut self.producer]) {
            slot.tick();
        }
        if let Some((from, to)) = self.outage.filter(|(_, to)| Instant::now() >= *to) {
            self.destination.set_down(false);
            self.outages.push((from, to));
            self.outage = None;
        }
        if let Some(fault) = self.broker_fault.take_if(|fault| fault.is_finished()) {
            fault.join().expect("a fault of the broker is over");
        }
    }

    /// How things stand, for people.
    pub(crate) fn account(&self) -> String {
        let logs = [&self.consumers, &self.collectors].into_iter().flatten().chain([&self.producer]);
        let mut account = format!(
            "{} settled, {} calls, queues {:?}",
            self.watch.count(),
            self.destination.call_count(),
            self.cluster.messages()
        );
        for slot in logs {
            let log = slot.log();
            let from = log.lines().count().saturating_sub(15);
            let tail: Vec<&str> = log.lines().skip(from).collect();
            write!(account, "\n--- {} {:?}\n{}", slot.name, slot.ends, tail.join("\n")).unwrap();
        }
        account
    }
}

/// Does a fault of the broker from its beginning until the cluster is whole again.
fn strike_broker(cluster: &RabbitMqCluster, network: Network, fault: Fault) {
    match fault {
        Fault::KillNode { node, away } => {
            cluster.kill(node);
            std::thread::sleep(away);
            cluster.start_again(node);
        }
        Fault::FreezeNode { node, lasts } => {
            cluster.freeze(node);
            std::thread::sleep(lasts);
            cluster.go_on(node);
        }
        Fault::RollNodes => {
            for node in 0..NODES {
                cluster.terminate(node);
                cluster.start_again(node);
                cluster.await_whole();
            }
        }
        Fault::MoveLeaders { to } => println!("  {} leaders moved", cluster.move_leaders(to)),
        Fault::Alarm { node, lasts } => {
            cluster.set_alarm(node, true);
            std::thread::sleep(lasts);
            cluster.set_alarm(node, false);
        }
        Fault::Isolate { node, lasts } => {
            let Network::Own(network) = network else { panic!("nothing can be cut off here") };
            isolate(cluster, network, node, lasts);
        }
        Fault::Kill { .. } | Fault::Freeze { .. } | Fault::RollConsumers | Fault::Outage { .. } => {
            panic!("{fault:?} is not about the broker")
        }
    }
    cluster.await_whole();
}

fn isolate(cluster: &RabbitMqCluster, network: OwnNetwork, node: usize, lasts: Duration) {
    let others: Vec<_> =
        (0..NODES).filter(|other| *other != node).map(|other| cluster.address(other)).collect();
    network.cut_off(cluster.address(node), &others);
    std::thread::sleep(lasts);
    network.mend(cluster.address(node), &others);
}
