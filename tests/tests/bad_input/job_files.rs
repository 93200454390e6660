//! Job files and command lines that cannot be meant.

use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};

use super::{ECHO, calling, numbered};

const TEN_FAULTS: &str = r#"name = "not a name"
[source]
type = "csvv"
path = 7
idd = "x"
[chunk]
items = "many"
[[stage]]
name = "call"
type = "http"
url = "https://crm.example/{{ item.id"
timeout = 30
retries = 3
destination = "crm"
[sink]
type = "jsonl"
[tolerate]
failed = "5"
"#;

#[test]
fn ten_faults_are_told_in_ten_lines_each_with_its_place() {
    let desk = Desk::new(TEN_FAULTS);
    for command in ["run", "check"] {
        let said = desk.windrow(&[command, "job.toml"]).ended(2, &[]);
        let lines: Vec<&str> = said.err.lines().filter(|line| line.starts_with("job.toml:")).collect();
        let places: Vec<&str> = lines.iter().map(|line| line.split(':').nth(1).unwrap()).collect();
        assert_eq!(places, ["1", "3", "4", "5", "7", "11", "12", "13", "14", "15", "18"], "{said}");
        for (number, part) in
            [(1, "did you mean `csv`"), (3, "did you mean `id`"), (7, "did you mean `retry`")]
        {
            assert!(lines[number].contains(part), "{part}: {said}");
        }
        assert!(said.out.is_empty(), "{said}");
    }
    assert!(!desk.path(".windrow").exists(), "nothing is begun");
}

#[test]
fn a_job_file_that_is_not_there_or_no_toml_is_a_usage_error() {
    let desk = Desk::new("name = ");
    desk.windrow(&["run", "job.toml"]).ended(2, &["job.toml:1: not TOML"]);
    desk.windrow(&["run", "missing.toml"]).ended(2, &["missing.toml", "No such file"]);
    desk.windrow(&["check", "."]).ended(2, &["Is a directory"]);
    desk.write("job.toml", b"name = \"\xff\"");
    desk.windrow(&["run", "job.toml"]).ended(2, &["job.toml", "UTF-8"]);
}

#[test]
fn a_command_line_that_makes_no_sense_is_a_usage_error() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(1));
    for arguments in [
        &["run"][..],
        &["walk", "job.toml"],
        &["run", "job.toml", "--run", "not a name"],
        &["run", "job.toml", "--first", "0"],
        &["run", "job.toml", "--quiet", "--json"],
        &["run", "job.toml", "--broker", "http://127.0.0.1"],
    ] {
        desk.windrow(arguments).ended(2, &[]);
    }
    assert!(!desk.path(".windrow/runs").exists(), "nothing is begun");
}

#[test]
fn sources_that_are_not_there_are_named_with_where_they_were_looked_for() {
    for path in ["missing.jsonl", "missing-*.jsonl"] {
        let desk = Desk::new(&ECHO.replace("items.jsonl", path));
        for command in ["run", "check"] {
            desk.windrow(&[command, "job.toml"]).ended(1, &[path, "relative to the job file"]);
        }
        assert!(!desk.path("out.jsonl").exists());
    }
}

#[test]
fn a_missing_variable_is_named_before_anything_runs_and_shown_by_its_name_in_a_check() {
    let job = calling("${UNKIND_URL}/items/{{ item.n }}")
        .replace("retry =", "headers = { authorization = \"Bearer ${UNKIND_TOKEN}\" }\nretry =");
    let desk = Desk::new(&job);
    desk.write("items.jsonl", numbered(3));
    desk.windrow(&["run", "job.toml"]).ended(2, &["`call`", "UNKIND_URL", "UNKIND_TOKEN", "set it"]);
    let said = desk.windrow(&["check", "job.toml"]).ended(0, &[]);
    for text in [
        "POST ${UNKIND_URL}/items/0",
        "authorization: Bearer ${UNKIND_TOKEN}",
        "{\"n\": 0}",
        "UNKIND_URL is not set",
    ] {
        assert!(said.out.contains(text), "{text:?} is not shown: {said}");
    }
}

#[test]
fn a_check_sends_nothing_and_shows_no_value_of_the_environment() {
    let destination = Destination::start(Behaviour::default());
    let job = calling("${UNKIND_URL}/items/{{ item.n }}");
    let desk = Desk::new(&job);
    desk.write("items.jsonl", numbered(3));
    let with_url = |arguments: &[&str]| {
        desk.start_with(arguments, |command| {
            command.env("UNKIND_URL", destination.url());
        })
        .wait()
    };
    for arguments in [&["check", "job.toml"][..], &["check", "job.toml", "--json"]] {
        let said = with_url(arguments).ended(0, &[]);
        assert!(said.out.contains("${UNKIND_URL}/items/2"), "{said}");
        assert!(!said.out.contains(&destination.address.to_string()), "{said}");
    }
    assert_eq!(destination.call_count(), 0);
    assert!(!desk.path(".windrow").exists() && !desk.path("out.jsonl").exists());
    let said = with_url(&["run", "job.toml"]).ended(0, &[]);
    assert_eq!(destination.call_count(), 3, "{said}");
}

#[test]
fn a_sink_that_is_there_is_left_alone() {
    let desk = Desk::new(ECHO);
    desk.write("items.jsonl", numbered(3));
    desk.write("out.jsonl", "mine\n");
    desk.windrow(&["run", "job.toml"]).ended(1, &["out.jsonl", "if_exists"]);
    let said = desk.windrow(&["check", "job.toml"]).ended(0, &[]);
    assert!(said.out.contains("if_exists"), "a check tells of it too: {said}");
    assert_eq!(std::fs::read_to_string(desk.path("out.jsonl")).unwrap(), "mine\n");
    std::fs::remove_file(desk.path("out.jsonl")).unwrap();
    desk.windrow(&["run", "job.toml"]).ended(0, &[]);
    super::assert_complete(&desk, 3);
}

#[test]
fn a_sink_in_no_folder_fails_the_run_with_the_key_to_change() {
    let desk = Desk::new(&ECHO.replace("\"out.jsonl\"", "\"items.jsonl/out.jsonl\""));
    desk.write("items.jsonl", numbered(3));
    let said = desk.windrow(&["run", "job.toml"]).ended(4, &["`path` in [sink]"]);
    assert_eq!(said.err.matches("because").count(), 1, "told once: {said}");
}
