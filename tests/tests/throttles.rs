//! A destination that asks to be left alone is, by the whole fleet, measured at the destination.

use std::time::{Duration, Instant};

use tempfile::TempDir;
use windrow_tests::account::{check_balance, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::{FrontDoor, write_items};
use windrow_tests::process::{Process, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const ITEMS: u64 = 3_000;

/// No step of a test takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

fn job(destination: &Destination, items: &str) -> String {
    let url = destination.url();
    format!(
        "name = \"left\"\n\
         [source]\ntype = \"jsonl\"\npath = \"{items}\"\n\
         [chunk]\nitems = 10\n\
         [[stage]]\nname = \"send\"\ntype = \"http\"\ndestination = \"api\"\nconcurrency = 4\n\
         method = \"POST\"\nurl = \"{url}/\"\nbody = \"{{{{ item | tojson }}}}\"\n\
         [destination.api]\nmax_connections = 16\n\
         [sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\n"
    )
}

/// The first refusal there is.
fn refusal(destination: &Destination) -> Instant {
    wait_until("a call is refused", PATIENCE, || !destination.throttled().is_empty());
    destination.throttled()[0]
}

fn calls_between(destination: &Destination, from: Instant, to: Instant) -> usize {
    destination.calls().iter().filter(|call| (from..to).contains(&call.at)).count()
}

/// One call of one of four consumers is refused for 3 s.
#[test]
fn one_refusal_pauses_four_consumers_for_as_long_as_was_asked_for() {
    let folder = TempDir::new().unwrap();
    let server = RabbitMqServer::start_blocking();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let fleet = Fleet::new(folder.path(), &server.uri(), &job(&destination, "../items.jsonl"));
    let (_collector, first) = fleet.start();
    let mut consumers: Vec<Process> = vec![first];
    consumers.extend((1..4).map(|number| fleet.consumer(number, None)));
    for consumer in &consumers {
        wait_until("it consumes", PATIENCE, || consumer.log().contains("consuming"));
    }
    let mut producer = fleet.producer("left", None);
    wait_until("calls are made", PATIENCE, || destination.call_count() >= 400);
    destination.throttle_next(3);
    let refused = refusal(&destination);
    let status = producer.wait(PATIENCE);
    assert!(status.success(), "{status}");

    let after = |seconds| refused + Duration::from_secs(seconds);
    assert_eq!(calls_between(&destination, after(1), after(3)), 0, "calls in the pause");
    let (at_first, again) =
        (calls_between(&destination, refused, after(1)), calls_between(&destination, after(3), after(8)));
    println!("{at_first} calls in the first second of the pause, {again} in the 5 seconds after it");
    assert!(again >= 500, "only {again} calls in the 5 seconds after the pause");
    let report = report(&fleet.run_folder("left"));
    check_balance(&report, ITEMS);
    let counts = ["succeeded", "attempts", "throttles"].map(|key| report[key].as_u64().unwrap());
    assert_eq!(counts, [ITEMS, ITEMS, 1], "a refused call is no attempt: {report}");
}

/// The ledger keeps a long pause: a run that was killed in it, and goes on, waits for its end.
#[test]
fn a_long_pause_outlives_the_process_that_found_it() {
    const PAUSE: Duration = Duration::from_secs(12);
    let folder = TempDir::new().unwrap();
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 });
    let door = FrontDoor::new(folder.path(), &job(&destination, "items.jsonl"), 1_000);
    let mut run = door.run(None, &["--quiet"]);
    wait_until("calls are made", PATIENCE, || destination.call_count() >= 100);
    destination.throttle_next(PAUSE.as_secs());
    let refused = refusal(&destination);
    std::thread::sleep(Duration::from_secs(1));
    assert!(run.kill());

    let mut run = door.run(None, &["--quiet"]);
    let status = run.wait(PATIENCE);
    assert!(status.success(), "{status}");
    // Within a second of its start the new process has been told.
    let calls = calls_between(&destination, refused + Duration::from_secs(7), refused + PAUSE);
    assert_eq!(calls, 0, "calls in the pause");
    check_balance(&report(&door.run_folder()), 1_000);
}
