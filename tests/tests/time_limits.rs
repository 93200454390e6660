//! Items that expire and runs that have a deadline, as a user meets them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use serde_json::Value;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::front_door::write_items;

const ITEMS: u64 = 60;

struct Job<'a> {
    url: &'a str,
    top: &'a str,
    source: &'a str,
    breaker: &'a str,
}

impl Job<'_> {
    fn desk(&self) -> Desk {
        let Self { url, top, source, breaker } = self;
        let desk = Desk::new(&format!(
            r#"
name = "limits"
{top}
[source]
type = "jsonl"
path = "items.jsonl"
{source}
[chunk]
items = 10
[[stage]]
name = "call"
type = "http"
destination = "slow"
concurrency = 2
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
retry = {{ count = 3, interval = "10m" }}
[destination.slow]
breaker = {breaker}
[sink]
type = "jsonl"
path = "out.jsonl"
"#
        ));
        write_items(&desk.path("items.jsonl"), ITEMS);
        desk
    }
}

/// Runs the job to its end and returns its report, which balances.
fn run(desk: &Desk, code: i32) -> Value {
    let began = Instant::now();
    desk.windrow(&["run", "job.toml"]).ended(code, &[]);
    assert!(began.elapsed() < Duration::from_secs(50), "it waited far beyond its time");
    let report = report(&desk.only_run());
    check_balance(&report, ITEMS);
    let outcomes = check_sink(&desk.path("out.jsonl"), ITEMS, true);
    for (outcome, count) in outcomes {
        assert_eq!(report[outcome.as_str()], count, "{report}");
    }
    report
}

#[test]
fn items_that_have_not_begun_in_time_expire_and_are_never_called() {
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(250), fail_every: 0 });
    let job = Job { url: &destination.url(), top: "", source: "expires_after = '2s'", breaker: "true" };
    let report = run(&job.desk(), 3);
    let (succeeded, expired) = (report["succeeded"].as_u64().unwrap(), report["expired"].as_u64().unwrap());
    assert_eq!(succeeded + expired, ITEMS, "{report}");
    assert!(succeeded > 0 && expired > 0, "{report}");
    let called: BTreeSet<String> = destination.calls().into_iter().map(|call| call.key).collect();
    assert_eq!(called.len() as u64, succeeded);
}

#[test]
fn an_item_that_waits_for_a_retry_expires_in_its_time_and_so_does_one_held_by_an_outage() {
    for (breaker, attempts) in
        [("false", 1..=ITEMS), ("{ failures = 3, open = '3s', probe_interval = '3s' }", 3..=20)]
    {
        let destination = Destination::start(Behaviour { delay: Duration::from_millis(1), fail_every: 1 });
        let job = Job { url: &destination.url(), top: "", source: "expires_after = '2s'", breaker };
        let report = run(&job.desk(), 3);
        assert_eq!(report["expired"], ITEMS, "{breaker}: {report}");
        assert!(attempts.contains(&report["attempts"].as_u64().unwrap()), "{breaker}: {report}");
    }
}

#[test]
fn a_run_is_stopped_at_its_deadline_and_balances() {
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(250), fail_every: 0 });
    let job = Job { url: &destination.url(), top: "deadline = '3s'", source: "", breaker: "true" };
    let report = run(&job.desk(), 4);
    let (succeeded, cancelled) =
        (report["succeeded"].as_u64().unwrap(), report["cancelled"].as_u64().unwrap());
    assert_eq!((report["state"].as_str(), succeeded + cancelled), (Some("failed"), ITEMS), "{report}");
    assert!(succeeded > 0 && cancelled > 0, "{report}");
    assert!(report["stop_reason"].as_str().unwrap().contains("`deadline`"), "{report}");
    assert!((destination.call_count() as u64) < ITEMS, "nothing is called for a run that was stopped");
}
