//! `docs/wire.md` is enough to write a client in another language: `tests/python/wire_client.py`, written from
//! it alone, produces for our consumer and consumes what we produce.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout};
use windrow_common::broker::{Broker, Outgoing, Queue, Subscription, Target, address};
use windrow_common::envelope::chunk::{ChunkHeader, Span};
use windrow_common::envelope::completion::{Completion, Latencies, Outcomes, Question};
use windrow_common::envelope::control::{Answer, Control};
use windrow_common::ids::{ChunkId, Group, StageKey};
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};
use windrow_tests::process::{Process, binary, workspace};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// A dot in each name: on the wire they are written otherwise.
fn group() -> Group {
    "wire.test".parse().unwrap()
}

fn stage() -> StageKey {
    StageKey { job: "py.job".parse().unwrap(), stage: "do.it".parse().unwrap() }
}

/// Python with what the client needs, made once for all tests.
fn python() -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("wire-python");
    let requirements = workspace().join("tests/python/requirements.txt");
    fs::create_dir_all(&folder).unwrap();
    let lock = File::create(folder.join("lock")).unwrap();
    lock.lock().unwrap();
    let python = folder.join("venv/bin/python");
    let installed = folder.join("installed.txt");
    let wanted = fs::read(&requirements).unwrap();
    if fs::read(&installed).ok().as_ref() != Some(&wanted) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(folder.join("venv")));
        run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "-r"]).arg(&requirements));
        fs::write(installed, wanted).unwrap();
    }
    python
}

fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The Python client at work.
struct Client {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Client {
    fn start(mode: &str, server: &RabbitMqServer, hash: &str, count: &[&str]) -> Self {
        let mut child = tokio::process::Command::new(python())
            .arg(workspace().join("tests/python/wire_client.py"))
            .args([mode, "--group", group().as_str(), "--job", stage().job.as_str()])
            .args(["--stage", stage().stage.as_str(), "--hash", hash, "--url", &server.uri()])
            .args(count)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next thing it says; null when it has ended.
    async fn says(&mut self) -> Value {
        let line = tokio::time::timeout(PATIENCE, self.lines.next_line()).await.unwrap().unwrap();
        line.map_or(Value::Null, |line| serde_json::from_str(&line).unwrap())
    }

    async fn succeeded(mut self) -> bool {
        tokio::time::timeout(PATIENCE, self.child.wait()).await.unwrap().unwrap().success()
    }
}

/// Our side: the broker with the stage's queues. The client declares them again, as the contract has them.
async fn broker(server: &RabbitMqServer) -> Arc<dyn Broker> {
    let broker = address::connect(&server.uri().parse().unwrap(), &group()).await.unwrap();
    for queue in [Queue::Work(stage()), Queue::Due(stage()), Queue::Held(stage()), Queue::Completion] {
        broker.ensure(&queue).await.unwrap();
    }
    broker
}

async fn next_completion(broker: &dyn Broker, completions: &mut Subscription) -> Completion {
    let delivery = tokio::time::timeout(PATIENCE, completions.next()).await.unwrap().unwrap();
    let completion = Completion::from_message(&delivery.message).unwrap();
    broker.settle(delivery, Vec::new()).await.unwrap();
    completion
}

async fn next_outcomes(broker: &dyn Broker, completions: &mut Subscription) -> Outcomes {
    match next_completion(broker, completions).await {
        Completion::Outcomes(outcomes) => outcomes,
        other => panic!("not outcomes: {other:?}"),
    }
}

/// Takes the next completion, a question, and answers it with `run_items`.
async fn answer(broker: &dyn Broker, completions: &mut Subscription, run_items: &str) -> Question {
    let Completion::Question(question) = next_completion(broker, completions).await else {
        panic!("not a question")
    };
    let answer = Answer {
        token: question.token.clone(),
        run_items: run_items.to_owned(),
        busy_items: String::new(),
        claimed: None,
    };
    let target = Target::Process(question.reply_to.clone());
    let message = Control::Answer(answer).to_message();
    broker.publish(Outgoing { target, message }).await.unwrap();
    question
}

fn chunk(ordinal: u64, resent: bool, first: u64, items: &[&str]) -> (ChunkHeader, Bytes) {
    let count = items.len() as u64;
    let header = ChunkHeader {
        id: ChunkId {
            run: "r1".parse().unwrap(),
            stage: stage().stage,
            source: "main".parse().unwrap(),
            ordinal,
        },
        root_run: "r0".parse().unwrap(),
        job: stage().job,
        hash: "00ff".parse().unwrap(),
        span: Span { first, count },
        items: Ranges::span(first, count),
        attempts: Runs::repeat(0, count),
        throttles: Runs::repeat(0, count),
        holds: Runs::repeat(0, count),
        hop: 0,
        held_ms: 0,
        not_before: None,
        expires: None,
        resent,
        alone: false,
        returns: 0,
        id_field: Some("name".into()),
        traceparent: None,
    };
    (header, Bytes::from(items.join("\n")))
}

async fn publish(broker: &dyn Broker, (header, body): &(ChunkHeader, Bytes)) {
    let message = header.to_message(body.clone(), false);
    broker.publish(Outgoing { target: Target::Queue(Queue::Work(stage())), message }).await.unwrap();
}

/// Outcomes of a chunk's delivery at `hop`, as they should be.
fn outcomes(header: &ChunkHeader, hop: u32, items: &str, ends: &str, attempts: &str, body: &str) -> Outcomes {
    let items: Ranges = items.parse().unwrap();
    Outcomes {
        id: header.id.clone(),
        span: header.span,
        hop,
        outcomes: ends.parse::<Runs<Outcome>>().unwrap(),
        attempts: attempts.parse().unwrap(),
        throttles: Runs::repeat(0, items.len()),
        holds: Runs::repeat(0, items.len()),
        items,
        handed_over: Ranges::new(),
        claimant: None,
        released: Ranges::new(),
        latencies: Latencies::default(),
        unasked: false,
        ids: true,
        body: Bytes::from(body.to_owned()),
    }
}

#[tokio::test]
async fn a_consumer_in_python_works_on_our_chunks_and_asks_about_copies() {
    let server = RabbitMqServer::start().await.unwrap();
    let broker = broker(&server).await;
    let broker = broker.as_ref();
    let mut completions = broker.subscribe(vec![Queue::Completion], 10).await.unwrap();
    let mut client = Client::start("consume", &server, "00ff", &["--chunks", "3"]);
    assert_eq!(client.says().await["event"], "ready");

    let fresh = chunk(3, false, 300, &[r#"{"n":1,"name":"a"}"#, r#"{"n":2,"later":1}"#, "{}", r#"{"n":4}"#]);
    publish(broker, &fresh).await;
    let first = next_outcomes(broker, &mut completions).await;
    let body = "\"a\"\t{\"double\": 2}\n\"\"\t{\"class\": \"no_number\", \"message\": \"the item has no n\"}\n\
                \"\"\t{\"double\": 8}\n";
    let expected = outcomes(&fresh.0, 0, "300,302-303", "succeeded,failed,succeeded", "1*3", body);
    assert_eq!(first, Outcomes { handed_over: "301".parse().unwrap(), ..expected });

    // The remainder comes back through a delay level and the due queue, and is asked about.
    let question = answer(broker, &mut completions, "301").await;
    let asked = (question.id, question.span, question.hop, question.items.to_string());
    assert_eq!(asked, (fresh.0.id.clone(), fresh.0.span, 1, "301".to_owned()));
    let second = next_outcomes(broker, &mut completions).await;
    assert_eq!(second, outcomes(&fresh.0, 1, "301", "succeeded", "2", "\"\"\t{\"double\": 4}\n"));

    // Of a copy only what the answer names is run.
    let copy = chunk(4, true, 400, &[r#"{"n":5}"#, r#"{"n":6}"#, r#"{"n":7}"#]);
    publish(broker, &copy).await;
    assert_eq!(answer(broker, &mut completions, "401").await.hop, 0);
    let third = next_outcomes(broker, &mut completions).await;
    assert_eq!(third, outcomes(&copy.0, 0, "401", "succeeded", "1", "\"\"\t{\"double\": 12}\n"));

    for hop in [0, 1, 0] {
        assert_eq!(client.says().await["hop"], hop);
    }
    assert_eq!(client.says().await, Value::Null);
    assert!(client.succeeded().await);
    for queue in [Queue::Work(stage()), Queue::Due(stage()), Queue::Parking] {
        assert_eq!(broker.depth(&queue).await.unwrap().ready, 0, "{queue:?}");
    }
}

#[tokio::test]
async fn a_producer_in_python_gets_each_item_back_from_our_consumer_as_it_was() {
    let server = RabbitMqServer::start().await.unwrap();
    let broker = broker(&server).await;
    let folder = tempfile::tempdir().unwrap();
    let job = folder.path().join("job.toml");
    let stage = stage();
    let text = format!(
        "name = \"{}\"\n[source]\ntype = \"jsonl\"\npath = \"items.jsonl\"\n\
         [[stage]]\nname = \"{}\"\ntype = \"echo\"\n",
        stage.job, stage.stage
    );
    fs::write(&job, text).unwrap();
    let hash = windrow_common::job::Job::load(&job).unwrap().hash;
    let consumer = Process::start(
        "windrow-consumer",
        Command::new(binary("windrow-consumer"))
            .args(["--jobs", folder.path().to_str().unwrap(), "--group", group().as_str()])
            .env("WINDROW_BROKER", server.uri()),
        folder.path(),
    );
    let mut client = Client::start("produce", &server, hash.as_str(), &["--items", "250"]);
    let verdict = client.says().await;
    assert_eq!(verdict["verdict"], "ok", "{verdict}\n{}", consumer.log());
    assert_eq!(verdict["settled"], 250);
    assert!(client.succeeded().await);
    assert_eq!(broker.depth(&Queue::Parking).await.unwrap().ready, 0);
}
