//! A destination that is down for a while: its breaker keeps items from it, and no item fails for that.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::write_items;
use windrow_tests::metrics::Metrics;
use windrow_tests::process::wait_until;
use windrow_tests::rabbitmq_server::RabbitMqServer;

const ITEMS: u64 = 200;

/// Calls that may fail before the breaker opens: those in a row, and those under way by then.
const BEFORE_THE_TRIP: u64 = 3 + 3;

/// `max_connections`: calls that may be under way when the destination goes down, and fail too.
const UNDER_WAY: u64 = 4;

/// No step of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn job(url: &str, items: &str) -> String {
    format!(
        r#"
name = "outage"
[source]
type = "jsonl"
path = "{items}"
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
retry = {{ count = 1, interval = "10ms", type = "fixed" }}
[destination.frail]
max_connections = 4
breaker = {{ failures = 3, open = "1s", probe_interval = "1s" }}
[sink]
type = "jsonl"
path = "out.jsonl"
"#
    )
}

#[test]
fn an_outage_costs_a_few_calls_and_probes_and_every_item_waits_it_out() {
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    let desk = Desk::new(&job(&destination.url(), "items.jsonl"));
    write_items(&desk.path("items.jsonl"), ITEMS);
    let running = desk.start(&["run", "job.toml", "--consumers", "1"]);
    wait_until("it makes calls", PATIENCE, || destination.call_count() >= 40);

    destination.set_down(true);
    let (began, before) = (Instant::now(), destination.call_count());
    running.wait_for("breaker open");
    std::thread::sleep(Duration::from_secs(6));
    let during = (destination.call_count() - before) as u64;
    let probes = began.elapsed().as_secs() + 1;
    assert!(
        during <= BEFORE_THE_TRIP + probes,
        "{during} calls, and {probes} probes at most\n{}",
        running.err()
    );
    wait_until("it is probed", PATIENCE, || destination.call_count() - before >= 3 + 2);

    destination.set_down(false);
    let said = running.wait().ended(0, &[]);
    let report = report(&desk.only_run());
    check_balance(&report, ITEMS);
    assert_eq!(report["succeeded"], ITEMS, "{said}");
    assert!(report["holds"].as_u64().unwrap() > 0, "{report}");
    check_sink(&desk.path("out.jsonl"), ITEMS, true);
}

/// On RabbitMQ: what the consumer holds goes back to the broker within 5 s, by its own count and the broker's.
#[test]
fn on_rabbitmq_an_outage_gives_back_every_delivery_and_every_item_waits_it_out() {
    let server = RabbitMqServer::start_blocking();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    let folder = TempDir::new().unwrap();
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(&destination.url(), "../items.jsonl"));
    let _collector = fleet.collector(None);
    let consumer = fleet.watched_consumer(0);
    let metrics = Metrics::of(&consumer);
    let mut producer = fleet.producer("outage", None);
    wait_until("it makes calls", PATIENCE, || destination.call_count() >= 40);

    destination.set_down(true);
    let (began, before) = (Instant::now(), destination.call_count());
    wait_until("the breaker opens", PATIENCE, || consumer.log().contains("breaker open"));
    let held = || {
        let (received, settled) =
            (metrics.sum("windrow_chunks_received_total"), metrics.sum("windrow_chunks_settled_total"));
        received - settled
    };
    wait_until("all but the probe's chunk is given back", Duration::from_secs(5), || held() <= 1.0);
    assert!(settled_by_the_broker(&server), "the broker still waits for chunks");
    assert!(metrics.sum("windrow_destination_calls_in_flight") <= 1.0, "only a probe may be under way");
    std::thread::sleep(Duration::from_secs(3));
    let during = (destination.call_count() - before) as u64;
    let probes = began.elapsed().as_secs() + 1;
    assert!(
        during <= BEFORE_THE_TRIP + probes,
        "{during} calls, {probes} probes at most\n{}",
        consumer.log()
    );
    wait_until("no more than a probe's chunk is held", Duration::from_secs(5), || held() <= 1.0);

    destination.set_down(false);
    assert!(producer.wait(PATIENCE).success(), "{}", producer.log());
    let report = report(&fleet.run_folder("outage"));
    check_balance(&report, ITEMS);
    assert_eq!(report["succeeded"], ITEMS, "{report}");
    let attempts = report["attempts"].as_u64().unwrap();
    assert!(
        attempts <= ITEMS + UNDER_WAY + during,
        "{attempts} attempts, {during} of them during the outage"
    );
    check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
}

