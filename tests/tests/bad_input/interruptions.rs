//! Ctrl-C once and twice, two runs in one folder, and a pipe that broke.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::Duration;

use windrow_tests::desk::{Desk, Running};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::process::wait_until;

use super::{ECHO, assert_complete, calling, numbered};

const ITEMS: u64 = 600;

/// Eight calls at once, 20 ms each: about one and a half seconds for all items.
fn paced() -> Destination {
    Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 0 })
}

fn desk(destination: &Destination) -> Desk {
    let desk = Desk::new(&calling(&destination.url()));
    desk.write("items.jsonl", numbered(ITEMS));
    desk
}

fn wait_for_calls(destination: &Destination, count: usize) {
    wait_until("the destination is called", Duration::from_secs(60), || destination.call_count() >= count);
}

#[test]
fn after_ctrl_c_the_same_command_goes_on_and_no_item_runs_twice() {
    let destination = paced();
    let desk = desk(&destination);
    let running = desk.start(&["run", "job.toml"]);
    wait_for_calls(&destination, 100);
    running.interrupt();
    let said = running.wait().ended(130, &["nothing is lost", "Go on with: windrow run job.toml"]);
    assert!((destination.call_count() as u64) < ITEMS, "it was to be interrupted in mid-run: {said}");
    let said = desk.windrow(&["status"]).ended(0, &[]);
    assert!(said.out.contains("running"), "{said}");
    desk.windrow(&["run", "job.toml"]).ended(0, &["resuming run"]);
    assert_complete(&desk, ITEMS);
    let calls = destination.calls();
    let keys: BTreeSet<&str> = calls.iter().map(|call| call.key.as_str()).collect();
    assert_eq!((calls.len() as u64, keys.len() as u64), (ITEMS, ITEMS), "an orderly end repeats nothing");
}

#[test]
fn the_command_told_after_ctrl_c_works_as_it_is_told() {
    let destination = paced();
    let desk = desk(&destination);
    let running = desk.start(&["run", "job.toml", "--data-dir", "kept here"]);
    wait_for_calls(&destination, 100);
    running.interrupt();
    let said = running.wait().ended(130, &[]);
    let command = said.err.split("Go on with: ").nth(1).unwrap().lines().next().unwrap();
    let path = windrow_tests::process::binary("windrow");
    let path = path.parent().unwrap().display();
    let status = std::process::Command::new("sh")
        .args(["-c", &format!("PATH='{path}':$PATH; {command}")])
        .current_dir(desk.path("."))
        .status()
        .unwrap();
    assert!(status.success(), "{command}");
    windrow_tests::account::check_sink(&desk.path("out.jsonl"), ITEMS, true);
}

#[test]
fn a_second_ctrl_c_ends_at_once_and_loses_nothing() {
    // Calls that take longer than anybody waits: an orderly end would take five seconds.
    let destination = Destination::start(Behaviour { delay: Duration::from_secs(5), fail_every: 0 });
    let desk = Desk::new(&calling(&destination.url()).replace("concurrency = 8", "concurrency = 64"));
    desk.write("items.jsonl", numbered(64));
    let running = desk.start(&["run", "job.toml"]);
    wait_for_calls(&destination, 64);
    running.interrupt();
    running.wait_for("Ctrl-C again");
    let pressed = std::time::Instant::now();
    running.interrupt();
    running.wait().ended(130, &[]);
    assert!(pressed.elapsed() < Duration::from_secs(3), "it did not end at once");
    desk.windrow(&["run", "job.toml"]).ended(0, &["resuming run"]);
    assert_complete(&desk, 64);
}

#[test]
fn kill_9_of_a_run_is_resumed_by_the_same_command() {
    let destination = paced();
    let desk = desk(&destination);
    let running = desk.start(&["run", "job.toml"]);
    wait_for_calls(&destination, 100);
    running.kill();
    desk.windrow(&["run", "job.toml"]).ended(0, &["resuming run"]);
    assert_complete(&desk, ITEMS);
    desk.windrow(&["run", "job.toml"]).ended(1, &["out.jsonl", "if_exists"]);
}

#[test]
fn a_changed_job_file_or_source_is_not_taken_for_the_interrupted_run() {
    let destination = paced();
    let desk = desk(&destination);
    let running = desk.start(&["run", "job.toml", "--run", "mine"]);
    wait_for_calls(&destination, 100);
    running.kill();
    desk.write("items.jsonl", numbered(ITEMS - 1));
    desk.windrow(&["run", "job.toml", "--run", "mine"]).ended(1, &["has changed", "items.jsonl"]);
    desk.write("items.jsonl", numbered(ITEMS));
    desk.windrow(&["run", "job.toml", "--run", "mine"]).ended(0, &["resuming run mine"]);
    assert_complete(&desk, ITEMS);
    desk.windrow(&["run", "job.toml", "--run", "mine"]).ended(1, &["has ended"]);
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_the_first_completes() {
    let destination = paced();
    let desk = desk(&destination);
    let first = desk.start(&["run", "job.toml"]);
    wait_for_calls(&destination, 50);
    desk.windrow(&["run", "job.toml"]).ended(1, &["--data-dir"]);
    let said = desk.windrow(&["status", "--json"]).ended(0, &[]);
    assert!(said.out.contains("\"running\""), "a live run can be looked at: {said}");
    first.wait().ended(0, &[]);
    assert_complete(&desk, ITEMS);
    assert_eq!(destination.call_count() as u64, ITEMS);
}

fn piped(desk: &Desk, run: &str) -> Running {
    desk.start_with(&["run", "job.toml", "--run", run], |command| {
        command.stdin(Stdio::piped());
    })
}

#[test]
fn a_killed_pipe_is_piped_in_again_under_its_name() {
    let destination = paced();
    let desk = Desk::new(&calling(&destination.url()).replace("items.jsonl", "-"));
    let text = numbered(ITEMS);
    let half = text.len() / 2;
    let mut running = piped(&desk, "pipe");
    running.feed(&text.as_bytes()[..half]);
    wait_for_calls(&destination, 100);
    running.kill();
    let mut other = piped(&desk, "pipe");
    other.feed(text.replace("{\"n\":1}", "{\"n\":-1}").as_bytes());
    other.wait().ended(1, &["standard input differs", "item 1"]);
    let mut again = piped(&desk, "pipe");
    again.feed(text.as_bytes());
    again.wait().ended(0, &["resuming run pipe"]);
    assert_complete(&desk, ITEMS);
}

#[test]
fn standard_input_that_nobody_feeds_is_a_run_of_no_items() {
    let desk = Desk::new(&ECHO.replace("items.jsonl", "-"));
    desk.windrow(&["run", "job.toml"]).ended(0, &["0 accepted"]);
}
