//! The unkind user: whatever is given to Windrow, it says what is wrong and what to do, ends with the right exit
//! code, loses nothing and never panics.

mod brokers;
mod disks;
mod interruptions;
mod job_files;
mod rows;
mod rubbish;
mod terminal;

use std::fmt::Write as _;

use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::{Desk, Said};

/// A job over `items.jsonl` that gives each item back, into `out.jsonl`.
const ECHO: &str = r#"
name = "unkind"
[source]
type = "jsonl"
path = "items.jsonl"
[[stage]]
type = "echo"
[sink]
type = "jsonl"
path = "out.jsonl"
"#;

/// The same with a call to `url` for each item, eight at once.
fn calling(url: &str) -> String {
    let stage = format!(
        "name = \"call\"\ntype = \"http\"\nconcurrency = 8\nmethod = \"POST\"\nurl = \"{url}\"\n\
         body = \"{{{{ item | tojson }}}}\"\nretry = {{ count = 5, interval = \"100ms\" }}"
    );
    ECHO.replace("type = \"echo\"", &stage)
}

/// `{"n":0}`, `{"n":1}` and so on, a line each.
fn numbered(items: u64) -> String {
    let mut text = String::new();
    for index in 0..items {
        writeln!(text, "{{\"n\":{index}}}").unwrap();
    }
    text
}

/// Checks that the run settled `items` items, each once, and that the account adds up.
fn assert_complete(desk: &Desk, items: u64) {
    check_sink(&desk.path("out.jsonl"), items, true);
    check_balance(&report(&desk.only_run()), items);
}

/// Checks that the exit code and the state in the report are these.
#[track_caller]
fn assert_state(desk: &Desk, said: &Said, code: i32, state: &str) {
    assert_eq!(said.code, Some(code), "{said}");
    assert_eq!(report(&desk.only_run())["state"], state, "{said}");
}
