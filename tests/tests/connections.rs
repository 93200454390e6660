//! `max_connections` of a destination is the whole fleet's, measured where it counts: at the destination.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::{FrontDoor, write_items};
use windrow_tests::process::{Process, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const CONNECTIONS: usize = 20;
const CALL: Duration = Duration::from_millis(250);
const ITEMS: u64 = 2_400;

fn job(destination: &Destination, items: &str, concurrency: usize, connections: usize) -> String {
    let url = destination.url();
    format!(
        "name = \"connected\"\n\
         [source]\ntype = \"jsonl\"\npath = \"{items}\"\n\
         [chunk]\nitems = 10\n\
         [[stage]]\nname = \"send\"\ntype = \"http\"\ndestination = \"api\"\nconcurrency = {concurrency}\n\
         method = \"POST\"\nurl = \"{url}/\"\nbody = \"{{{{ item | tojson }}}}\"\n\
         [destination.api]\nmax_connections = {connections}\n\
         [sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\n"
    )
}

/// The most calls under way at once.
fn most_at_once(under_way: &[(Instant, Instant)]) -> usize {
    let begins = under_way.iter().map(|(from, _)| (*from, true));
    // Of what happens at the same moment the ends come first.
    let mut moments: Vec<(Instant, bool)> =
        begins.chain(under_way.iter().map(|(_, to)| (*to, false))).collect();
    moments.sort_unstable();
    let (mut now, mut most) = (0_usize, 0);
    for (_, begins) in moments {
        if begins {
            now += 1;
            most = most.max(now);
        } else {
            now -= 1;
        }
    }
    most
}

/// The calls under way from one moment to another, on average.
fn average(under_way: &[(Instant, Instant)], from: Instant, to: Instant) -> f64 {
    let within = |(begin, end): &(Instant, Instant)| {
        (*end).min(to).saturating_duration_since((*begin).max(from)).as_secs_f64()
    };
    under_way.iter().map(within).sum::<f64>() / (to - from).as_secs_f64()
}

/// Eight consumers come, leave, and one is killed.
#[test]
fn never_more_calls_are_under_way_than_max_connections_while_consumers_come_and_go() {
    let folder = TempDir::new().unwrap();
    let server = RabbitMqServer::start_blocking();
    let destination = Destination::start(Behaviour { delay: CALL, fail_every: 0 });
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let fleet =
        Fleet::new(folder.path(), &server.uri(), &job(&destination, "../items.jsonl", 10, CONNECTIONS));
    let (_collector, first) = fleet.start();
    let mut consumers: Vec<Process> = vec![first];
    consumers.extend((1..4).map(|number| fleet.consumer(number, None)));
    for consumer in &consumers {
        wait_until("it consumes", Duration::from_secs(60), || consumer.log().contains("consuming"));
    }
    let mut producer = fleet.producer("connected", None);
    let called = |count: usize| {
        let what = format!("{count} calls");
        wait_until(&what, Duration::from_secs(60), || destination.call_count() >= count);
        Instant::now()
    };
    let from = called(300);
    consumers.extend((4..8).map(|number| fleet.consumer(number, None)));
    called(800);
    assert!(consumers.remove(2).kill());
    called(1_300);
    let mut leaving = consumers.remove(0);
    leaving.terminate();
    assert!(leaving.wait(Duration::from_secs(60)).success());
    consumers.push(fleet.consumer(8, None));
    let to = called(2_200);
    let status = producer.wait(Duration::from_secs(120));
    assert!(status.success(), "{status}");

    let under_way = destination.under_way();
    assert!(under_way.len() >= usize::try_from(ITEMS).unwrap());
    let (most, used) = (most_at_once(&under_way), average(&under_way, from, to) / CONNECTIONS as f64);
    println!("{used:.3} of the connections were used, at most {most} at once");
    assert!(most <= CONNECTIONS, "{most} calls at once");
    assert!(used >= 0.9, "only {used:.3} of the connections were used");
    check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
    check_balance(&report(&fleet.run_folder("connected")), ITEMS);
}

/// `windrow run` with two consumers: both together keep the number, one alone would use it up, and nothing is waited for at
/// the start.
#[test]
fn a_run_in_one_process_uses_all_connections_from_the_start_and_no_more() {
    let folder = TempDir::new().unwrap();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(50), fail_every: 0 });
    let door = FrontDoor::new(folder.path(), &job(&destination, "items.jsonl", 10, 10), 800);
    let status = door.run(None, &["--quiet"]).wait(Duration::from_secs(60));
    assert!(status.success(), "{status}");
    let under_way = destination.under_way();
    let from = under_way.iter().map(|(from, _)| *from).min().unwrap();
    let used = average(&under_way, from, from + Duration::from_secs(3)) / 10.0;
    println!("{used:.3} of the connections were used in the first 3 seconds");
    assert!(most_at_once(&under_way) <= 10, "{}", most_at_once(&under_way));
    assert!(used >= 0.5, "{used:.3} of the connections were used in the first 3 seconds");
    check_balance(&report(&door.run_folder()), 800);
}
