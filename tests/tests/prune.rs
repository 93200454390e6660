//! `windrow prune`: runs that ended long ago are forgotten, others are not.

use std::time::Duration;

use windrow_tests::desk::Desk;
use windrow_tests::destination::{Behaviour, Destination};
use windrow_tests::front_door::write_items;
use windrow_tests::process::wait_until;

fn job(url: &str) -> String {
    format!(
        r#"
name = "calls"
[source]
type = "jsonl"
path = "items.jsonl"
[[stage]]
name = "call"
type = "http"
destination = "slow"
method = "POST"
url = "{url}"
body = "{{{{ item | tojson }}}}"
[destination.slow]
max_connections = 2
[sink]
type = "jsonl"
path = "out.jsonl"
if_exists = "append"
"#
    )
}

#[test]
fn ended_runs_older_than_asked_are_forgotten_with_their_folders_and_no_other() {
    let destination = Destination::start(Behaviour::default());
    let desk = Desk::new(&job(&destination.url()));
    write_items(&desk.path("items.jsonl"), 50);
    desk.windrow(&["prune", "--older-than", "1d"]).ended(1, &["no run has left a ledger"]);
    desk.windrow(&["run", "job.toml", "--run", "old"]).ended(0, &[]);
    // Its age is counted from its end.
    std::thread::sleep(Duration::from_millis(1_200));

    destination.set_delay(Duration::from_millis(200));
    let before = destination.call_count();
    let running = desk.start(&["run", "job.toml", "--run", "cut-off"]);
    wait_until("it makes calls", Duration::from_secs(60), || destination.call_count() > before);
    desk.windrow(&["prune", "--older-than", "1s"]).ended(1, &["a collector works on .windrow"]);
    running.kill();
    desk.windrow(&["prune", "--older-than", "1h"]).ended(0, &["0 runs forgotten"]);
    let said =
        desk.windrow(&["prune", "--older-than", "1s", "--dry-run"]).ended(0, &["1 run would be forgotten"]);
    assert!(
        said.out.starts_with("old  calls  completed") && desk.path(".windrow/runs/old").exists(),
        "{said}"
    );

    desk.windrow(&["prune", "--older-than", "1s"]).ended(0, &["1 run forgotten"]);
    for folder in ["runs", "producer"] {
        let kept = std::fs::read_dir(desk.path(".windrow").join(folder)).unwrap();
        let kept: Vec<_> = kept.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(kept, ["cut-off"], "in {folder}");
    }
    desk.windrow(&["status", "old"]).ended(1, &["there is no run `old`"]);
    destination.set_delay(Duration::ZERO);
    desk.windrow(&["run", "job.toml"]).ended(0, &["resuming run cut-off"]);
    assert_eq!(desk.lines("out.jsonl").len(), 100, "sinks stay, and what is unfinished goes on");
}
