//! kill -9 on the embedded broker: of `windrow run` as a whole, which goes on by itself when it is given again,
//! and of single processes that share a folder.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;
use windrow_tests::account::{SinkWatch, check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Call, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::{FrontDoor, write_items};
use windrow_tests::process::{Process, wait_until};
use windrow_tests::seeded::Seeded;

const PATIENCE: Duration = Duration::from_secs(180);

/// From an answer given to a copy to the call it allowed.
const SLACK: Duration = Duration::from_millis(1_500);

/// What a process that aborts ends with.
const SIGABRT: i32 = 6;

/// Crash points, and which pass of them to die at in the middle of a run.
const POINTS: [&str; 11] = [
    "collector.spooled:4",
    "collector.committed:5",
    "collector.writing:6",
    "collector.written:6",
    "collector.settling:30",
    "collector.report_renaming:2",
    "producer.before_publish:12",
    "producer.after_confirm:9",
    "settle.publishing:40",
    "settle.confirmed:30",
    "settle.settled:20",
];

/// Crash points at the end of a run, in their order.
const LAST_POINTS: [&str; 3] = ["producer.before_sealed", "producer.after_sealed", "collector.closing"];

fn job(url: &str, path: &str, order: &str, retry_interval: &str) -> String {
    format!(
        r#"
name = "kills"
[source]
type = "jsonl"
path = "{path}"
[chunk]
items = 100
outstanding = 60
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 200
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
timeout = "30s"
retry = {{ count = 8, interval = "{retry_interval}", type = "fixed" }}
[destination.paced]
max_connections = 20
[sink]
type = "jsonl"
path = "out.jsonl"
order = "{order}"
"#
    )
}

/// Calls take 8 ms, and one in 400 is to be tried again.
fn destination() -> Destination {
    Destination::start(Behaviour { delay: Duration::from_millis(8), fail_every: 400 })
}

/// `windrow run`, given again after each death.
struct Mortal {
    door: FrontDoor,
    destination: Destination,
    items: u64,
    deaths: u32,
    /// Deaths after the first call and before the last line.
    deaths_in_mid_run: u32,
    /// The items that were in the sink at a death, and how many calls there had been by then.
    settled: HashMap<u64, usize>,
}

impl Mortal {
    fn new(door: FrontDoor, destination: Destination, items: u64) -> Self {
        Self { door, destination, items, deaths: 0, deaths_in_mid_run: 0, settled: HashMap::new() }
    }

    /// Lets it work until it dies at the crash point.
    fn dies_at(&mut self, point: &str) {
        let mut process = self.door.run(Some(point), &[]);
        let ended = process.wait(PATIENCE);
        assert_eq!(ended.signal(), Some(SIGABRT), "it dies at {point}: {ended:?}\n{}", process.log());
        self.take_stock(point != "collector.closing");
    }

    /// Lets it make so many calls, and kills it.
    fn is_killed_after(&mut self, calls: u64) {
        let enough = self.destination.call_count() + usize::try_from(calls).unwrap();
        let mut process = self.door.run(None, &[]);
        wait_until("it makes calls", PATIENCE, || {
            let ended = process.ended();
            assert!(ended.is_none(), "{ended:?}\n{}", process.log());
            self.destination.call_count() >= enough
        });
        assert!(process.kill(), "the kill falls in mid-run");
        self.take_stock(true);
    }

    fn take_stock(&mut self, is_mid_run: bool) {
        self.deaths += 1;
        let calls = self.destination.call_count();
        let in_sink = in_sink(&self.door.sink());
        let is_complete = in_sink.len() as u64 == self.items;
        assert_eq!(is_complete, !is_mid_run, "{calls} calls, {} in the sink", in_sink.len());
        self.deaths_in_mid_run += u32::from(calls > 0 && is_mid_run);
        for index in in_sink {
            self.settled.entry(index).or_insert(calls);
        }
    }

    /// Lets it come to its end, and judges everything.
    fn ends_well(&self, in_order: bool) {
        let mut process = self.door.run(None, &[]);
        let ended = process.wait(PATIENCE);
        let log = process.log();
        assert!(ended.success(), "{ended:?}\n{log}");
        assert!(!log.contains("panicked"), "{log}");
        let run = self.door.run_folder();
        let name = run.file_name().unwrap().to_str().unwrap();
        let begun = log.lines().filter(|line| *line == format!("run {name} of kills")).count();
        let resumed = log.lines().filter(|line| line.starts_with(&format!("resuming run {name} "))).count();
        assert_eq!(begun, 1, "{log}");
        assert!(resumed >= 8, "it goes on by itself: {resumed} times\n{log}");

        let outcomes = check_sink(&self.door.sink(), self.items, in_order);
        assert_eq!(outcomes.get("succeeded"), Some(&self.items), "{outcomes:?}");
        let report = report(&run);
        check_balance(&report, self.items);
        assert_eq!(report["state"], "completed");
        let calls = self.destination.calls();
        println!(
            "{} deaths, {} of them in mid-run, {} calls for {} items, {} duplicates",
            self.deaths,
            self.deaths_in_mid_run,
            calls.len(),
            self.items,
            report["duplicates"]
        );
        let again: Vec<&Call> = calls
            .iter()
            .enumerate()
            .filter(|(position, call)| self.is_late(*position, call))
            .map(|(_, call)| call)
            .collect();
        assert!(again.is_empty(), "{} settled items ran again, such as {}", again.len(), again[0].key);
        let spool = self.door.data().join("spool").read_dir().map_or(0, Iterator::count);
        assert_eq!(spool, 0, "the spool is empty");
    }

    /// Whether a call, the `position`th, was for an item that had settled before an earlier death.
    fn is_late(&self, position: usize, call: &Call) -> bool {
        let index: u64 = call.key.rsplit('/').next().unwrap().parse().unwrap();
        self.settled.get(&index).is_some_and(|calls_by_then| position >= *calls_by_then)
    }
}

/// The items whose whole lines are in the sink: a line is written after its item is in the ledger.
fn in_sink(path: &Path) -> Vec<u64> {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    let index = |line: &str| serde_json::from_str::<Value>(line).ok().and_then(|line| line["item"].as_u64());
    whole.lines().filter_map(index).collect()
}

#[test]
fn a_run_killed_anywhere_goes_on_by_itself_and_has_every_item_once_in_input_order() {
    const ITEMS: u64 = 50_000;
    let (folder, destination) = (TempDir::new().unwrap(), destination());
    let job = job(&destination.url(), "items.jsonl", "input", "300ms");
    let mut mortal = Mortal::new(FrontDoor::new(folder.path(), &job, ITEMS), destination, ITEMS);
    let mut seeded = Seeded::from_environment();
    let mut points = POINTS;
    seeded.shuffle(&mut points);
    for (number, point) in points.into_iter().enumerate() {
        mortal.dies_at(point);
        if number.is_multiple_of(2) {
            mortal.is_killed_after(200 + seeded.below(1_500));
        }
    }
    for point in LAST_POINTS {
        mortal.dies_at(point);
    }
    assert!(mortal.deaths_in_mid_run >= 15, "{} deaths in mid-run", mortal.deaths_in_mid_run);
    mortal.ends_well(true);
    let duplicates = report(&mortal.door.run_folder())["duplicates"].as_u64().unwrap();
    assert!(duplicates > 0, "a collector that died between commit and settlement sees its batch again");
}

#[test]
fn a_killed_run_never_calls_again_for_what_had_settled() {
    const ITEMS: u64 = 15_000;
    let (folder, destination) = (TempDir::new().unwrap(), destination());
    // Retries leave the process as remainders, and wait in the broker.
    let job = job(&destination.url(), "items.jsonl", "arrival", "2s");
    let mut mortal = Mortal::new(FrontDoor::new(folder.path(), &job, ITEMS), destination, ITEMS);
    let mut seeded = Seeded::from_environment();
    for point in
        ["collector.committed:5", "settle.confirmed:30", "collector.settling:40", "settle.settled:25"]
    {
        mortal.dies_at(point);
        mortal.is_killed_after(300 + seeded.below(1_000));
    }
    mortal.ends_well(false);
    assert!(mortal.settled.len() > 2_000, "much had settled at the deaths: {}", mortal.settled.len());
}

#[test]
fn a_small_run_killed_at_the_first_pass_of_any_point_is_resumed() {
    const ITEMS: u64 = 50;
    let job = "name = 'small'\n[source]\ntype = 'jsonl'\npath = 'items.jsonl'\n[[stage]]\ntype = 'echo'\n\
               [sink]\ntype = 'jsonl'\npath = 'out.jsonl'\n";
    for point in POINTS.into_iter().chain(LAST_POINTS) {
        let point = point.split(':').next().unwrap();
        let folder = TempDir::new().unwrap();
        let door = FrontDoor::new(folder.path(), job, ITEMS);
        let died = door.run(Some(point), &[]).wait(PATIENCE);
        assert_eq!(died.signal(), Some(SIGABRT), "it dies at {point}: {died:?}");
        let mut process = door.run(None, &[]);
        let ended = process.wait(PATIENCE);
        assert!(ended.success(), "after {point}: {ended:?}\n{}", process.log());
        check_sink(&door.sink(), ITEMS, true);
        check_balance(&report(&door.run_folder()), ITEMS);
    }
}

/// Processes of ours on one folder, under attack.
struct Shared {
    fleet: Fleet,
    collector: Process,
    consumers: [Process; 2],
    producer: Process,
}

impl Shared {
    fn start(folder: &Path, job: &str) -> Self {
        let broker = format!("embedded:{}", folder.join("queue").display());
        let fleet = Fleet::new(folder, &broker, job);
        let collector = fleet.collector(None);
        let consumers = [fleet.consumer(0, None), fleet.consumer(1, None)];
        let producer = fleet.producer("shared", None);
        Self { fleet, collector, consumers, producer }
    }

    fn all_live(&mut self) -> bool {
        let [first, second] = &mut self.consumers;
        [&mut self.collector, first, second, &mut self.producer]
            .into_iter()
            .all(|each| each.ended().is_none())
    }
}

#[test]
fn processes_on_one_folder_take_over_from_each_other_when_killed() {
    const ITEMS: u64 = 20_000;
    let (folder, destination) = (TempDir::new().unwrap(), destination());
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let mut shared =
        Shared::start(folder.path(), &job(&destination.url(), "../items.jsonl", "arrival", "2s"));
    let watch = SinkWatch::start(shared.fleet.data().join("out.jsonl"));
    for round in 0..5 {
        let enough = watch.count() + 1_000;
        wait_until("items settle", PATIENCE, || watch.count() >= enough);
        assert!(shared.all_live() && watch.count() < 15_000, "the kill falls in mid-run");
        assert!(shared.consumers[0].kill());
        if round == 2 {
            assert!(shared.collector.kill());
            shared.collector = shared.fleet.collector(None);
        }
        // The other consumer goes on alone, with what the dead one held.
        let enough = watch.count() + 300;
        wait_until("the other consumer goes on", PATIENCE, || watch.count() >= enough);
        shared.consumers[0] = shared.fleet.consumer(0, None);
    }
    assert!(shared.producer.wait(PATIENCE).success(), "{}", shared.producer.log());

    let outcomes = check_sink(&shared.fleet.data().join("out.jsonl"), ITEMS, false);
    assert_eq!(outcomes.get("succeeded"), Some(&ITEMS), "{outcomes:?}");
    let report = report(&shared.fleet.run_folder("shared"));
    check_balance(&report, ITEMS);
    let calls = destination.calls();
    println!("{} calls for {ITEMS} items, {} duplicates", calls.len(), report["duplicates"]);
    let again = watch.called_after_settled(&calls, SLACK);
    assert!(again.is_empty(), "{} settled items ran again, such as {}", again.len(), again[0]);
    for process in [&shared.collector, &shared.consumers[0], &shared.consumers[1], &shared.producer] {
        assert!(!process.log().contains("panicked"), "{}", process.log());
    }
}

#[test]
fn one_byte_changed_under_the_same_size_and_time_is_seen_and_told() {
    const ITEMS: u64 = 5_000;
    let (folder, destination) = (TempDir::new().unwrap(), destination());
    let job = job(&destination.url(), "items.jsonl", "input", "300ms");
    // Two runs may not write to one file at a time.
    let job = job.split("[sink]").next().unwrap();
    // Few chunks at a time: the killed run is not sealed, and stays open.
    let job = job.replace("outstanding = 60", "outstanding = 5");
    let door = FrontDoor::new(folder.path(), &job, ITEMS);
    let mut process = door.run(None, &["--run", "first"]);
    wait_until("it makes calls", PATIENCE, || destination.call_count() > 500);
    assert!(process.kill());

    change_one_byte(&door.items());
    let calls = destination.call_count();
    let mut process = door.run(None, &["--run", "first"]);
    let refused = process.wait(PATIENCE);
    let log = process.log();
    assert_eq!(refused.code(), Some(1), "{log}");
    assert!(log.contains("items.jsonl: was ") && log.contains(" with hash "), "{log}");
    assert!(destination.call_count() <= calls + 20, "nothing but what was under way was called");

    let mut process = door.run(None, &[]);
    assert!(process.wait(PATIENCE).success(), "{}", process.log());
    let mut states: Vec<String> =
        door.run_folders().iter().map(|run| report(run)["state"].as_str().unwrap().to_owned()).collect();
    states.sort();
    assert_eq!(states, ["completed", "running"], "a new run has begun beside the first");
}

/// Turns one digit into another, and sets the clock of the file back.
fn change_one_byte(path: &Path) {
    let before = std::fs::metadata(path).unwrap();
    let mut text = std::fs::read(path).unwrap();
    let last = text.iter().rposition(u8::is_ascii_digit).unwrap();
    text[last] = if text[last] == b'0' { b'1' } else { b'0' };
    std::fs::write(path, text).unwrap();
    File::options().write(true).open(path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = std::fs::metadata(path).unwrap();
    assert_eq!((after.len(), after.modified().unwrap()), (before.len(), before.modified().unwrap()));
}
