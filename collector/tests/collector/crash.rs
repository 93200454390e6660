//! A collector process that dies at each of its crash points, and one that goes on after it: the sink's
//! bytes are those of a collector that never died.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::Arc;

use windrow_collector::{Reader, Report};
use windrow_common::broker::Broker;
use windrow_common::broker::Queue;
use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::crash;
use windrow_common::envelope::completion::Completion;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{Group, RunId};

use crate::support::{
    Guarded, JOB, PATIENCE, chunk, end, job, opened, outcomes, publish, sealed, wait_for, wait_for_exit,
};

/// With what they are cut into, enough messages for three batches.
const CHUNKS: u64 = 1_000;
const ITEMS: u64 = 4;

/// A run's completions in a queue, and a folder for collectors to work on them.
struct Scene {
    folder: tempfile::TempDir,
    run: RunId,
}

impl Scene {
    /// Whole chunks from the last to the first, every fourth in two parts; the second parts come last.
    async fn new(order: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("jobs")).unwrap();
        fs::write(folder.path().join("jobs/job.toml"), format!("{JOB}order = '{order}'\n")).unwrap();
        let run: RunId = "r1".parse().unwrap();
        let scene = Self { folder, run: run.clone() };
        let broker: Arc<dyn Broker> =
            Arc::new(EmbeddedBroker::open(&scene.path("broker"), &Group::main()).unwrap());
        broker.ensure(&Queue::Completion).await.unwrap();
        publish(&broker, &opened(&job(scene.folder.path()), &run)).await;
        let parts = |ordinal: u64, hop: u32| {
            let (id, span) = chunk(&run, ordinal, ITEMS);
            let is_first_part = |index: u64| !ordinal.is_multiple_of(4) || index.is_multiple_of(2);
            let items = span.to_ranges().filter(|index| is_first_part(index) == (hop == 0));
            Completion::Outcomes(outcomes(id, span, hop, &items))
        };
        for ordinal in (0..CHUNKS).rev() {
            publish(&broker, &parts(ordinal, 0)).await;
        }
        for ordinal in (0..CHUNKS).step_by(4) {
            publish(&broker, &parts(ordinal, 1)).await;
        }
        publish(&broker, &sealed(&run, CHUNKS, ITEMS)).await;
        broker.close(PATIENCE).await;
        scene
    }

    /// The same before any collector came. The broker's subfolder holds processes' locks only.
    fn copy(&self) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["jobs", "broker"] {
            fs::create_dir(folder.path().join(part)).unwrap();
            for file in self.path(part).read_dir().unwrap() {
                let file = file.unwrap();
                if file.file_type().unwrap().is_dir() {
                    continue;
                }
                fs::copy(file.path(), folder.path().join(part).join(file.file_name())).unwrap();
            }
        }
        Self { folder, run: self.run.clone() }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }

    fn collector(&self, crash_at: &str) -> Child {
        Command::new(env!("CARGO_BIN_EXE_windrow-collector"))
            .arg("--jobs")
            .arg(self.path("jobs"))
            .arg("--data-dir")
            .arg(self.path("data"))
            .arg("--broker")
            .arg(format!("embedded:{}", self.path("broker").display()))
            .env(crash::VARIABLE, crash_at)
            .stderr(fs::File::create(self.path("log")).unwrap())
            .spawn()
            .unwrap()
    }

    /// Lets a collector work until the run has ended, and ends it.
    fn collect_to_the_end(&self) -> (Report, String) {
        let mut collector = Guarded(self.collector(""));
        let report = wait_for(|| {
            let report = Reader::open(&self.path("data")).ok()?.report(&self.run).ok()?;
            let is_listening = fs::read_to_string(self.path("log")).ok()?.contains("collecting");
            (report.state.is_ended() && is_listening).then_some(report)
        });
        let ended = end(&mut collector.0);
        assert!(ended.success(), "{ended:?}: {}", fs::read_to_string(self.path("log")).unwrap());
        (report, fs::read_to_string(self.path("data/out.jsonl")).unwrap())
    }
}

fn is_settled(report: &Report) {
    assert_eq!((report.accepted, report.open), (CHUNKS * ITEMS, 0));
    assert_eq!(report.state, RunState::CompletedWithFailures);
    assert_eq!(report.outcomes.failed, (CHUNKS * ITEMS).div_ceil(7));
    assert_eq!((report.conflicts, &report.balance_error, &report.sink_error), (0, &None, &None));
}

async fn survives_each_crash_point(order: &str, points: &[&str]) {
    let first = Scene::new(order).await;
    let (report, expected) = first.copy().collect_to_the_end();
    is_settled(&report);
    assert_eq!(report.duplicates, 0);
    assert_eq!(expected.lines().count() as u64, CHUNKS * ITEMS);
    for point in points {
        let scene = first.copy();
        let died = wait_for_exit(&mut scene.collector(point));
        assert_eq!(died.signal(), Some(6), "it dies at {point}: {died:?}");
        let (report, output) = scene.collect_to_the_end();
        is_settled(&report);
        assert!(output == expected, "after {point} the sink has other bytes");
        let leftovers = scene.path("data/spool").read_dir().map_or(0, Iterator::count);
        assert_eq!(leftovers, 0, "after {point} the spool is empty");
        assert!(only_whole_reports(&scene.path("data/runs/r1")), "after {point}");
    }
}

fn only_whole_reports(folder: &Path) -> bool {
    let report = fs::read_to_string(folder.join("report.json")).unwrap();
    serde_json::from_str::<serde_json::Value>(&report).unwrap()["state"] == "completed_with_failures"
        && fs::read_to_string(folder.join("failures.jsonl")).unwrap().ends_with('\n')
}

#[tokio::test]
async fn a_sink_in_input_order_has_the_same_bytes_after_a_crash_anywhere() {
    let points = [
        "collector.spooled",
        "collector.committed",
        "collector.writing:3",
        "collector.writing:40",
        "collector.written",
        "collector.settling",
        "collector.settling:150",
        "collector.report_renaming",
        "collector.report_renaming:6",
        "collector.closing",
    ];
    survives_each_crash_point("input", &points).await;
}

#[tokio::test]
async fn a_sink_in_arrival_order_has_the_same_bytes_after_a_crash_anywhere() {
    let points = [
        "collector.spooled",
        "collector.committed",
        "collector.writing",
        "collector.written:2",
        "collector.settling:10",
    ];
    survives_each_crash_point("arrival", &points).await;
}
