//! Several collectors on one ledger in PostgreSQL: one is active, and when it is stopped or killed another takes over,
//! without loss or double.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use windrow_collector::control::socket;
use windrow_tests::account::{SinkWatch, check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::postgres_server::{PASSWORD, PostgresServer};
use windrow_tests::process::{Process, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const ITEMS: u64 = 20_000;
const RUN: &str = "handed-on";
const PATIENCE: Duration = Duration::from_secs(120);

/// The promise.
const TAKE_OVER: Duration = Duration::from_secs(10);

/// How long the destination takes for a call, and how long while a collector is to be killed in mid-run.
const PACE: Duration = Duration::from_millis(20);
const SLOW_PACE: Duration = Duration::from_millis(200);

fn job(url: &str) -> String {
    format!(
        r#"
name = "paced"
[source]
type = "jsonl"
path = "../items.jsonl"
[chunk]
items = 50
outstanding = 40
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 200
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
[destination.paced]
max_connections = 60
[sink]
type = "jsonl"
path = "out.jsonl"
order = "arrival"
"#
    )
}

/// Starts a collector and waits until it stands by, or works.
fn collector(fleet: &Fleet, name: &str, until: &str) -> Process {
    let collector = fleet.collector_named(name, None);
    wait_until(&format!("collector {name} says `{until}`"), PATIENCE, || collector.log().contains(until));
    collector
}

/// Waits until a collector that stood by works, and says how long that took.
fn taken_over_by(collector: &Process) -> Duration {
    let began = Instant::now();
    wait_until("another takes over", PATIENCE, || collector.log().contains("collecting"));
    let took = began.elapsed();
    println!("taken over after {took:.1?}");
    took
}

#[test]
fn another_collector_takes_over_from_one_that_is_stopped_and_from_one_that_is_killed() {
    let folder = TempDir::new().unwrap();
    let mut items = String::new();
    for index in 0..ITEMS {
        writeln!(items, "{{\"n\":{index}}}").unwrap();
    }
    std::fs::write(folder.path().join("items.jsonl"), items).unwrap();
    let destination = Destination::start(Behaviour { delay: PACE, fail_every: 0 });
    let database = PostgresServer::start();
    let broker = RabbitMqServer::start_blocking();
    let fleet =
        Fleet::new(folder.path(), &broker.uri(), &job(&destination.url())).with_ledger(&database.url());
    let watch = SinkWatch::start(fleet.data().join("out.jsonl"));
    let mut first = collector(&fleet, "first", "collecting");
    let mut second = collector(&fleet, "second", "standing by");
    let _consumer = fleet.consumer(0, None);
    let mut producer = fleet.producer(RUN, None);
    wait_until("items settle", PATIENCE, || watch.count() > 3_000);
    assert!(!second.log().contains("collecting"), "one is active: {}", second.log());

    first.stop();
    let stopped = taken_over_by(&second);
    destination.set_delay(SLOW_PACE);
    let settled = watch.count();
    wait_until("more items settle", PATIENCE, || watch.count() > settled);
    assert!(watch.count() < 10_000, "in mid-run: {}", watch.count());
    first.go_on();
    assert_eq!(first.wait(PATIENCE).code(), Some(1));
    assert!(first.log().contains("another collector has taken over this ledger"), "{}", first.log());

    let mut third = collector(&fleet, "third", "standing by");
    second.kill();
    let killed = taken_over_by(&third);
    assert!(watch.count() < 15_000, "in mid-run: {}", watch.count());
    destination.set_delay(PACE);
    assert_eq!(producer.wait(PATIENCE).code(), Some(0), "{}", producer.log());

    let fourth = collector(&fleet, "fourth", "standing by");
    third.kill();
    let idle = taken_over_by(&fourth);
    wait_until("commands are taken", PATIENCE, || socket(&fleet.data()).exists());

    let outcomes = check_sink(&fleet.data().join("out.jsonl"), ITEMS, false);
    assert_eq!(outcomes.get("succeeded"), Some(&ITEMS), "{outcomes:?}");
    check_balance(&report(&fleet.run_folder(RUN)), ITEMS);
    for log in [first.log(), second.log(), third.log(), fourth.log()] {
        assert!(!log.contains("panicked") && !log.contains(PASSWORD), "{log}");
    }
    assert!(stopped.max(killed).max(idle) < TAKE_OVER, "{stopped:?} {killed:?} {idle:?}");
}
