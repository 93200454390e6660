//! A destination's rate is the whole fleet's, measured where it counts: at the destination.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::{FrontDoor, write_items};
use windrow_tests::process::{Process, binary, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const PER_SECOND: usize = 200;
const ITEMS: u64 = 3_600;

fn job(destination: &Destination, items: &str, rate: &str) -> String {
    let url = destination.url();
    format!(
        "name = \"rated\"\n\
         [source]\ntype = \"jsonl\"\npath = \"{items}\"\n\
         [chunk]\nitems = 10\n\
         [[stage]]\nname = \"send\"\ntype = \"http\"\ndestination = \"api\"\nconcurrency = 20\n\
         method = \"POST\"\nurl = \"{url}/\"\nbody = \"{{{{ item | tojson }}}}\"\n\
         [destination.api]\nmax_connections = 400\n{rate}\n\
         [sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\n"
    )
}

/// The most calls in any second that begins with a call.
fn most_in_a_second(times: &[Instant]) -> usize {
    let mut most = 0;
    let mut first = 0;
    for (index, at) in times.iter().enumerate() {
        while *at - times[first] >= Duration::from_secs(1) {
            first += 1;
        }
        most = most.max(index - first + 1);
    }
    most
}

fn times(destination: &Destination) -> Vec<Instant> {
    let mut times: Vec<Instant> = destination.calls().iter().map(|call| call.at).collect();
    times.sort_unstable();
    times
}

/// Strict: without a share no call is made.
#[test]
fn no_second_sees_more_calls_than_the_rate_while_consumers_come_and_go() {
    let (most, used) = while_consumers_come_and_go("rate = [\"200/s\", \"1000000/d\"]");
    assert!(most <= PER_SECOND, "{most} calls within a second");
    assert!(used >= 0.9, "only {used:.3} of the rate was used");
}

/// Shared: each consumer may use the floor while it hears of no collector, also one that has just started.
#[test]
fn a_shared_rate_is_exceeded_by_a_twentieth_at_most_while_consumers_come_and_go() {
    let (most, used) = while_consumers_come_and_go("rate = \"200/s\"\nrate_floor = \"10/s\"");
    assert!(most <= PER_SECOND + PER_SECOND / 20, "{most} calls within a second");
    assert!(used >= 0.9, "only {used:.3} of the rate was used");
}

/// Eight consumers come, leave, and one is killed, while the rate is 200 a second. Returns the most calls in a second, and
/// how much of the rate was used.
fn while_consumers_come_and_go(rate: &str) -> (usize, f64) {
    let folder = TempDir::new().unwrap();
    let server = RabbitMqServer::start_blocking();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(2), fail_every: 0 });
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let job = job(&destination, "../items.jsonl", rate);
    let fleet = Fleet::new(folder.path(), &server.uri(), &job);
    let (_collector, first) = fleet.start();
    let mut consumers: Vec<Process> = vec![first];
    consumers.extend((1..4).map(|number| fleet.consumer(number, None)));
    for consumer in &consumers {
        wait_until("it consumes", Duration::from_secs(60), || consumer.log().contains("consuming"));
    }
    let mut producer = fleet.producer("rated", None);
    let called = |count: usize| {
        let what = format!("{count} calls");
        wait_until(&what, Duration::from_secs(60), || destination.call_count() >= count);
    };
    called(400);
    consumers.extend((4..8).map(|number| fleet.consumer(number, None)));
    called(1_200);
    assert!(consumers.remove(2).kill());
    called(1_800);
    let mut leaving = consumers.remove(0);
    leaving.terminate();
    assert!(leaving.wait(Duration::from_secs(60)).success());
    consumers.push(fleet.consumer(8, None));
    let status = producer.wait(Duration::from_secs(120));
    assert!(status.success(), "{status}");

    let times = times(&destination);
    assert!(times.len() >= usize::try_from(ITEMS).unwrap());
    let most = most_in_a_second(&times);
    // What counts is the time with work for all: at the end some have none.
    let (from, to) = (times[400], times[3_000]);
    let used = 2_600.0 / ((to - from).as_secs_f64() * PER_SECOND as f64);
    println!("{used:.3} of the rate was used, at most {most} calls a second");
    let sink = fleet.data().join("out.jsonl");
    check_sink(&sink, ITEMS, true);
    check_balance(&report(&fleet.run_folder("rated")), ITEMS);
    (most, used)
}