/// Whether the broker comes to say, while the outage lasts, that nobody holds more than a probe's chunk of the stage.
fn settled_by_the_broker(server: &RabbitMqServer) -> bool {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let give_up_at = Instant::now() + PATIENCE;
    loop {
        let told = runtime
            .block_on(server.rabbitmqctl(&["list_queues", "name", "messages_unacknowledged"]))
            .unwrap();
        let of_the_stage = told.lines().filter(|line| line.contains(".outage.call"));
        let held: u64 =
            of_the_stage.filter_map(|line| line.rsplit('\t').next()?.trim().parse::<u64>().ok()).sum();
        if held <= 1 || Instant::now() > give_up_at {
            return held <= 1;
        }
    }
}

/// Of eight consumers the first to trip speaks for all: the others stop within a second, one of them probes, and all go
/// on when its probe works.
#[test]
fn a_trip_in_one_of_eight_consumers_stops_them_all_and_one_probes_for_all() {
    const CONSUMERS: usize = 8;
    const OUTAGE: Duration = Duration::from_secs(9);
    let server = RabbitMqServer::start_blocking();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    let folder = TempDir::new().unwrap();
    let items = 14_000;
    write_items(&folder.path().join("items.jsonl"), items);
    let job = job(&destination.url(), "../items.jsonl")
        .replace("max_connections = 4", "max_connections = 32")
        .replace("open = \"1s\"", "open = \"3s\"")
        .replace("= \"1s\"", "= \"2s\"");
    let fleet = Fleet::new(folder.path(), &server.uri(), &job);
    let (_collector, first) = fleet.start();
    let mut consumers = vec![first];
    consumers.extend((1..CONSUMERS).map(|number| fleet.consumer(number, None)));
    let mut producer = fleet.producer("outage", None);
    wait_until("all make calls", PATIENCE, || destination.call_count() >= 1_500);
    let pace = calls_in_a_second(&destination);

    destination.set_down(true);
    wait_until("a breaker opens", PATIENCE, || {
        consumers.iter().any(|consumer| consumer.log().contains("breaker open"))
    });
    let tripped = Instant::now();
    std::thread::sleep(Duration::from_secs(1));
    let after_a_second = destination.call_count();
    std::thread::sleep(OUTAGE.saturating_sub(tripped.elapsed()));
    let probes = destination.call_count() - after_a_second;
    // At 3, 5 and 7 s, and 9 s at the latest; eight consumers by themselves would make eight times as many.
    assert!((2..=5).contains(&probes), "{probes} calls in an outage of {OUTAGE:?}");

    destination.set_down(false);
    let before = destination.call_count();
    wait_until("a probe works", Duration::from_secs(5), || destination.call_count() > before);
    std::thread::sleep(Duration::from_secs(2));
    let again = calls_in_a_second(&destination);
    println!("{pace} calls a second before, {probes} in the outage, {again} two seconds after it");
    assert!(
        again * 2 >= pace,
        "{again} calls a second two seconds after the destination works again, {pace} before"
    );

    assert!(producer.wait(PATIENCE).success(), "{}", producer.log());
    let report = report(&fleet.run_folder("outage"));
    check_balance(&report, items);
    assert_eq!(report["succeeded"], items, "{report}");
}

fn calls_in_a_second(destination: &Destination) -> usize {
    let from = destination.call_count();
    std::thread::sleep(Duration::from_secs(1));
    destination.call_count() - from
}
