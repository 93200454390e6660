//! What is written where: events on standard output, and readers that go away.

use std::process::Stdio;
use std::time::Duration;

use windrow_tests::desk::{Desk, json_lines};
use windrow_tests::destination::{Behaviour, Destination};

use super::{ECHO, assert_complete, calling, numbered};

#[test]
fn events_are_json_lines_on_standard_output_and_nothing_else_is_there() {
    let destination = Destination::start(Behaviour { delay: Duration::from_millis(20), fail_every: 7 });
    let desk = Desk::new(&calling(&destination.url()));
    desk.write("items.jsonl", format!("{}no item\n", numbered(600)));
    let said = desk.windrow(&["run", "job.toml", "--json"]).ended(3, &[]);
    let events = json_lines(&said.out);
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!((names.first(), names.last()), (Some(&"started"), Some(&"finished")), "{said}");
    let progress = events.iter().find(|event| event["event"] == "progress").expect("progress is shown");
    assert!(progress["settled"].is_u64() && progress["accepted"].is_u64(), "{said}");
    let finished = events.last().unwrap();
    assert_eq!((&finished["accepted"], &finished["rejected"]), (&600.into(), &1.into()), "{said}");
    assert!(said.err.is_empty(), "{said}");
    assert_complete(&desk, 600);
}

#[test]
fn quiet_says_nothing_of_a_run_that_goes_well() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(300));
    let said = desk.windrow(&["run", "job.toml", "--quiet"]).ended(0, &[]);
    assert!(said.out.is_empty() && said.err.is_empty(), "{said}");
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic_or_to_stop() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(300));
    // Nobody reads: every write to a pipe whose other end is closed fails.
    let unread = || {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        Stdio::from(writer)
    };
    let run = desk.start_with(&["run", "job.toml", "--json"], |command| {
        command.stdout(unread());
    });
    run.wait().ended(0, &[]);
    assert_complete(&desk, 300);
    let again = Desk::new(ECHO);
    again.write("items.jsonl", numbered(300));
    let run = again.start_with(&["run", "job.toml"], |command| {
        command.stderr(unread());
    });
    assert_eq!(run.wait().code, Some(0));
    assert_complete(&again, 300);
    for arguments in [&["status"][..], &["report"], &["failures"], &["check", "job.toml"]] {
        let said = desk.start_with(arguments, |command| {
            command.stdout(unread());
        });
        said.wait().ended(0, &[]);
    }
}

#[test]
fn asking_for_runs_where_there_are_none_says_where_they_would_be() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(3));
    for command in ["status", "failures", "report"] {
        desk.windrow(&[command]).ended(1, &["--data-dir", "beside their job file"]);
    }
    desk.windrow(&["run", "job.toml"]).ended(0, &[]);
    let said = desk.windrow(&["failures"]).ended(0, &["no item", "has failed"]);
    assert!(said.out.is_empty(), "{said}");
    desk.windrow(&["status", "nosuchrun"]).ended(1, &["nosuchrun", "windrow status"]);
}
