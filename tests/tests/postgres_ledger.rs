//! A fleet on RabbitMQ whose ledger is on PostgreSQL.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::fleet::Fleet;
use windrow_tests::postgres_server::{PASSWORD, PostgresServer};
use windrow_tests::process::{binary, wait_until};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const ITEMS: u64 = 4_000;
const PATIENCE: Duration = Duration::from_secs(120);

fn job(url: &str) -> String {
    format!(
        r#"
name = "called"
[source]
type = "jsonl"
path = "../items.jsonl"
on_reject = "continue"
[chunk]
items = 50
[[stage]]
name = "call"
type = "http"
destination = "paced"
concurrency = 100
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
retry = {{ count = 0 }}
[destination.paced]
max_connections = 20
breaker = false
[sink]
type = "jsonl"
path = "out.jsonl"
"#
    )
}

fn write_items(folder: &Path) {
    let mut items = String::from("this is no item\n");
    for index in 0..ITEMS {
        writeln!(items, "{{\"n\":{index}}}").unwrap();
    }
    std::fs::write(folder.join("items.jsonl"), items).unwrap();
}

fn lines(path: &Path) -> u64 {
    std::fs::read_to_string(path).unwrap().lines().count() as u64
}

#[test]
fn a_run_balances_exactly_although_its_database_was_killed_in_mid_run() {
    let folder = TempDir::new().unwrap();
    write_items(folder.path());
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(10), fail_every: 50 });
    let mut database = PostgresServer::start();
    let broker = RabbitMqServer::start_blocking();
    let fleet =
        Fleet::new(folder.path(), &broker.uri(), &job(&destination.url())).with_ledger(&database.url());
    let (collector, _consumer) = fleet.start();
    let mut producer = fleet.producer("killed", None);
    wait_until("calls are made", PATIENCE, || destination.call_count() > 500);
    database.kill();
    wait_until("the collector misses its ledger", PATIENCE, || collector.log().contains("nothing is lost"));
    assert!(destination.call_count() < 4_000, "the database is to die in mid-run");
    database.start_again();

    assert_eq!(producer.wait(PATIENCE).code(), Some(3), "{}", producer.log());
    let outcomes = check_sink(&fleet.data().join("out.jsonl"), ITEMS, true);
    let report = report(&fleet.run_folder("killed"));
    check_balance(&report, ITEMS);
    let failed = report["failed"].as_u64().unwrap();
    assert_eq!((outcomes["failed"], outcomes["succeeded"]), (failed, ITEMS - failed));
    assert!(failed >= ITEMS / 50, "{report}");
    assert_eq!(lines(&fleet.run_folder("killed").join("failures.jsonl")), failed);
    assert_eq!(
        (report["rejected"].as_u64(), lines(&fleet.run_folder("killed").join("rejected.jsonl"))),
        (Some(1), 1)
    );
    assert!(!fleet.data().join("ledger.db").exists(), "the ledger is in the database alone");
    let mut windrow = Command::new(binary("windrow"));
    windrow.args(["failures", "killed", "--json", "--limit", "10000"]).env("WINDROW_LEDGER", database.url());
    let told = windrow.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&told.stdout).lines().count() as u64, failed, "{told:?}");
    let log = collector.log();
    assert!(log.contains("writing goes on") && !log.contains(PASSWORD) && !log.contains("panicked"), "{log}");
}

#[test]
fn a_ledger_that_cannot_be_opened_is_named_with_its_remedy_and_without_its_password() {
    let folder = TempDir::new().unwrap();
    let server = PostgresServer::start();
    let broker = format!("embedded:{}", folder.path().join("broker").display());
    let fleet = Fleet::new(folder.path(), &broker, &job("http://127.0.0.1:1"));
    let refused = |url: &str, code: i32, said: &str| {
        let mut collector =
            fleet.clone().with_ledger(url).collector_named(&format!("{code}-{}", said.len()), None);
        let ended = collector.wait(PATIENCE);
        let log = collector.log();
        assert_eq!(ended.code(), Some(code), "{log}");
        assert!(log.contains(said), "{log}");
        assert!(!log.contains("guessed") && !log.contains(PASSWORD), "{log}");
    };
    refused("mysql://windrow:guessed@db/windrow", 2, "--ledger: this is no address of a PostgreSQL database");
    refused("postgres://windrow:guessed@127.0.0.1:1/postgres", 1, "is PostgreSQL running there");
    refused(&server.url().replace(PASSWORD, "guessed"), 1, "check user and password in --ledger");
    refused(&server.url().replace("/postgres", "/nowhere"), 1, "make it: createdb nowhere");
    let mut collector = fleet.clone().with_ledger(&server.url()).collector_named("well", None);
    wait_until("the collector collects", PATIENCE, || collector.log().contains("collecting"));
    collector.terminate();
    assert!(collector.wait(PATIENCE).success(), "{}", collector.log());
    server.client("psql", &["--command", "UPDATE windrow_main.meta SET version = 99"]);
    refused(&server.url(), 1, "has version 99, this build knows 1");
}
