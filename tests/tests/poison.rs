//! Poison: items whose work kills the process that does it, again and again. They end as failed with the reason, and take
//! no other item along.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::FrontDoor;
use windrow_tests::process::Process;
use windrow_tests::rabbitmq_server::RabbitMqServer;

const PATIENCE: Duration = Duration::from_secs(240);

/// Each poison item costs three deaths in company, one alone with the rest of its chunk, if there is one, and three all by
/// itself; two of them may share the first three. A chunk that had to make room for another begins anew.
const DEATHS: RangeInclusive<u32> = 9..=40;

/// A program that kills its parent, the consumer, when its item is poison.
fn job(path: &str) -> String {
    format!(
        r#"
name = "poisoned"
[source]
type = "jsonl"
path = "{path}"
[chunk]
items = 50
[[stage]]
name = "work"
type = "command"
concurrency = 8
argv = ["/bin/sh", "-c", "read item; case $item in *poison*) kill -9 $PPID; sleep 60;; esac; echo \"$item\""]
[sink]
type = "jsonl"
path = "out.jsonl"
order = "arrival"
"#
    )
}

fn write_items(path: &Path, items: u64, poison: [u64; 2]) {
    let mut text = String::new();
    for index in 0..items {
        let kind = if poison.contains(&index) { "poison" } else { "food" };
        writeln!(text, "{{\"n\":{index},\"is\":\"{kind}\"}}").unwrap();
    }
    std::fs::write(path, text).unwrap();
}

/// The poison items failed with the reason, everything else succeeded, once.
fn judge(sink: &Path, run_folder: &Path, items: u64, poison: [u64; 2], deaths: u32) {
    let outcomes = check_sink(sink, items, false);
    let expected = BTreeMap::from([("failed".to_owned(), 2), ("succeeded".to_owned(), items - 2)]);
    assert_eq!(outcomes.into_iter().collect::<BTreeMap<_, _>>(), expected);
    let text = std::fs::read_to_string(sink).unwrap();
    for line in text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        if line["outcome"] == "failed" {
            assert!(poison.contains(&line["item"].as_u64().unwrap()), "{line}");
            assert_eq!(line["error"]["class"], "poison", "{line}");
            assert!(line["error"]["message"].as_str().unwrap().contains("died 3 times"), "{line}");
        }
    }
    let report = report(run_folder);
    check_balance(&report, items);
    assert_eq!(report["state"], "completed_with_failures", "{report}");
    println!("{deaths} deaths; {} duplicates", report["duplicates"]);
    assert!(DEATHS.contains(&deaths), "{deaths} deaths");
}

/// The consumers of a fleet, and the supervisor that starts them again.
struct Supervised {
    fleet: Fleet,
    consumers: Vec<Process>,
    deaths: u32,
}

impl Supervised {
    fn start(fleet: &Fleet, count: usize) -> Self {
        let consumers = (0..count).map(|number| fleet.consumer(number, None)).collect();
        Self { fleet: fleet.clone(), consumers, deaths: 0 }
    }

    fn start_the_dead(&mut self) {
        for (number, consumer) in self.consumers.iter_mut().enumerate() {
            if consumer.ended().is_some() {
                self.deaths += 1;
                *consumer = self.fleet.consumer(number, None);
            }
        }
    }
}

fn fleet_outlives_poison(broker: &str, folder: &Path) {
    const ITEMS: u64 = 2_000;
    const POISON: [u64; 2] = [333, 1_444];
    write_items(&folder.join("items.jsonl"), ITEMS, POISON);
    let fleet = Fleet::new(folder, broker, &job("../items.jsonl"));
    let collector = fleet.collector(None);
    let mut supervised = Supervised::start(&fleet, 2);
    let mut producer = fleet.producer("poisoned", None);
    let began = Instant::now();
    while producer.ended().is_none() {
        let deaths = supervised.deaths;
        assert!(
            began.elapsed() < PATIENCE && deaths <= *DEATHS.end(),
            "{deaths} deaths\n{}",
            collector.log()
        );
        supervised.start_the_dead();
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(producer.wait(PATIENCE).code(), Some(3), "completed with failures: {}", producer.log());
    judge(&fleet.data().join("out.jsonl"), &fleet.run_folder("poisoned"), ITEMS, POISON, supervised.deaths);
    println!("it took {:?}", began.elapsed());
    for log in supervised.consumers.iter().map(Process::log).chain([collector.log(), producer.log()]) {
        assert!(!log.contains("panicked"), "{log}");
    }
}

#[test]
fn a_fleet_on_rabbitmq_outlives_items_that_kill_their_consumers() {
    let (folder, server) = (TempDir::new().unwrap(), RabbitMqServer::start_blocking());
    fleet_outlives_poison(&server.uri(), folder.path());
}

#[test]
fn processes_on_one_folder_outlive_items_that_kill_their_consumers() {
    let folder = TempDir::new().unwrap();
    fleet_outlives_poison(&format!("embedded:{}", folder.path().join("queue").display()), folder.path());
}

#[test]
fn a_run_in_one_process_given_again_and_again_ends_with_its_poison_as_failed() {
    const ITEMS: u64 = 300;
    const POISON: [u64; 2] = [42, 260];
    let folder = TempDir::new().unwrap();
    let door = FrontDoor::new(folder.path(), &job("items.jsonl"), ITEMS);
    write_items(&door.items(), ITEMS, POISON);
    let (mut deaths, began) = (0, Instant::now());
    loop {
        let mut process = door.run(None, &["--quiet"]);
        let ended = process.wait(PATIENCE);
        assert!(began.elapsed() < PATIENCE, "{deaths} deaths, and it does not end: {}", process.log());
        match ended.code() {
            None => {
                deaths += 1;
                assert!(deaths <= *DEATHS.end(), "it does not end: {}", process.log());
            }
            // A program it was just starting when it died has its locks for an instant more.
            Some(1) if process.log().contains("another collector works on") => {
                std::thread::sleep(Duration::from_millis(100));
            }
            code => break assert_eq!(code, Some(3), "{}", process.log()),
        }
    }
    judge(&door.sink(), &door.run_folder(), ITEMS, POISON, deaths);
}
