//! Pausing, resuming and cancelling runs, as an operator does it.

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use windrow_common::broker::Queue;
use windrow_common::broker::address::connect;
use windrow_common::ids::Group;
use windrow_common::job::Job;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::write_items;
use windrow_tests::process::{binary, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// What is said of a run reaches whoever listens well within this.
const TOLD: Duration = Duration::from_secs(2);

/// Without a call for this long, none is made: at the paces here they come every few milliseconds.
const SILENCE: Duration = Duration::from_secs(1);

/// What was said while somebody was not there is told again within this.
const TOLD_AGAIN: Duration = Duration::from_secs(6);

/// Calls at the destination's pace, four at once, in chunks of ten.
fn job(url: &str, source: &str) -> String {
    format!(
        r#"
name = "called"
[source]
type = "jsonl"
path = "{source}"
[chunk]
items = 10
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 8
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
[destination.paced]
max_connections = 4
[sink]
type = "jsonl"
path = "out.jsonl"
"#
    )
}

fn paced(delay_ms: u64) -> Destination {
    Destination::start(Behaviour { delay: Duration::from_millis(delay_ms), fail_every: 0 })
}

/// A fleet whose job reads so many items from beside its job file.
fn fleet(folder: &Path, broker: &str, destination: &Destination, items: u64) -> Fleet {
    let fleet = Fleet::new(folder, broker, &job(&destination.url(), "items.jsonl"));
    write_items(&fleet.job().with_file_name("items.jsonl"), items);
    fleet
}

fn windrow(data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("windrow"));
    command.args(arguments).arg("--data-dir").arg(data).env_remove("WINDROW_BROKER").output().unwrap()
}

#[track_caller]
fn command(data: &Path, arguments: &[&str]) {
    let output = windrow(data, arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

fn status(data: &Path, run: &str) -> Value {
    serde_json::from_slice::<Vec<Value>>(&windrow(data, &["status", run, "--json"]).stdout).unwrap().remove(0)
}

fn more_calls(destination: &Destination, more: usize, at_most: Duration) {
    let before = destination.call_count();
    wait_until("it makes calls", at_most, || destination.call_count() >= before + more);
}

/// Waits until no call has been made for a while, and checks that the last one was made within `within` of `from`, and
/// that some items are still to be called.
#[track_caller]
fn assert_falls_silent(destination: &Destination, from: Instant, within: Duration, items: u64) {
    let last = || destination.calls().last().map_or(from, |call| call.at);
    wait_until("the calls stop", within + SILENCE, || last().elapsed() >= SILENCE);
    let after = last().saturating_duration_since(from);
    assert!(after <= within, "calls went on for {after:?}");
    assert!((destination.call_count() as u64) < items, "the run must outlast the test");
}

/// Checks that each item was called once.
fn assert_each_called_once(destination: &Destination, items: u64) {
    let calls = destination.calls();
    let keys: HashSet<&str> = calls.iter().map(|call| call.key.as_str()).collect();
    assert_eq!((calls.len() as u64, keys.len() as u64), (items, items));
}

/// How many chunks are in the held queue of the fleet's stage.
fn held(broker: &str, fleet: &Fleet) -> u64 {
    let job = Job::load(&fleet.job()).unwrap();
    let queue = Queue::Held(job.stage_key(&job.stages[0]));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let broker = connect(&broker.parse().unwrap(), &Group::main()).await.unwrap();
        let depth = broker.depth(&queue).await.unwrap();
        broker.close(Duration::from_secs(5)).await;
        depth.ready
    })
}

#[test]
fn a_command_that_cannot_be_obeyed_says_what_to_do() {
    let destination = paced(5);
    let desk = Desk::new(&job(&destination.url(), "items.jsonl"));
    write_items(&desk.path("items.jsonl"), 1_000);
    desk.windrow(&["pause", "nightly"]).ended(1, &["no run has left a ledger in .windrow", "--data-dir"]);

    let running = desk.start(&["run", "job.toml", "--run", "nightly-1"]);
    wait_until("it makes calls", PATIENCE, || destination.call_count() > 0);
    desk.windrow(&["pause", "weekly"])
        .ended(1, &["there is no run `weekly` in .windrow; those that have not ended: nightly-1"]);
    let watching = desk.start(&["watch", "nightly"]);
    let said = desk.windrow(&["cancel", "nightly"]).ended(0, &[]);
    assert!(said.out.contains("run nightly-1 is being cancelled"), "{said}");
    running.wait().ended(5, &[]);
    watching.wait().ended(5, &["run       nightly-1 of called", "state     cancelled"]);

    desk.windrow(&["resume", "nightly"])
        .ended(1, &["no live collector works on .windrow", "windrow-collector", "--data-dir"]);
    desk.windrow(&["pause", "weekly"]).ended(1, &["every run there has ended"]);
}

