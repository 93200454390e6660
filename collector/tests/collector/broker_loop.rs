//! The collector on the embedded broker: what it takes, what it answers, and how it leaves.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_collector::{Collector, CollectorError, LedgerPlace, Options, SinkBase};
use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::envelope::completion::{Completion, Question};
use windrow_common::envelope::control::{Control, RunState};
use windrow_common::ids::{Group, ProcessId, RunId};
use windrow_common::job::JobSet;
use windrow_common::telemetry::metrics::Metrics;

use crate::support::{chunk, job, opened, outcomes, publish, sealed};

pub(crate) fn options(folder: &Path) -> Options {
    Options {
        is_alone: true,
        data_dir: folder.join("data"),
        ledger: LedgerPlace::DataDir,
        sink_base: SinkBase::JobFile,
        metrics: Metrics::new("collector"),
        trouble: watch::Sender::new(None),
    }
}

pub(crate) async fn start(folder: &Path, broker: &Arc<dyn Broker>) -> Result<Collector, CollectorError> {
    let jobs = Arc::new(JobSet::from_jobs([job(folder)]));
    Collector::start(jobs, Arc::clone(broker), options(folder)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_collected_told_and_let_go_of() {
    let folder = tempfile::tempdir().unwrap();
    let broker: Arc<dyn Broker> =
        Arc::new(EmbeddedBroker::open(&folder.path().join("broker"), &Group::main()).unwrap());
    broker.ensure(&Queue::Completion).await.unwrap();
    let asker = ProcessId::generate();
    let mut mail = broker.subscribe(vec![Queue::Process(asker.clone())], 100).await.unwrap();
    let collector = start(folder.path(), &broker).await.unwrap();
    let mut snapshots = collector.snapshots();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(collector.run(shutdown.clone()));

    let run: RunId = "r1".parse().unwrap();
    publish(&broker, &opened(&job(folder.path()), &run)).await;
    for ordinal in 0..600 {
        let (id, span) = chunk(&run, ordinal, 1);
        publish(&broker, &Completion::Outcomes(outcomes(id, span, 0, &span.to_ranges()))).await;
    }
    let (id, span) = chunk(&run, 7, 1);
    let question = Question {
        id,
        span,
        hop: 0,
        items: span.to_ranges(),
        reply_to: asker,
        token: "t7".into(),
        claim: None,
    };
    publish(&broker, &Completion::Question(question)).await;
    let mut strange = sealed(&run, 600, 1).to_message(false);
    strange.kind = "strange".into();
    broker.publish(Outgoing { target: Target::Queue(Queue::Completion), message: strange }).await.unwrap();
    publish(&broker, &sealed(&run, 600, 1)).await;

    let ended = |reports: &Arc<BTreeMap<RunId, windrow_collector::Report>>| {
        reports.get(&run).is_some_and(|report| report.state == RunState::CompletedWithFailures)
    };
    let wait = tokio::time::timeout(Duration::from_secs(30), snapshots.wait_for(ended));
    assert_eq!(wait.await.unwrap().unwrap()[&run].outcomes.settled(), 600);
    let output = fs::read_to_string(folder.path().join("out.jsonl")).unwrap();
    assert_eq!(output.lines().count(), 600);
    assert!(
        output.ends_with("{\"item\":599,\"outcome\":\"succeeded\",\"output\":{\"n\":599},\"attempts\":1}\n")
    );

    let (mut answered, mut told) = (false, false);
    while !(answered && told) {
        let delivery = tokio::time::timeout(Duration::from_secs(30), mail.next()).await.unwrap().unwrap();
        match Control::from_message(&delivery.message).unwrap() {
            Control::Answer(answer) => {
                assert_eq!((answer.token.as_str(), answer.run_items.as_str()), ("t7", ""));
                answered = true;
            }
            Control::RunNews(news) => told |= news.state == RunState::CompletedWithFailures,
            _ => {}
        }
    }
    shutdown.cancel();
    assert!(running.await.unwrap().unwrap().clean);
    assert_eq!(broker.depth(&Queue::Completion).await.unwrap().ready, 0);
    assert_eq!(broker.depth(&Queue::Parking).await.unwrap().ready, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_collector_on_the_same_folder_is_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let broker: Arc<dyn Broker> =
        Arc::new(EmbeddedBroker::open(&folder.path().join("broker"), &Group::main()).unwrap());
    let first = start(folder.path(), &broker).await.unwrap();
    let refused = start(folder.path(), &broker).await.unwrap_err().to_string();
    assert!(refused.contains("data") && refused.contains("--data-dir"), "{refused}");
    drop(first);
    start(folder.path(), &broker).await.unwrap();
}
