//! The examples do what they say.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::desk::{json_lines, only_run};
use windrow_tests::process::{binary, workspace};

const AIRPORTS: u64 = 3_376;

/// The examples in a folder of their own: what they write is not left in the workspace.
fn examples() -> TempDir {
    let folder = TempDir::new().unwrap();
    copy(&workspace().join("examples"), folder.path());
    folder
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if !entry.file_type().unwrap().is_dir() {
            fs::copy(entry.path(), target).unwrap();
        } else if !["out", ".windrow"].contains(&entry.file_name().to_str().unwrap()) {
            copy(&entry.path(), &target);
        }
    }
}

/// Runs a command, which must succeed; what it wrote to standard error.
fn run(command: &mut Command) -> String {
    let output = command.env_remove("WINDROW_BROKER").output().unwrap();
    let err = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{}: {err}", output.status);
    assert!(!err.contains("panicked"), "{err}");
    err
}

fn results(sink: &Path) -> Vec<Value> {
    json_lines(&fs::read_to_string(sink).unwrap())
}

#[test]
fn the_quickstart_reshapes_every_airport_and_skips_those_without_a_state() {
    let examples = examples();
    let folder = examples.path().join("quickstart");
    for again in [false, true] {
        run(Command::new(binary("windrow")).arg("run").arg(folder.join("job.toml")));
        let outcomes = check_sink(&folder.join("out/airports.jsonl"), AIRPORTS, true);
        assert_eq!((outcomes["succeeded"], outcomes["skipped"]), (3_364, 12));
        if !again {
            check_balance(&report(&only_run(&folder.join(".windrow"))), AIRPORTS);
        }
    }
    let first = &results(&folder.join("out/airports.jsonl"))[0];
    assert_eq!((&first["id"], &first["output"]["place"]), (&"00M".into(), &"Bay Springs, MS".into()));
    assert_eq!(first["output"]["position"], "31° 57' 13.6\" N, 89° 14' 4.2\" W");
}

#[test]
fn the_http_example_brings_every_airport_to_a_service_that_fails_often_once_each() {
    let examples = examples();
    let folder: PathBuf = examples.path().join("http");
    let err = run(Command::new("sh").arg(folder.join("run.sh")).env("WINDROW", binary("windrow")));
    let outcomes = check_sink(&folder.join("out/sent.jsonl"), AIRPORTS, true);
    assert_eq!(outcomes.get("succeeded"), Some(&AIRPORTS), "{outcomes:?}");
    let report = report(&only_run(&folder.join(".windrow")));
    check_balance(&report, AIRPORTS);
    let stats =
        err.lines().find_map(|line| line.strip_prefix("service: ")).expect("the service gives its counts");
    let stats: Value = serde_json::from_str(stats).unwrap();
    let count = |of: &Value, key: &str| of[key].as_u64().unwrap_or_else(|| panic!("`{key}` in {of}"));
    assert_eq!(count(&stats, "stored"), AIRPORTS, "each airport is stored once: {stats}");
    for trouble in ["refused", "throttled", "answers_lost", "repeats"] {
        assert!(count(&stats, trouble) > 0, "{trouble}: {stats}");
    }
    // The account of both sides agrees: each call was an attempt or a throttle.
    assert_eq!(count(&report, "throttles"), count(&stats, "throttled"), "{report}");
    assert_eq!(count(&report, "attempts") + count(&report, "throttles"), count(&stats, "calls"), "{report}");
}