/// Permits of a long window cool for as long; a collector that lends nothing yet says nothing about them.
#[test]
fn no_item_is_put_aside_for_a_day_because_the_collector_was_started_again() {
    let folder = TempDir::new().unwrap();
    let destination = Destination::start(Behaviour::default());
    write_items(&folder.path().join("items.jsonl"), 400);
    let job = job(&destination, "../items.jsonl", "rate = [\"100/s\", \"1000000/d\"]");
    let broker = format!("embedded:{}", folder.path().join("queue").display());
    let fleet = Fleet::new(folder.path(), &broker, &job);
    let (mut collector, _consumer) = fleet.start();
    let mut producer = fleet.producer("rated", None);
    wait_until("calls are made", Duration::from_secs(60), || destination.call_count() >= 100);
    assert!(collector.kill());
    assert!(destination.call_count() < 400, "the collector was killed in mid-run");
    let _collector = fleet.collector(None);
    let status = producer.wait(Duration::from_secs(60));
    assert!(status.success(), "{status}");
    assert!(most_in_a_second(&times(&destination)) <= 100);
    check_balance(&report(&fleet.run_folder("rated")), 400);
}

/// In one process the rate holds from the first call on, and waiting for it is no throttle and no attempt.
#[test]
fn a_run_in_one_process_keeps_the_rate() {
    let folder = TempDir::new().unwrap();
    let destination = Destination::start(Behaviour::default());
    let job = job(&destination, "items.jsonl", "rate = \"40/s\"");
    let door = FrontDoor::new(folder.path(), &job, 120);
    let status = door.run(None, &["--quiet"]).wait(Duration::from_secs(60));
    assert!(status.success(), "{status}");
    let times = times(&destination);
    assert_eq!(times.len(), 120);
    assert!(most_in_a_second(&times) <= 40);
    let report = report(&door.run_folder());
    check_balance(&report, 120);
    assert_eq!((&report["throttles"], &report["attempts"]), (&0.into(), &120.into()), "{report}");
}

/// `windrow limits` while a run goes on, and after the collector was started again.
#[test]
fn a_changed_rate_holds_within_two_seconds_and_outlives_the_collector() {
    let folder = TempDir::new().unwrap();
    let destination = Destination::start(Behaviour::default());
    let door = FrontDoor::new(folder.path(), &job(&destination, "items.jsonl", "rate = \"20/s\""), 2_000);
    let mut run = door.run(None, &["--quiet"]);
    wait_until("calls are made", Duration::from_secs(30), || destination.call_count() >= 30);
    let more = calls_in_the_third_second_after(&destination, || limits(&door, &["api", "--rate", "100/s"]));
    assert!((60..=100).contains(&more), "{more}");
    let fewer = calls_in_the_third_second_after(&destination, || limits(&door, &["api", "--rate", "10/s"]));
    assert!((1..=10).contains(&fewer), "{fewer}");
    run.interrupt();
    assert_eq!(run.wait(Duration::from_secs(60)).code(), Some(130));
    let before = destination.call_count();
    let mut run = door.run(None, &["--quiet"]);
    wait_until("it goes on", Duration::from_secs(30), || destination.call_count() >= before + 20);
    assert!(most_in_a_second(&times(&destination)[before..]) <= 10);
    limits(&door, &["api", "--reset"]);
    let refused = windrow(&door, &["other", "--rate", "1/s"]);
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("[destination.other]"), "{refused:?}");
    assert!(run.kill());
}

fn windrow(door: &FrontDoor, arguments: &[&str]) -> Output {
    let mut command = Command::new(binary("windrow"));
    command.arg("limits").args(arguments).arg("--data-dir").arg(door.data()).output().unwrap()
}

#[track_caller]
fn limits(door: &FrontDoor, arguments: &[&str]) {
    let output = windrow(door, arguments);
    assert!(output.status.success(), "{output:?}");
}

/// The calls between two and three seconds after `change`.
fn calls_in_the_third_second_after(destination: &Destination, change: impl FnOnce()) -> usize {
    change();
    let from = Instant::now() + Duration::from_secs(2);
    let to = from + Duration::from_secs(1);
    std::thread::sleep(to.saturating_duration_since(Instant::now()));
    times(destination).iter().filter(|at| (from..to).contains(*at)).count()
}
