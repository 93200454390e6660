//! The control socket of a live collector: who may use it, what it says, and what it leaves.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;
use windrow_collector::control::{AskError, Request, ask, socket};
use windrow_collector::{CommandError, Reader, RunCommand};
use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, Queue};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{Group, RunId};

use crate::broker_loop::start;
use crate::support::{PATIENCE, job, opened, publish, sealed};

async fn asked(data: &Path, run: &RunId, command: RunCommand) -> Result<RunState, AskError> {
    ask(data, &Request { command, run: run.clone() }).await
}

#[track_caller]
fn refused(answer: Result<RunState, AskError>) -> CommandError {
    match answer {
        Err(AskError::Refused(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_is_paused_resumed_and_cancelled_through_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir_all(&data).unwrap();
    // What a killed collector leaves.
    drop(UnixListener::bind(socket(&data)).unwrap());
    let run: RunId = "r1".parse().unwrap();
    assert!(matches!(asked(&data, &run, RunCommand::Pause).await, Err(AskError::NoCollector(_))));

    let broker: Arc<dyn Broker> =
        Arc::new(EmbeddedBroker::open(&folder.path().join("broker"), &Group::main()).unwrap());
    broker.ensure(&Queue::Completion).await.unwrap();
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(start(folder.path(), &broker).await.unwrap().run(shutdown.clone()));
    publish(&broker, &opened(&job(folder.path()), &run)).await;
    let until = Instant::now() + PATIENCE;
    let paused = loop {
        match asked(&data, &run, RunCommand::Pause).await {
            Err(AskError::NoCollector(_) | AskError::Refused(CommandError::NoSuchRun { .. })) => {}
            answer => break answer.unwrap(),
        }
        assert!(Instant::now() < until, "the run is never opened");
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(paused, RunState::Paused);
    assert_eq!(fs::metadata(socket(&data)).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Reader::open(&data).unwrap().report(&run).unwrap().state, RunState::Paused, "durable");
    assert_eq!(asked(&data, &run, RunCommand::Resume).await.unwrap(), RunState::Running);
    assert_eq!(asked(&data, &run, RunCommand::Cancel).await.unwrap(), RunState::Cancelling);
    assert_eq!(
        refused(asked(&data, &run, RunCommand::Resume).await),
        CommandError::Cancelling { run: run.clone() }
    );
    publish(&broker, &sealed(&run, 2, 10)).await;
    while Reader::open(&data).unwrap().report(&run).unwrap().state != RunState::Cancelled {
        assert!(Instant::now() < until, "the run is never cancelled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let over = CommandError::Ended { run: run.clone(), state: RunState::Cancelled };
    assert_eq!(refused(asked(&data, &run, RunCommand::Pause).await), over);
    let other: RunId = "r2".parse().unwrap();
    assert_eq!(
        refused(asked(&data, &other, RunCommand::Pause).await),
        CommandError::NoSuchRun { run: other.clone() }
    );

    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert!(!socket(&data).exists());
    assert!(matches!(asked(&data, &run, RunCommand::Pause).await, Err(AskError::NoCollector(_))));
}

#[tokio::test(flavor = "multi_thread")]
async fn rubbish_is_refused_and_too_much_of_it_closes_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    let broker: Arc<dyn Broker> =
        Arc::new(EmbeddedBroker::open(&folder.path().join("broker"), &Group::main()).unwrap());
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(start(folder.path(), &broker).await.unwrap().run(shutdown.clone()));
    let path = socket(&folder.path().join("data"));
    let until = Instant::now() + PATIENCE;
    let mut stream = loop {
        match UnixStream::connect(&path).await {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < until, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let long = "x".repeat(5_000);
    let sent = format!(
        "rubbish\n{{\"command\":\"pause\",\"run\":\"../..\"}}\n{{\"command\":\"stop\",\"run\":\"r\"}}\n{long}\n"
    );
    stream.write_all(sent.as_bytes()).await.unwrap();
    let mut answers = String::new();
    // Closed with unread bytes on it, it may end with an error instead.
    let _ = stream.read_to_string(&mut answers).await;
    assert_eq!(answers.matches("{\"error\":\"unreadable\"").count(), 4, "{answers}");
    shutdown.cancel();
    running.await.unwrap().unwrap();
}
