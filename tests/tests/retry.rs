//! `windrow retry`: what failed in a run, as a run of its own.

use std::collections::BTreeSet;
use std::time::Duration;

use windrow_tests::account::{check_balance, report};
use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::front_door::write_items;
use windrow_tests::process::wait_until;

const ITEMS: u64 = 300;

fn job(url: &str) -> String {
    format!(
        r#"
name = "calls"
[source]
type = "jsonl"
path = "items.jsonl"
[chunk]
items = 20
[[stage]]
name = "call"
type = "http"
destination = "frail"
concurrency = 8
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
retry = {{ count = 0, interval = "10ms", type = "fixed" }}
[destination.frail]
max_connections = 4
breaker = {{ failures = 1000 }}
[sink]
type = "jsonl"
path = "out.jsonl"
"#
    )
}

/// The indexes of the sink's failed items.
fn failed(desk: &Desk, sink: &str) -> BTreeSet<u64> {
    let lines = desk.lines(sink);
    let failed = lines.iter().filter(|line| line["outcome"] == "failed");
    failed.map(|line| line["item"].as_u64().unwrap()).collect()
}

#[test]
fn what_failed_is_run_again_with_its_indexes_and_keys_and_a_killed_retry_goes_on() {
    let frail = Destination::start(Behaviour { delay: Duration::from_millis(2), fail_every: 5 });
    let desk = Desk::new(&job(&frail.url()));
    write_items(&desk.path("items.jsonl"), ITEMS);
    desk.windrow(&["run", "job.toml", "--run", "r1"]).ended(3, &[]);
    let failed = failed(&desk, "out.jsonl");
    assert_eq!(failed.len() as u64, ITEMS / 5);

    // A corrected job file: another destination, so another hash.
    let sound = Destination::start(Behaviour { delay: Duration::from_millis(100), fail_every: 0 });
    desk.write("corrected.toml", job(&sound.url()));
    let retry = ["retry", "r1", "--job", "corrected.toml"];
    let killed = desk.start(&retry);
    wait_until("it makes calls", Duration::from_secs(60), || sound.call_count() >= 10);
    killed.kill();
    sound.set_delay(Duration::ZERO);
    let said = desk.windrow(&retry).ended(0, &["resuming run", "60 items of run r1 again"]);
    let lines = desk.lines("out.retry-r1.jsonl");
    let again: Vec<u64> = lines.iter().map(|line| line["item"].as_u64().unwrap()).collect();
    assert_eq!(
        again,
        failed.iter().copied().collect::<Vec<_>>(),
        "each once, in the order of the input: {said}"
    );
    assert!(lines.iter().all(|line| line["outcome"] == "succeeded"), "{said}");
    let keys: BTreeSet<String> = sound.calls().into_iter().map(|call| call.key).collect();
    let expected: BTreeSet<String> = failed.iter().map(|index| format!("r1/call/main/{index}")).collect();
    assert_eq!(keys, expected, "the root run's keys, and of failed items only");
    let calls = sound.calls();
    let bodies = calls.iter().all(|call| {
        let index = call.key.rsplit('/').next().unwrap();
        let item: serde_json::Value = serde_json::from_slice(&call.body).unwrap();
        item["n"] == index.parse::<u64>().unwrap()
    });
    assert!(bodies, "each index stands for its item");

    let runs = std::fs::read_dir(desk.path(".windrow/runs")).unwrap().map(|entry| entry.unwrap().path());
    let child = runs.into_iter().find(|folder| !folder.ends_with("r1")).unwrap();
    let report = report(&child);
    check_balance(&report, ITEMS / 5);
    assert_eq!((&report["root_run"], &report["succeeded"]), (&"r1".into(), &(ITEMS / 5).into()), "{report}");
    desk.windrow(&["run", "job.toml"]).ended(1, &["the sink", "exists"]);
}

#[test]
fn a_retry_takes_what_the_filter_takes_and_says_why_it_cannot() {
    let frail = Destination::start(Behaviour { delay: Duration::from_millis(2), fail_every: 5 });
    let desk = Desk::new(&job(&frail.url()));
    write_items(&desk.path("items.jsonl"), ITEMS);
    desk.windrow(&["run", "job.toml", "--run", "r1"]).ended(3, &[]);
    let failed = failed(&desk, "out.jsonl");
    let below = failed.iter().filter(|index| **index < 100).count();

    desk.windrow(&["retry", "r1", "--where", ".item <"]).ended(2, &["--where"]);
    desk.windrow(&["retry", "r1", "--where", ".item > 1000"]).ended(1, &["--where is true"]);
    desk.write("other.toml", job(&frail.url()));
    desk.windrow(&["retry", "r1"]).ended(2, &["job.toml", "other.toml", "--job"]);
    std::fs::remove_file(desk.path("other.toml")).unwrap();

    let said = desk.windrow(&["retry", "r1", "--where", ".item < 100 and .error.status == 503"]);
    assert!(said.err.contains(&format!("{below} items of run r1 again")), "{said}");
    assert_eq!(desk.lines("out.retry-r1.jsonl").len(), below, "{said}");
    desk.windrow(&["retry", "r1"]).ended(1, &["out.retry-r1.jsonl exists"]);

    desk.write("items.jsonl", "{\"n\":1}\n");
    desk.windrow(&["retry", "r1"]).ended(1, &["its sources have changed", "items.jsonl"]);
}
