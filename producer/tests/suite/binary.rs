//! The binary over the embedded broker.

use std::path::Path;
use std::process::{Command, Output};

use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::ids::Group;

use crate::support::*;

const JOB: &str = "name = \"sync\"\n[source]\ntype = \"jsonl\"\npath = \"a.jsonl\"\n[chunk]\nitems = 2\n\
                   [[stage]]\ntype = \"echo\"\n";

fn windrow_producer(folder: &Path, arguments: &[&str], crash: &str) -> Output {
    let broker = format!("embedded:{}", folder.join("broker").display());
    let mut command = Command::new(env!("CARGO_BIN_EXE_windrow-producer"));
    command.current_dir(folder).args(arguments).env("WINDROW_BROKER", broker).env("WINDROW_CRASH", crash);
    command.output().unwrap()
}

fn workplace(items: usize) -> Workplace {
    Workplace::new(&[("a.jsonl", &numbers(items)), ("job.toml", JOB.as_bytes())])
}

/// What the broker in the folder holds on its work and completion queues.
async fn delivered(workplace: &Workplace) -> Published {
    let broker = EmbeddedBroker::open(&workplace.path("broker"), &Group::main()).unwrap();
    let job = workplace.job("[source]\ntype = \"jsonl\"\npath = \"a.jsonl\"\n");
    let mut kept = Vec::new();
    for queue in [Queue::Completion, Queue::Work(job.stage_key(&job.stages[0]))] {
        let waiting = broker.depth(&queue).await.unwrap().ready;
        let mut subscription = broker.subscribe(vec![queue.clone()], 1000).await.unwrap();
        for _ in 0..waiting {
            let message = subscription.next().await.unwrap().message;
            kept.push(Outgoing { target: Target::Queue(queue.clone()), message });
        }
    }
    Published::read(&kept)
}

#[tokio::test]
async fn a_run_is_published_and_its_id_printed() {
    let workplace = workplace(7);
    let output = windrow_producer(&workplace.path(""), &["job.toml", "--run", "r1"], "");
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(0), b"r1\n".as_slice()), "{output:?}");
    let published = delivered(&workplace).await;
    assert_eq!((published.items().len(), published.chunks.len(), published.sealed.len()), (7, 4, 1));
    assert!(workplace.path(".windrow/producer/r1/journal").exists());
}

#[tokio::test]
async fn a_producer_killed_at_each_of_its_crash_points_goes_on_by_the_same_command() {
    for point in [
        "producer.before_publish:30",
        "producer.after_confirm:1",
        "producer.after_confirm:40",
        "producer.before_sealed",
        "producer.after_sealed",
    ] {
        let workplace = workplace(100);
        let killed = windrow_producer(&workplace.path(""), &["job.toml"], point);
        assert_eq!(killed.status.code(), None, "{point}: it was not killed");
        let resumed = windrow_producer(&workplace.path(""), &["job.toml"], "");
        assert_eq!(resumed.status.code(), Some(0), "{point}");
        assert_eq!(killed.stdout, resumed.stdout, "{point}: it is the same run");
        let published = delivered(&workplace).await;
        assert_eq!(published.items().len(), 100, "{point}");
        assert_eq!(published.chunk_spans().len(), 50, "{point}");
        assert_eq!(published.sealed.last().unwrap().sources.values().next().unwrap().accepted, 100);
    }
}

#[test]
fn what_is_wrong_is_told_by_exit_code_and_on_standard_error() {
    let workplace = workplace(1);
    std::fs::write(workplace.path("bad.toml"), "name = \"x\"\n").unwrap();
    std::fs::write(workplace.path("missing.toml"), JOB.replace("a.jsonl", "none-*.jsonl")).unwrap();
    std::fs::write(workplace.path("b.jsonl"), "1\nbroken\n").unwrap();
    std::fs::write(workplace.path("rejects.toml"), JOB.replace("a.jsonl", "b.jsonl")).unwrap();
    std::fs::write(workplace.path("c.json"), "[1, 2").unwrap();
    let broken = JOB.replace("a.jsonl", "c.json").replace("jsonl", "json");
    std::fs::write(workplace.path("broken.toml"), broken).unwrap();
    for (arguments, code, word) in [
        (vec!["bad.toml"], 2, "source"),
        (vec!["job.toml", "--frist", "1"], 2, "--first"),
        (vec!["missing.toml"], 1, "none-*.jsonl"),
        (vec!["rejects.toml"], 3, ""),
        (vec!["broken.toml"], 4, "c.json"),
        (vec!["job.toml", "--broker", "http://x"], 1, "--broker"),
    ] {
        let output = windrow_producer(&workplace.path(""), &arguments, "");
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {errors}");
        assert!(errors.contains(word), "{arguments:?}: {errors}");
    }
}
