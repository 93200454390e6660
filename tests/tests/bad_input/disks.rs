//! Disks that are full, and folders that cannot be written.

use std::time::Duration;

use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::{Desk, only_run};
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::small_disk::SmallDisk;

use super::{ECHO, assert_complete, calling, numbered};

const ITEMS: u64 = 20_000;

#[test]
fn a_full_data_folder_is_waited_for_and_the_run_completes_once_there_is_space() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(ITEMS));
    let small = SmallDisk::mount(&desk.path("data"), 64);
    small.fill(1_500_000);
    let running = desk.start(&["run", "job.toml", "--data-dir", "data"]);
    running.wait_for("free space");
    small.free();
    running.wait().ended(0, &[]);
    check_sink(&desk.path("out.jsonl"), ITEMS, true);
    check_balance(&report(&only_run(&desk.path("data"))), ITEMS);
}

#[test]
fn a_data_folder_that_is_full_from_the_beginning_is_an_error_that_says_so() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(10));
    let small = SmallDisk::mount(&desk.path("data"), 16);
    small.fill(0);
    desk.windrow(&["run", "job.toml", "--data-dir", "data"]).ended(1, &["data", "free"]);
    small.free();
    desk.windrow(&["run", "job.toml", "--data-dir", "data"]).ended(0, &[]);
    check_sink(&desk.path("out.jsonl"), 10, true);
}

#[test]
fn ctrl_c_ends_the_wait_for_a_full_disk_and_the_run_can_be_resumed() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(ITEMS));
    let small = SmallDisk::mount(&desk.path("data"), 64);
    small.fill(1_500_000);
    let running = desk.start(&["run", "job.toml", "--data-dir", "data"]);
    running.wait_for("free space");
    running.interrupt();
    running.wait().ended(130, &["free space", "nothing is lost. Go on with"]);
    small.free();
    desk.windrow(&["run", "job.toml", "--data-dir", "data"]).ended(0, &[]);
    check_sink(&desk.path("out.jsonl"), ITEMS, true);
    check_balance(&report(&only_run(&desk.path("data"))), ITEMS);
}

#[test]
fn a_full_sink_is_waited_for_and_ends_up_exact() {
    let destination = Destination::start(Behaviour::default());
    let desk = Desk::new(&calling(&destination.url()).replace("\"out.jsonl\"", "\"results/out.jsonl\""));
    desk.write("items.jsonl", numbered(3_000));
    let small = SmallDisk::mount(&desk.path("results"), 4);
    small.fill(20_000);
    let running = desk.start(&["run", "job.toml"]);
    running.wait_for("results/out.jsonl cannot be written");
    running.wait_for("free space");
    // What is called meanwhile is settled: only the sink waits.
    std::thread::sleep(Duration::from_millis(300));
    small.free();
    running.wait().ended(0, &[]);
    check_sink(&desk.path("results/out.jsonl"), 3_000, true);
    check_balance(&report(&desk.only_run()), 3_000);
    assert_eq!(destination.call_count(), 3_000, "no item runs again for want of space");
}

#[test]
fn a_read_only_data_folder_is_an_error_with_another_folder_as_its_remedy() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(10));
    let small = SmallDisk::mount(&desk.path("data"), 1);
    small.make_read_only();
    for folder in ["data", "data/below", "items.jsonl"] {
        desk.windrow(&["run", "job.toml", "--data-dir", folder]).ended(1, &[folder, "another"]);
    }
    assert!(!desk.path("out.jsonl").exists());
    desk.windrow(&["run", "job.toml"]).ended(0, &[]);
    assert_complete(&desk, 10);
}

#[test]
fn damaged_files_in_the_data_folder_are_named() {
    for (file, remedy) in [("ledger.db", "ledger.db"), ("queue/queue.db", "move it away")] {
        let desk = Desk::new(ECHO);
        desk.write("items.jsonl", numbered(10));
        desk.windrow(&["run", "job.toml"]).ended(0, &[]);
        desk.write(&format!(".windrow/{file}"), vec![7; 100_000]);
        std::fs::remove_file(desk.path("out.jsonl")).unwrap();
        desk.windrow(&["run", "job.toml"]).ended(1, &[file, remedy]);
    }
}
