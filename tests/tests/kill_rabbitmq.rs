//! kill -9 of anything, at any point, loses nothing: a run of 200,000 items on RabbitMQ while producer, consumers,
//! collector and the broker node are killed, at named crash points and at random.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use windrow_common::broker::address::connect;
use windrow_common::broker::{Depth, Queue};
use windrow_common::ids::Group;
use windrow_common::job::Job;
use windrow_tests::account::{SinkWatch, check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::process::{Process, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;
use windrow_tests::seeded::Seeded;

const ITEMS: u64 = 200_000;
const RUN: &str = "kills";
const PATIENCE: Duration = Duration::from_secs(300);

/// From an answer given to a copy to the call it allowed: the slots are as many as the items in hand, but after a death of
/// collector or node a call waits for its share of the connections, which comes within 3 s or is not taken. A killed producer
/// stays away for longer, so what it sends again is older than this.
const SLACK: Duration = Duration::from_secs(4);

/// How long the destination takes for a call, and how long from `HURRIED` items on until the kills are done: a run on a
/// fast machine outlasts them too.
const PACE: Duration = Duration::from_millis(3);
const SLOW_PACE: Duration = Duration::from_millis(150);
const HURRIED: usize = 120_000;

/// Crash points, and which pass of them to die at, by role.
const COLLECTOR_POINTS: [&str; 6] = [
    "collector.spooled:7",
    "collector.committed:9",
    "collector.writing:5",
    "collector.written:8",
    "collector.settling:6",
    "collector.report_renaming:2",
];
const CONSUMER_POINTS: [&str; 3] = ["settle.publishing:40", "settle.confirmed:30", "settle.settled:20"];
const PRODUCER_POINTS: [&str; 2] = ["producer.before_publish:20", "producer.after_confirm:3"];

fn job(url: &str) -> String {
    format!(
        r#"
name = "kills"
[source]
type = "jsonl"
path = "../items.jsonl"
[chunk]
items = 100
outstanding = 60
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 400
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
timeout = "30s"
retry = {{ count = 8, interval = "2s", type = "fixed" }}
[destination.paced]
max_connections = 120
[sink]
type = "jsonl"
path = "out.jsonl"
order = "arrival"
"#
    )
}

/// The processes under attack.
struct Attacked {
    fleet: Fleet,
    collector: Process,
    consumers: [Process; 2],
    producer: Process,
    kills: u32,
}

impl Attacked {
    fn kill_one(&mut self, seeded: &mut Seeded) {
        match seeded.below(4) {
            0 => {
                self.kills += u32::from(self.collector.kill());
                self.collector = self.fleet.collector(seeded.pick(&COLLECTOR_POINTS));
            }
            1 => {
                self.kills += u32::from(self.producer.kill());
                // Longer than the slack: what it sends again is then plainly settled already.
                std::thread::sleep(SLACK + Duration::from_millis(500));
                self.producer = self.fleet.producer(RUN, seeded.pick(&PRODUCER_POINTS));
            }
            number => {
                let number = usize::try_from(number - 2).unwrap();
                self.kills += u32::from(self.consumers[number].kill());
                self.consumers[number] = self.fleet.consumer(number, seeded.pick(&CONSUMER_POINTS));
            }
        }
    }

    /// Starts again whatever died at its crash point; each such death is a kill.
    fn start_the_dead(&mut self) {
        if self.collector.ended().is_some() {
            self.kills += 1;
            self.collector = self.fleet.collector(None);
        }
        for number in 0..self.consumers.len() {
            if self.consumers[number].ended().is_some() {
                self.kills += 1;
                self.consumers[number] = self.fleet.consumer(number, None);
            }
        }
        if self.producer.ended().is_some_and(|status| !status.success()) {
            self.kills += 1;
            self.producer = self.fleet.producer(RUN, None);
        }
    }
}

#[test]
fn kill_9_of_anything_at_any_point_loses_nothing_and_repeats_nothing_settled() {
    let folder = TempDir::new().unwrap();
    let mut items = String::new();
    for index in 0..ITEMS {
        writeln!(items, "{{\"n\":{index}}}").unwrap();
    }
    std::fs::write(folder.path().join("items.jsonl"), items).unwrap();
    let destination = Destination::start(Behaviour { delay: PACE, fail_every: 400 });
    let mut server = RabbitMqServer::start_blocking();
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(&destination.url()));
    let watch = SinkWatch::start(fleet.data().join("out.jsonl"));
    let mut seeded = Seeded::from_environment();
    let mut attacked = Attacked {
        collector: fleet.collector(None),
        consumers: [fleet.consumer(0, None), fleet.consumer(1, None)],
        producer: fleet.producer(RUN, None),
        fleet: fleet.clone(),
        kills: 0,
    };
    wait_until("the first items settle", PATIENCE, || watch.count() > 1_000);

    let mut node_kills = 0;
    while attacked.kills < 30 || node_kills < 2 {
        if watch.count() > HURRIED {
            destination.set_delay(SLOW_PACE);
        }
        assert!(watch.count() < 190_000, "the run must outlast the kills: {} so far", attacked.kills);
        if attacked.kills >= 10 * (node_kills + 1) && node_kills < 2 {
            server.kill9().unwrap();
            node_kills += 1;
            server.restart_blocking();
        }
        attacked.kill_one(&mut seeded);
        let pause = Instant::now() + Duration::from_millis(300 + seeded.below(900));
        while Instant::now() < pause {
            attacked.start_the_dead();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    destination.set_delay(PACE);
    println!("{} kills, {node_kills} of the node, with {} items settled", attacked.kills, watch.count());

    wait_until("the producer sees the end of the run", PATIENCE, || {
        attacked.start_the_dead();
        attacked.producer.ended().is_some()
    });
    judge(&attacked, &watch, &destination);
    drop(attacked);
    assert_queues_are_empty(&server, &fleet);
}

fn judge(attacked: &Attacked, watch: &SinkWatch, destination: &Destination) {
    let fleet = &attacked.fleet;
    let outcomes = check_sink(&fleet.data().join("out.jsonl"), ITEMS, false);
    assert_eq!(outcomes.get("succeeded"), Some(&ITEMS), "{outcomes:?}");
    let report = report(&fleet.run_folder(RUN));
    check_balance(&report, ITEMS);
    let calls = destination.calls();
    println!("{} calls for {ITEMS} items; {} duplicates", calls.len(), report["duplicates"]);
    assert!(report["duplicates"].as_u64().unwrap() > 0, "without a duplicate this tested nothing: {report}");
    let again = watch.called_after_settled(&calls, SLACK);
    assert!(
        again.is_empty(),
        "{} settled items ran again, such as {:?}",
        again.len(),
        &again[..again.len().min(5)]
    );
    for name in ["collector", "consumer-0", "consumer-1", "producer"] {
        let log =
            std::fs::read_to_string(fleet.data().parent().unwrap().join(format!("{name}.log"))).unwrap();
        assert!(!log.contains("panicked"), "{name} panicked:\n{log}");
        assert!(
            !log.contains(windrow_tests::rabbitmq_server::PASSWORD),
            "{name} shows the broker's password"
        );
    }
}

fn assert_queues_are_empty(server: &RabbitMqServer, fleet: &Fleet) {
    let job = Job::load(&fleet.job()).unwrap();
    let key = job.stage_key(&job.stages[0]);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = connect(&server.uri().parse().unwrap(), &Group::main()).await.unwrap();
        for queue in [
            Queue::Work(key.clone()),
            Queue::Due(key.clone()),
            Queue::Held(key),
            Queue::Completion,
            Queue::Parking,
        ] {
            assert_eq!(broker.depth(&queue).await.unwrap(), Depth::default(), "{queue:?}");
        }
        broker.close(Duration::from_secs(5)).await;
    });
}
