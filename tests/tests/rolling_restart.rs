//! Every consumer of a fleet is replaced while a run is under way, one after another, as a deployment does it.

use std::collections::HashMap;
use std::time::Duration;

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::write_items;
use windrow_tests::process::{Process, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const ITEMS: u64 = 6_000;
const CONSUMERS: usize = 3;

/// Calls at once, in all consumers together at most `CONSUMERS` times this; 20 ms each.
const CONCURRENCY: usize = 8;

fn job(url: &str) -> String {
    format!(
        "name = \"called\"\n\
         [source]\ntype = \"jsonl\"\npath = \"items.jsonl\"\n\
         [chunk]\nitems = 20\n\
         [[stage]]\nname = \"call\"\ntype = \"http\"\ndestination = \"paced\"\nconcurrency = {CONCURRENCY}\n\
         method = \"POST\"\nurl = \"{url}\"\nbody = \"{{{{ item | tojson }}}}\"\n\
         [sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\n\
         [destination.paced]\nmax_connections = {}\n",
        CONSUMERS * CONCURRENCY
    )
}

/// Nothing is lost, nothing is called twice, no attempt is spent, and each of the old ones leaves cleanly.
#[test]
fn a_rolling_restart_of_all_consumers_loses_nothing_and_repeats_nothing() {
    let folder = TempDir::new().unwrap();
    let server = RabbitMqServer::start_blocking();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(&destination.url()));
    write_items(&fleet.job().with_file_name("items.jsonl"), ITEMS);
    let (_collector, first) = fleet.start();
    let mut consumers: Vec<Process> = vec![first];
    consumers.extend((1..CONSUMERS).map(|number| fleet.consumer(number, None)));
    let mut producer = fleet.producer("rolling", None);

    for number in 0..CONSUMERS {
        let before = destination.call_count();
        wait_until("calls are made", Duration::from_secs(60), || destination.call_count() >= before + 300);
        assert!(producer.ended().is_none(), "the run is over before consumer {number} was replaced");
        let new = fleet.consumer(CONSUMERS + number, None);
        let mut old = consumers.remove(0);
        old.terminate();
        let status = old.wait(Duration::from_secs(60));
        assert!(status.success(), "{status}: {}", old.log());
        assert!(old.log().contains("shutdown=clean"), "{}", old.log());
        consumers.push(new);
    }
    let status = producer.wait(Duration::from_secs(120));
    assert!(status.success(), "{status}");

    let outcomes = check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
    assert_eq!(outcomes.get("succeeded"), Some(&ITEMS));
    let mut calls: HashMap<String, usize> = HashMap::new();
    for call in destination.calls() {
        *calls.entry(call.key).or_default() += 1;
    }
    let repeated: Vec<&String> = calls.iter().filter(|(_, count)| **count > 1).map(|(key, _)| key).collect();
    assert!(repeated.is_empty(), "called more than once: {repeated:?}");
    let report = report(&fleet.run_folder("rolling"));
    check_balance(&report, ITEMS);
    assert_eq!((&report["attempts"], &report["duplicates"]), (&ITEMS.into(), &0.into()), "{report}");
}