#[test]
fn a_paused_run_of_windrow_run_makes_no_call_survives_a_ctrl_c_and_completes_once_resumed() {
    const ITEMS: u64 = 600;
    let destination = paced(20);
    let desk = Desk::new(&job(&destination.url(), "items.jsonl"));
    write_items(&desk.path("items.jsonl"), ITEMS);
    let running = desk.start(&["run", "job.toml", "--run", "r1"]);
    wait_until("it makes calls", PATIENCE, || destination.call_count() >= 100);
    desk.windrow(&["pause", "r1"]).ended(0, &[]);
    assert_falls_silent(&destination, Instant::now(), TOLD, ITEMS);
    running.wait_for("paused");
    running.interrupt();
    running.wait().ended(130, &[]);

    let running = desk.start(&["run", "job.toml", "--run", "r1"]);
    running.wait_for("paused");
    desk.windrow(&["resume", "r1"]).ended(0, &[]);
    running.wait().ended(0, &[]);
    check_sink(&desk.path("out.jsonl"), ITEMS, true);
    let report = report(&desk.only_run());
    check_balance(&report, ITEMS);
    assert!(report["holds"].as_u64() > Some(0), "{report}");
    assert_each_called_once(&destination, ITEMS);
}

#[test]
fn a_paused_run_of_a_fleet_waits_in_the_held_queue_and_a_late_consumer_leaves_it_there() {
    const ITEMS: u64 = 1_500;
    let (folder, destination) = (TempDir::new().unwrap(), paced(20));
    let server = RabbitMqServer::start_blocking();
    let fleet = fleet(folder.path(), &server.uri(), &destination, ITEMS);
    let (collector, mut consumer) = fleet.start();
    let mut producer = fleet.producer("r1", None);
    wait_until("it makes calls", PATIENCE, || destination.call_count() >= 100);

    command(&fleet.data(), &["pause", "r1"]);
    assert_falls_silent(&destination, Instant::now(), TOLD, ITEMS);
    assert!(held(&server.uri(), &fleet) > 100, "the chunks wait in the held queue");
    command(&fleet.data(), &["resume", "r1"]);
    more_calls(&destination, 20, TOLD);

    consumer.terminate();
    assert!(consumer.wait(PATIENCE).success());
    command(&fleet.data(), &["pause", "r1"]);
    destination.set_delay(Duration::from_millis(50));
    let late = fleet.consumer(1, None);
    wait_until("the late consumer consumes", PATIENCE, || late.log().contains("consuming"));
    assert_falls_silent(&destination, Instant::now(), TOLD_AGAIN, ITEMS);

    destination.set_delay(Duration::from_millis(5));
    command(&fleet.data(), &["resume", "r1"]);
    assert_eq!(producer.wait(PATIENCE).code(), Some(0), "{}{}", producer.log(), collector.log());
    check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
    check_balance(&report(&fleet.run_folder("r1")), ITEMS);
    assert_each_called_once(&destination, ITEMS);
    assert_eq!(held(&server.uri(), &fleet), 0);
}

#[test]
fn a_cancelled_run_closes_its_balance_without_its_producer_and_what_comes_later_is_late() {
    const ITEMS: u64 = 100_000;
    let (folder, destination) = (TempDir::new().unwrap(), paced(20));
    let broker = format!("embedded:{}", folder.path().join("broker").display());
    let fleet = fleet(folder.path(), &broker, &destination, ITEMS);
    let (_collector, _consumer) = fleet.start();
    let mut producer = fleet.producer("r1", None);
    wait_until("it makes calls", PATIENCE, || destination.call_count() >= 100);
    // Four calls that outlast the collector's wait for the producer.
    destination.set_delay(Duration::from_secs(12));
    more_calls(&destination, 4, PATIENCE);
    assert!(producer.kill(), "it was still publishing");
    command(&fleet.data(), &["cancel", "r1"]);
    let folder = fleet.run_folder("r1");
    wait_until("the run is cancelled", PATIENCE, || report(&folder)["state"] == "cancelled");

    let report = report(&folder);
    check_balance(&report, report["accepted"].as_u64().unwrap());
    assert!(report["cancelled"].as_u64() > Some(0) && report["succeeded"].as_u64() > Some(0), "{report}");
    let mut again = fleet.producer("r1", None);
    assert_eq!(again.wait(PATIENCE).code(), Some(5), "{}", again.log());
    wait_until("the last calls end", PATIENCE, || status(&fleet.data(), "r1")["late"].as_u64() >= Some(4));
    assert_eq!(status(&fleet.data(), "r1")["succeeded"], report["succeeded"]);
}
