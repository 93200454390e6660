//! Backup and restore of either ledger: the commands of docs/ledger.md, in the middle of a run that then goes on from
//! what was restored.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use windrow_tests::account::{SinkWatch, check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::front_door::write_items;
use windrow_tests::postgres_server::PostgresServer;
use windrow_tests::process::{wait_until, workspace};

const ITEMS: u64 = 2_000;
const RUN: &str = "restored";
const PATIENCE: Duration = Duration::from_secs(120);

/// How long the destination takes for a call, and how long between the backup and the loss.
const PACE: Duration = Duration::from_millis(40);
const SLOW_PACE: Duration = Duration::from_millis(150);

/// The wait of an item that failed, as the job has it.
const RETRY: Duration = Duration::from_secs(2);

fn job(url: &str) -> String {
    format!(
        r#"
name = "paced"
[source]
type = "jsonl"
path = "../items.jsonl"
[chunk]
items = 20
outstanding = 20
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 40
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
retry = {{ count = 5, interval = "2s", type = "fixed" }}
[destination.paced]
max_connections = 20
breaker = false
[sink]
type = "jsonl"
path = "out.jsonl"
order = "arrival"
"#
    )
}

/// Runs the commands below a heading of the page, as they are written there, on other folders.
fn run_commands(heading: &str, folder: &Path, ledger: &str) {
    let page = std::fs::read_to_string(workspace().join("docs/ledger.md")).unwrap();
    let section = page.split(&format!("\n### {heading}\n")).nth(1).unwrap_or_else(|| panic!("no {heading}"));
    let commands = section.split("```\n").nth(1).unwrap();
    let commands = commands.replace("/var/lib/windrow", &folder.join("data").display().to_string());
    let commands = commands.replace("/backup", &folder.join("backup").display().to_string());
    let mut shell = Command::new("bash");
    shell.args(["-euc", &commands]).env("WINDROW_LEDGER", ledger);
    let done = shell.output().unwrap();
    assert!(done.status.success(), "{commands}\n{}", String::from_utf8_lossy(&done.stderr));
}

/// Backs up in mid-run, goes on, loses everything the collector has, restores it, and goes on.
fn a_run_goes_on_from_a_backup(kind: &str, database: Option<&PostgresServer>) {
    let folder = TempDir::new().unwrap();
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    std::fs::create_dir(folder.path().join("backup")).unwrap();
    // Some items wait for another try at any time: those of the backup as well.
    let destination = Destination::start(Behaviour { delay: PACE, fail_every: 40 });
    let broker = format!("embedded:{}", folder.path().join("broker").display());
    let mut fleet = Fleet::new(folder.path(), &broker, &job(&destination.url()));
    let url = database.map_or_else(String::new, PostgresServer::url);
    if database.is_some() {
        fleet = fleet.with_ledger(&url);
    }
    let (mut collector, _consumer) = fleet.start();
    let mut producer = fleet.producer(RUN, None);
    let sink = fleet.data().join("out.jsonl");
    let settled = |count: usize| {
        let watch = SinkWatch::start(sink.clone());
        wait_until("items settle", PATIENCE, || watch.count() > count);
        assert!(watch.count() < 1_900, "in mid-run");
    };
    settled(400);
    collector.terminate();
    assert!(collector.wait(PATIENCE).success(), "{}", collector.log());
    run_commands(&format!("Backup, {kind}"), folder.path(), &url);
    let kept = std::fs::read(&sink).unwrap();

    destination.set_delay(SLOW_PACE);
    let mut collector = fleet.collector_named("collector-2", None);
    // What waited for another try at the backup has it meanwhile, and that is forgotten too.
    std::thread::sleep(RETRY + Duration::from_millis(1_500));
    settled(500);
    collector.kill();
    producer.kill();
    std::fs::remove_dir_all(fleet.data()).unwrap();
    run_commands(&format!("Restore, {kind}"), folder.path(), &url);
    assert_eq!(std::fs::read(&sink).unwrap(), kept, "the output of the backup");

    destination.set_delay(PACE);
    let _collector = fleet.collector_named("collector-3", None);
    let mut producer = fleet.resending_producer(RUN);
    assert_eq!(producer.wait(PATIENCE).code(), Some(0), "{}", producer.log());
    let outcomes = check_sink(&sink, ITEMS, false);
    assert_eq!(outcomes.get("succeeded"), Some(&ITEMS), "{outcomes:?}");
    check_balance(&report(&fleet.run_folder(RUN)), ITEMS);
    assert!(std::fs::read(&sink).unwrap().starts_with(&kept), "what had settled then is not settled again");
    let mut keys: Vec<String> = destination.calls().into_iter().map(|call| call.key).collect();
    keys.sort_unstable();
    keys.dedup();
    assert_eq!(keys.len() as u64, ITEMS, "an item that is called again has the same key");
}

#[test]
fn a_run_goes_on_from_a_backup_of_its_ledger_in_sqlite() {
    a_run_goes_on_from_a_backup("SQLite", None);
}

#[test]
fn a_run_goes_on_from_a_backup_of_its_ledger_in_postgres() {
    a_run_goes_on_from_a_backup("PostgreSQL", Some(&PostgresServer::start()));
}
