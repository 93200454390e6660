//! A disk that is full, under the data folder or under the sink, and is freed again: the run completes.
//!
//! The disk is a small file system in memory, in a mount namespace of the collector's own; it takes no
//! root to make one.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, Queue};
use windrow_common::envelope::completion::Completion;
use windrow_common::ids::{Group, RunId};

use crate::support::{Guarded, JOB, chunk, end, job, opened, outcomes, publish, sealed, wait_for};

const CHUNKS: u64 = 60;
const ITEMS: u64 = 500;

/// Mounts $1, fills it but for $2 bytes, and becomes the rest of its arguments.
const ON_A_FULL_DISK: &str = r#"
    mount -t tmpfs -o size=12m tmpfs "$1" || exit 9
    head -c $((12 * 1024 * 1024 - $2)) /dev/zero > "$1/filler"
    shift 2
    exec "$@"
"#;

struct Scene {
    folder: tempfile::TempDir,
    broker: Arc<dyn Broker>,
}

impl Scene {
    async fn new(sink: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for part in ["jobs", "disk"] {
            fs::create_dir(folder.path().join(part)).unwrap();
        }
        let sink = folder.path().join(sink);
        let text = JOB.replace("out.jsonl", sink.to_str().unwrap());
        fs::write(folder.path().join("jobs/job.toml"), text).unwrap();
        let broker: Arc<dyn Broker> =
            Arc::new(EmbeddedBroker::open(&folder.path().join("broker"), &Group::main()).unwrap());
        broker.ensure(&Queue::Completion).await.unwrap();
        let run: RunId = "r1".parse().unwrap();
        publish(&broker, &opened(&job(folder.path()), &run)).await;
        for ordinal in 0..CHUNKS {
            let (id, span) = chunk(&run, ordinal, ITEMS);
            publish(&broker, &Completion::Outcomes(outcomes(id, span, 0, &span.to_ranges()))).await;
        }
        publish(&broker, &sealed(&run, CHUNKS, ITEMS)).await;
        Self { folder, broker }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn collector(&self, data_dir: &str, free_bytes: u64) -> Child {
        Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", ON_A_FULL_DISK, "sh"])
            .arg(self.path("disk"))
            .arg(free_bytes.to_string())
            .arg(env!("CARGO_BIN_EXE_windrow-collector"))
            .arg("--jobs")
            .arg(self.path("jobs"))
            .arg("--data-dir")
            .arg(self.path(data_dir))
            .arg("--broker")
            .arg(format!("embedded:{}", self.path("broker").display()))
            .args(["--listen", "127.0.0.1:0"])
            .stderr(fs::File::create(self.path("log")).unwrap())
            .spawn()
            .unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap()
    }

    /// What `/readyz` answers.
    fn ask_whether_ready(&self) -> String {
        let log = self.log();
        let address = log.split("address=").nth(1).unwrap().split_whitespace().next().unwrap();
        let mut connection = TcpStream::connect(address).unwrap();
        connection.write_all(b"GET /readyz HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Waits until the collector is stuck, frees the disk, and waits for the run's end.
    async fn is_stuck_then_completes(&self, what: &str, data_dir: &str, sink: &str, free_bytes: u64) {
        let mut collector = Guarded(self.collector(data_dir, free_bytes));
        let seen_by_it = |path: &Path| {
            let root = PathBuf::from(format!("/proc/{}/root", collector.0.id()));
            root.join(path.strip_prefix("/").unwrap())
        };
        wait_for(|| self.log().contains("cannot be written").then_some(()));
        let depth = self.broker.depth(&Queue::Completion).await.unwrap();
        assert!(depth.ready + depth.unsettled > CHUNKS / 2, "what was not settled is kept: {depth:?}");
        assert!(self.log().contains(what), "{}", self.log());
        let readiness = self.ask_whether_ready();
        assert!(
            readiness.starts_with("HTTP/1.1 503") && readiness.contains("cannot be written"),
            "{readiness}"
        );
        fs::remove_file(seen_by_it(&self.path("disk/filler"))).unwrap();
        let report = self.path(data_dir).join("runs/r1/report.json");
        wait_for(|| {
            let report = fs::read_to_string(seen_by_it(&report)).ok()?;
            report.contains(r#""state": "completed_with_failures""#).then_some(())
        });
        let output = fs::read_to_string(seen_by_it(&self.path(sink))).unwrap();
        let items: Vec<u64> = output
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["item"].as_u64().unwrap())
            .collect();
        assert_eq!(items, (0..CHUNKS * ITEMS).collect::<Vec<_>>());
        assert!(self.ask_whether_ready().starts_with("HTTP/1.1 200"));
        assert!(end(&mut collector.0).success());
        let log = self.log();
        assert!(log.matches("cannot be written").count() <= 2, "told, and not again each second: {log}");
        assert!(log.contains("writing goes on") && log.contains("free space"), "{log}");
        let depth = self.broker.depth(&Queue::Completion).await.unwrap();
        assert_eq!((depth.ready, depth.unsettled), (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_on_a_full_disk_gets_its_lines_once_there_is_room() {
    let scene = Scene::new("disk/out.jsonl").await;
    scene.is_stuck_then_completes("the sink", "data", "disk/out.jsonl", 200 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_on_a_full_disk_takes_its_lines_once_there_is_room() {
    let scene = Scene::new("out.jsonl").await;
    scene.is_stuck_then_completes("the spool", "disk/data", "out.jsonl", 700 * 1024).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ledger_on_a_full_disk_settles_once_there_is_room() {
    let scene = Scene::new("out.jsonl").await;
    // Room for the 2.1 MB of lines in the spool, and hardly more.
    scene.is_stuck_then_completes("the ledger", "disk/data", "out.jsonl", 2_500 * 1024).await;
}
