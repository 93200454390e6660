//! `effect = "at-most-once"`: whatever is killed, no item is called twice, and what is in doubt ends as unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::{Desk, json_lines};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::write_items;
use windrow_tests::process::wait_until;
use windrow_tests::rabbitmq_server::RabbitMqServer;
use windrow_tests::seeded::Seeded;

/// No step takes longer. A claim whose claimant is gone runs out after the timeout of a call and 30 s.
const PATIENCE: Duration = Duration::from_secs(180);

/// `concurrency`.
const SLOTS: u64 = 4;

/// Items in doubt when a consumer is killed, at most: those being called, and those whose outcome was on its way.
const IN_DOUBT: u64 = 4 * SLOTS;

fn job(url: &str, path: &str) -> String {
    format!(
        r#"
name = "once"
[source]
type = "jsonl"
path = "{path}"
id = "n"
[chunk]
items = 50
[[stage]]
name = "pay"
type = "http"
effect = "at-most-once"
destination = "bank"
concurrency = {SLOTS}
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
timeout = "2s"
retry = {{ count = 3, interval = "10ms", type = "fixed" }}
[destination.bank]
max_connections = 10
breaker = false
[sink]
type = "jsonl"
path = "out.jsonl"
order = "arrival"
"#
    )
}

/// How often each item was called, by index.
fn calls(destination: &Destination) -> BTreeMap<u64, u32> {
    let mut calls = BTreeMap::new();
    for call in destination.calls() {
        *calls.entry(call.key.rsplit('/').next().unwrap().parse().unwrap()).or_default() += 1;
    }
    calls
}

/// The indexes of the sink's lines with this outcome.
fn ended(lines: &[Value], outcome: &str) -> BTreeSet<u64> {
    lines
        .iter()
        .filter(|line| line["outcome"] == outcome)
        .map(|line| line["item"].as_u64().unwrap())
        .collect()
}

fn assert_called_once_at_most(calls: &BTreeMap<u64, u32>) {
    let twice: Vec<_> = calls.iter().filter(|(_, count)| **count > 1).collect();
    assert!(
        twice.is_empty(),
        "{} items were called more than once, such as {:?}",
        twice.len(),
        twice.first()
    );
}

#[test]
fn three_consumers_killed_at_random_call_no_item_twice_and_what_is_in_doubt_is_unknown() {
    const ITEMS: u64 = 3_000;
    const KILLS: u64 = 12;
    let (server, folder) = (RabbitMqServer::start_blocking(), TempDir::new().unwrap());
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let bank = Destination::start(Behaviour { delay: Duration::from_millis(50), fail_every: 301 });
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(&bank.url(), "../items.jsonl"));
    let mut collector = fleet.collector(None);
    let mut consumers = [0, 1, 2].map(|number| fleet.consumer(number, None));
    let mut producer = fleet.producer("r1", None);
    let mut seeded = Seeded::from_environment();
    for kill in 0..KILLS {
        let enough = bank.call_count() + 60;
        wait_until("it makes calls", PATIENCE, || bank.call_count() >= enough);
        if kill == KILLS / 2 {
            assert!(collector.kill());
            collector = fleet.collector(None);
            continue;
        }
        let number = usize::try_from(seeded.below(3)).unwrap();
        assert!(consumers[number].kill(), "{}", consumers[number].log());
        consumers[number] = fleet.consumer(number, None);
    }
    assert!(producer.ended().is_none(), "the kills fell in mid-run");
    assert_eq!(producer.wait(PATIENCE).code(), Some(3), "{}", producer.log());

    let calls = calls(&bank);
    assert_called_once_at_most(&calls);
    let sink = fleet.data().join("out.jsonl");
    let outcomes = check_sink(&sink, ITEMS, false);
    let report = report(&fleet.run_folder("r1"));
    check_balance(&report, ITEMS);
    println!("{outcomes:?}, {} calls", calls.len());
    let lines = json_lines(&std::fs::read_to_string(&sink).unwrap());
    let (succeeded, unknown) = (ended(&lines, "succeeded"), ended(&lines, "unknown"));
    assert_eq!((succeeded.len() + unknown.len()) as u64, ITEMS, "{outcomes:?}");
    assert!(succeeded.iter().all(|index| calls.contains_key(index)));
    let refused = bank.call_count() as u64 / 301;
    let in_doubt = unknown.len() as u64;
    assert!(in_doubt > refused, "without an item in doubt for a kill this tested nothing: {outcomes:?}");
    assert!(in_doubt <= refused + (KILLS - 1) * IN_DOUBT, "no more than was under way: {outcomes:?}");
    assert!(
        lines.iter().all(|line| line["id"].as_str().and_then(|id| id.parse().ok()) == line["item"].as_u64()),
        "{}",
        lines[0]
    );
    drop(collector);
}

#[test]
fn a_killed_run_ends_with_unknowns_that_are_listed_and_run_again_only_when_asked_for() {
    const ITEMS: u64 = 60;
    let bank = Destination::start(Behaviour { delay: Duration::from_millis(100), fail_every: 0 });
    let desk = Desk::new(&job(&bank.url(), "items.jsonl"));
    write_items(&desk.path("items.jsonl"), ITEMS);
    let run = ["run", "job.toml", "--run", "r1", "--consumers", "1"];
    let killed = desk.start(&run);
    wait_until("it makes calls", PATIENCE, || bank.call_count() >= 10);
    killed.kill();
    bank.set_delay(Duration::ZERO);
    desk.start(&run).wait_at_most(PATIENCE).ended(3, &["unknown", "claim_expired"]);
    assert_called_once_at_most(&calls(&bank));
    let lines = desk.lines("out.jsonl");
    let unknown = ended(&lines, "unknown");
    assert!((1..=IN_DOUBT).contains(&(unknown.len() as u64)), "{unknown:?}");
    assert_eq!(ended(&lines, "succeeded").len() + unknown.len(), usize::try_from(ITEMS).unwrap());
    check_balance(&report(&desk.only_run()), ITEMS);

    let listed = desk.windrow(&["failures", "r1", "--json"]).ended(0, &[]);
    let listed: BTreeSet<u64> =
        json_lines(&listed.out).iter().map(|row| row["item"].as_u64().unwrap()).collect();
    assert_eq!(listed, unknown);
    let before = bank.call_count();
    let left = "with an unknown end left alone";
    desk.windrow(&["retry", "r1"]).ended(1, &[left, r#".outcome == "unknown""#]);
    desk.windrow(&["retry", "r1", "--where", ".error.class == \"claim_expired\""]).ended(1, &[left]);
    assert_eq!(bank.call_count(), before);
    let asked = ["retry", "r1", "--where", ".outcome == \"unknown\""];
    desk.windrow(&asked).ended(0, &[]);
    let again: BTreeSet<String> = bank.calls()[before..].iter().map(|call| call.key.clone()).collect();
    let expected: BTreeSet<String> = unknown.iter().map(|index| format!("r1/pay/main/{index}")).collect();
    assert_eq!(again, expected);
    // They have had their second chance.
    std::fs::remove_file(desk.path("out.retry-r1.jsonl")).unwrap();
    desk.windrow(&asked).ended(1, &["run again"]);
    assert_eq!(bank.call_count(), before + unknown.len());
}
