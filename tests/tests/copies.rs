//! Copies of what a live consumer is still working on.

use std::collections::BTreeMap;
use std::time::Duration;

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::write_items;
use windrow_tests::metrics::Metrics;
use windrow_tests::process::wait_until;
use windrow_tests::proxy::Proxy;
use windrow_tests::rabbitmq_server::{PASSWORD, RabbitMqServer, USER};

const ITEMS: u64 = 6;
const PATIENCE: Duration = Duration::from_secs(90);

/// How long the calls take that are cut off.
const LONG_CALL: Duration = Duration::from_secs(15);

/// A consumer names a chunk once it has worked on it for five seconds, and then each second.
const LONG_CHUNKS: &str = "windrow_long_chunks";

fn job(url: &str) -> String {
    format!(
        r#"
name = "cut"
[source]
type = "jsonl"
path = "../items.jsonl"
[chunk]
items = 3
[[stage]]
name = "call"
type = "http"
destination = "slow"
concurrency = 2
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
[destination.slow]
[sink]
type = "jsonl"
path = "out.jsonl"
"#
    )
}

/// Both connections of a consumer are cut while it waits for two calls. The broker gives what it held to another
/// consumer, which leaves those items alone until the first has ended them, and runs the others.
#[test]
fn calls_that_outlive_their_connection_are_made_once() {
    let (folder, server) = (TempDir::new().unwrap(), RabbitMqServer::start_blocking());
    let destination = Destination::start(Behaviour { delay: LONG_CALL, fail_every: 0 });
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(&destination.url()));
    let proxy = Proxy::start(server.port());
    let way = format!("amqp://{USER}:{PASSWORD}@{}/%2f", proxy.address);
    let collector = fleet.collector(None);
    wait_until("the collector collects", PATIENCE, || collector.log().contains("collecting"));
    let first = fleet.by_way_of(&way).watched_consumer(0);
    wait_until("the consumer consumes", PATIENCE, || first.log().contains("consuming"));
    let mut producer = fleet.producer("cut", None);
    wait_until("two calls are under way", PATIENCE, || destination.call_count() == 2);
    let second = fleet.watched_consumer(1);
    wait_until("the other consumer consumes", PATIENCE, || second.log().contains("consuming"));
    let (first, second) = (Metrics::of(&first), Metrics::of(&second));
    // Counted once the collector has been told.
    wait_until("the calls are named", PATIENCE, || first.sum(LONG_CHUNKS) >= 1.0);

    assert_eq!(destination.call_count(), 2, "the cut falls into the calls");
    destination.set_delay(Duration::from_millis(10));
    proxy.cut();
    let status = producer.wait(PATIENCE);
    assert!(status.success(), "{status}: {}", producer.log());

    let mut calls: BTreeMap<String, usize> = BTreeMap::new();
    for call in destination.calls() {
        *calls.entry(call.key).or_default() += 1;
    }
    assert!(calls.len() == 6 && calls.values().all(|times| *times == 1), "{calls:?}");
    assert!(first.sum("windrow_chunks_lost_total") >= 1.0, "the first consumer lost what it held");
    assert!(second.sum("windrow_copies_held_total") >= 1.0, "the other had a copy, and waited");
    check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
    check_balance(&report(&fleet.run_folder("cut")), ITEMS);
}
