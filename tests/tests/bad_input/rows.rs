//! Rows that are no items, sources that end too early, and more failures than are tolerated.

use std::io::Write;

use serde_json::{Value, json};
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};

use super::{ECHO, assert_state, calling, numbered};

/// Much less than the line that is read, and than a debug build needs.
const MOST_MEMORY_KIB: u64 = 150 * 1024;

fn rejected(desk: &Desk) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(desk.only_run().join("rejected.jsonl")).unwrap();
    let place = |row: &Value| (row["file"].as_str().unwrap().to_owned(), row["line"].as_u64().unwrap());
    windrow_tests::desk::json_lines(&text).iter().map(place).collect()
}

fn places(file: &str, lines: &[u64]) -> Vec<(String, u64)> {
    lines.iter().map(|line| (file.to_owned(), *line)).collect()
}

#[test]
fn bad_lines_are_rejects_with_file_and_line_and_the_run_goes_on() {
    let desk = Desk::new(ECHO);
    desk.write(
        "items.jsonl",
        b"{\"n\":0}\n{bad\n\n{\"n\":1}\n\xff\xfe\n[1,2\n{\"n\":2} x\n\"a\0b\"\n\"last\"",
    );
    let said = desk.windrow(&["run", "job.toml"]).ended(3, &["5 rows rejected", "rejected.jsonl"]);
    assert_state(&desk, &said, 3, "completed_with_failures");
    assert_eq!(rejected(&desk), places("items.jsonl", &[2, 5, 6, 7, 8]));
    check_sink(&desk.path("out.jsonl"), 3, true);
    check_balance(&report(&desk.only_run()), 3);
    assert_eq!(desk.lines("out.jsonl")[2]["output"], "last");
}

#[test]
fn ragged_rows_of_a_table_are_rejects() {
    let desk = Desk::new(&ECHO.replace("\"jsonl\"\npath = \"items.jsonl\"", "\"csv\"\npath = \"items.csv\""));
    desk.write("items.csv", b"a,b\n1,2\n3\n4,5,6\n7,\xff\n8,\"x\ny\"\n9,10\n");
    let said = desk.windrow(&["run", "job.toml"]).ended(3, &["3 rows rejected"]);
    assert_eq!(rejected(&desk), places("items.csv", &[3, 4, 5]), "{said}");
    let outputs: Vec<Value> = desk.lines("out.jsonl").iter().map(|line| line["output"].clone()).collect();
    assert_eq!(
        outputs,
        [json!({"a": "1", "b": "2"}), json!({"a": "8", "b": "x\ny"}), json!({"a": "9", "b": "10"})]
    );
}

#[test]
fn a_bad_row_stops_the_run_when_the_job_says_so() {
    let desk =
        Desk::new(&ECHO.replace("path = \"items.jsonl\"", "path = \"items.jsonl\"\non_reject = \"stop\""));
    desk.write("items.jsonl", "{\"n\":0}\n{bad\n{\"n\":1}\n");
    let said = desk.windrow(&["run", "job.toml"]).ended(4, &["items.jsonl, line 2", "on_reject"]);
    assert_state(&desk, &said, 4, "failed");
    assert_eq!(rejected(&desk), places("items.jsonl", &[2]));
}

#[test]
fn a_line_of_20_mb_is_a_reject_and_costs_little_memory() {
    let destination =
        Destination::start(Behaviour { delay: std::time::Duration::from_millis(20), ..Behaviour::default() });
    let desk = Desk::new(&calling(&destination.url()));
    let mut text = format!("{}\"{}\"\n", numbered(200), "x".repeat(20_000_000)).into_bytes();
    text.extend_from_slice(b"{\"n\":200}\n");
    desk.write("items.jsonl", text);
    let mut running = desk.start(&["run", "job.toml"]);
    let mut peak_kib = 0;
    while running.is_running() {
        peak_kib = memory_peak_kib(running.id()).unwrap_or(peak_kib);
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let said = running.wait().ended(3, &["1 row rejected"]);
    assert_eq!(rejected(&desk), places("items.jsonl", &[201]), "{said}");
    super::assert_complete(&desk, 201);
    assert!(peak_kib > 1_000 && peak_kib < MOST_MEMORY_KIB, "{peak_kib} KiB");
}

/// The most memory a process ever had. None once it has ended.
fn memory_peak_kib(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

#[test]
fn a_compressed_source_that_was_cut_off_fails_the_run_and_keeps_what_came_before() {
    let desk = Desk::new(&ECHO.replace("items.jsonl", "items.jsonl.gz"));
    let mut packing = std::process::Command::new("gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    packing.stdin.take().unwrap().write_all(numbered(20_000).as_bytes()).unwrap();
    let packed = packing.wait_with_output().unwrap().stdout;
    desk.write("items.jsonl.gz", &packed[..packed.len() / 2]);
    let said = desk.windrow(&["run", "job.toml"]).ended(4, &["items.jsonl.gz", "cannot be read"]);
    assert_state(&desk, &said, 4, "failed");
    let accepted = report(&desk.only_run())["accepted"].as_u64().unwrap();
    assert!(accepted > 1_000, "{said}");
    super::assert_complete(&desk, accepted);
    desk.windrow(&["check", "job.toml"]).ended(1, &["items.jsonl.gz", "cannot be read"]);
}

#[test]
fn what_is_no_compressed_file_at_all_fails_the_run() {
    for name in ["items.jsonl.gz", "items.jsonl.zst"] {
        let desk = Desk::new(&ECHO.replace("items.jsonl", name));
        desk.write(name, numbered(10));
        let said = desk.windrow(&["run", "job.toml"]).ended(4, &[name, "cannot be read"]);
        assert_state(&desk, &said, 4, "failed");
    }
}

#[test]
fn an_empty_source_is_a_run_of_no_items() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", "");
    let said = desk.windrow(&["run", "job.toml"]).ended(0, &["0 accepted"]);
    assert_state(&desk, &said, 0, "completed");
    assert_eq!(std::fs::read(desk.path("out.jsonl")).unwrap(), b"");
}

#[test]
fn more_failures_than_tolerated_end_the_run_and_the_account_still_adds_up() {
    let stage =
        "type = \"jq\"\nfilter = 'if .n % 2 == 0 then error(\"even\") else . end'\nretry = { count = 0 }";
    let job = ECHO.replace("type = \"echo\"", stage) + "[tolerate]\nfailed = 50\n";
    let desk = Desk::new(&job);
    desk.write("items.jsonl", numbered(20_000));
    let said = desk.windrow(&["run", "job.toml"]).ended(4, &["tolerates 50", "windrow failures"]);
    assert_state(&desk, &said, 4, "failed");
    let report = report(&desk.only_run());
    let accepted = report["accepted"].as_u64().unwrap();
    super::assert_complete(&desk, accepted);
    assert!(report["failed"].as_u64().unwrap() > 50, "{report}");
    let said = desk.windrow(&["failures", "--limit", "2"]).ended(0, &["2 of "]);
    assert_eq!(said.out.lines().count(), 2, "{said}");
    // Which chunks were first to run is not fixed; the first items may be among the cancelled ones.
    let said = desk.windrow(&["failures", "--limit", "20000"]).ended(0, &[]);
    assert!(said.out.contains("even"), "{said}");
}
