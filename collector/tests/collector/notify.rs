//! Telling people how a run ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use serde_json::Value;
use tokio_util::sync::CancellationToken;
use windrow_collector::Collector;
use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, Queue};
use windrow_common::envelope::completion::Completion;
use windrow_common::ids::{Group, RunId};
use windrow_common::job::{Job, JobSet};

use crate::broker_loop::options;
use crate::support::{JOB, PATIENCE, chunk, opened, outcomes, publish, sealed};

/// A server that remembers what it was told: the idempotency key and the body.
struct Hook {
    address: SocketAddr,
    works: Arc<AtomicBool>,
    told: Arc<Mutex<Vec<(String, Value)>>>,
}

impl Hook {
    /// Answers 503 until it works.
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hook =
            Self { address: listener.local_addr().unwrap(), works: Arc::default(), told: Arc::default() };
        let (works, told) = (Arc::clone(&hook.works), Arc::clone(&hook.told));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = BufReader::new(stream.unwrap());
                let (mut key, mut length) = (String::new(), 0);
                for line in stream.by_ref().lines().map(Result::unwrap).take_while(|line| !line.is_empty()) {
                    match line.split_once(": ") {
                        Some(("idempotency-key", value)) => value.clone_into(&mut key),
                        Some(("content-length", value)) => length = value.parse().unwrap(),
                        _ => {}
                    }
                }
                let mut body = vec![0; length];
                stream.read_exact(&mut body).unwrap();
                told.lock().unwrap().push((key, serde_json::from_slice(&body).unwrap()));
                let status = if works.load(Ordering::SeqCst) { "200 OK" } else { "503 Busy" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                stream.get_mut().write_all(answer.as_bytes()).unwrap();
            }
        });
        hook
    }

    fn told(&self) -> Vec<(String, Value)> {
        self.told.lock().unwrap().clone()
    }

    /// Waits until it was told `count` times.
    async fn wait_for(&self, count: usize) {
        let until = tokio::time::Instant::now() + PATIENCE;
        while self.told().len() < count {
            assert!(tokio::time::Instant::now() < until, "told {} of {count} times", self.told().len());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

fn job(folder: &Path, address: SocketAddr) -> Job {
    let file = folder.join("told.json");
    let notify = format!(
        "[notify]\non = ['run_failed', 'run_completed']\nurl = 'http://{address}/hook'\n\
         command = ['tee', '-a', '{}']\n",
        file.display()
    );
    let sink = format!("path = '{}'\nif_exists = 'append'", folder.join("out.jsonl").display());
    Job::parse(&folder.join("job.toml"), &(JOB.replace("path = 'out.jsonl'", &sink) + &notify)).unwrap()
}

async fn start(folder: &Path, job: &Job, broker: &Arc<dyn Broker>) -> Collector {
    let jobs = Arc::new(JobSet::from_jobs([job.clone()]));
    Collector::start(jobs, Arc::clone(broker), options(folder)).await.unwrap()
}

async fn run(broker: &Arc<dyn Broker>, job: &Job, name: &str) {
    let run: RunId = name.parse().unwrap();
    publish(broker, &opened(job, &run)).await;
    let (id, span) = chunk(&run, 0, 10);
    publish(broker, &Completion::Outcomes(outcomes(id, span, 0, &span.to_ranges()))).await;
    publish(broker, &sealed(&run, 1, 10)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_run_is_told_once_it_can_be_also_after_a_crash() {
    let folder = tempfile::tempdir().unwrap();
    let hook = Hook::start();
    let job = job(folder.path(), hook.address);
    let broker: Arc<dyn Broker> =
        Arc::new(EmbeddedBroker::open(&folder.path().join("broker"), &Group::main()).unwrap());
    broker.ensure(&Queue::Completion).await.unwrap();

    // Nobody could be told before the collector died.
    let collector = start(folder.path(), &job, &broker).await;
    let running = tokio::spawn(collector.run(CancellationToken::new()));
    run(&broker, &job, "r1").await;
    hook.wait_for(1).await;
    running.abort();
    assert!(running.await.unwrap_err().is_cancelled());
    hook.works.store(true, Ordering::SeqCst);
    let in_vain = hook.told().len();

    for (name, told_before) in [("r2", in_vain + 1), ("r3", in_vain + 2)] {
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(start(folder.path(), &job, &broker).await.run(shutdown.clone()));
        hook.wait_for(told_before).await;
        run(&broker, &job, name).await;
        hook.wait_for(told_before + 1).await;
        shutdown.cancel();
        assert!(running.await.unwrap().unwrap().clean);
    }
    let told = hook.told();
    let keys: Vec<&str> = told.iter().map(|(key, _)| key.as_str()).collect();
    assert!(keys[..in_vain].iter().all(|key| *key == "r1/run_completed"), "{keys:?}");
    assert_eq!(keys[in_vain..], ["r1/run_completed", "r2/run_completed", "r3/run_completed"]);
    let (_, body) = told.last().unwrap();
    assert_eq!((&body["event"], &body["run"]), (&"run_completed".into(), &"r3".into()));
    assert_eq!((&body["state"], &body["failed"]), (&"completed_with_failures".into(), &2.into()), "{body}");
    let by_program = std::fs::read_to_string(folder.path().join("told.json")).unwrap();
    for run in ["r1", "r2", "r3"] {
        assert!(by_program.contains(&format!("\"run\":\"{run}\"")), "{by_program}");
    }
}
