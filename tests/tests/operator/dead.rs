//! Dead letters from their death to what an operator does with them, on whichever broker.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use serde_json::Value;
use tempfile::TempDir;
use windrow_common::broker::address::connect;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::envelope::chunk::{ChunkHeader, Span};
use windrow_common::envelope::completion::{Completion, Opened, Sealed, SourceProgress};
use windrow_common::envelope::{Headers, Message};
use windrow_common::ids::{ChunkId, Group, ProcessId, SourceName, StageKey};
use windrow_common::job::Job;
use windrow_common::ranges::Runs;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::broker_contract::until_ready;
use windrow_tests::desk::{Desk, Said, json_lines};
use windrow_tests::fleet::Fleet;
use windrow_tests::metrics::Metrics;
use windrow_tests::process::wait_until;

const PATIENCE: Duration = Duration::from_secs(60);

const JOB: &str = "name = \"dead\"\n[source]\ntype = \"jsonl\"\npath = \"none.jsonl\"\n\
                   [[stage]]\nname = \"call\"\ntype = \"echo\"\n[sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\n";

/// Lets the only message of the work queue be delivered more often than it may be.
pub(super) type Wear = for<'a> fn(&'a str) -> BoxFuture<'a, ()>;

/// A run on a broker, and its operator.
struct Scene {
    folder: TempDir,
    broker: Arc<dyn Broker>,
    uri: String,
    job: Job,
    desk: Desk,
}

pub(super) async fn dead_letters_on(uri: &str, wear: Wear) {
    let scene = Scene::new(uri).await;
    let fleet = Fleet::new(scene.folder.path(), uri, JOB);
    scene.a_run_with_a_worn_out_chunk(wear).await;
    // Its collector dies with the chunk's end in the ledger and the chunk not yet parked.
    let mut crashed = fleet.collector(Some("collector.settling"));
    assert!(!crashed.wait(PATIENCE).success());
    let _collector = fleet.collector(None);
    let consumer = fleet.watched_consumer(0);
    scene.rubbish().await;
    let ended = fleet.run_folder("worn").join("report.json");
    wait_until("the run ends", PATIENCE, || {
        std::fs::read_to_string(&ended).is_ok_and(|text| text.contains("completed_with_failures"))
    });
    let report = report(&fleet.run_folder("worn"));
    check_balance(&report, 30);
    assert_eq!((&report["succeeded"], &report["failed"]), (&10.into(), &20.into()), "{report}");
    assert_eq!((&report["duplicates"], &report["late"]), (&0.into(), &0.into()), "{report}");
    assert_eq!(check_sink(&fleet.data().join("out.jsonl"), 30, true)["failed"], 20);
    until_ready(scene.broker.as_ref(), &Queue::Parking, 5).await.unwrap();
    scene.looking_changes_nothing();
    scene.sending_back(&fleet.run_folder("worn"), Metrics::of(&consumer)).await;
    scene.dropping();
}

impl Scene {
    async fn new(uri: &str) -> Self {
        let desk = Desk::new(JOB);
        let job = Job::load(&desk.path("job.toml")).unwrap();
        let broker = connect(&uri.parse().unwrap(), &Group::main()).await.unwrap();
        let scene = Self { folder: TempDir::new().unwrap(), broker, uri: uri.to_owned(), job, desk };
        for queue in [scene.work(), Queue::Due(scene.stage()), Queue::Completion] {
            scene.broker.ensure(&queue).await.unwrap();
        }
        scene
    }

    fn stage(&self) -> StageKey {
        self.job.stage_key(&self.job.stages[0])
    }

    fn work(&self) -> Queue {
        Queue::Work(self.stage())
    }

    /// Thirty items: a chunk that is worn out, one of an unknown hash, held for as long as it may be, and a good one.
    async fn a_run_with_a_worn_out_chunk(&self, wear: Wear) {
        self.send(Queue::Completion, Completion::Opened(self.opened()).to_message(false)).await;
        self.send(self.work(), self.chunk(0, |_| {})).await;
        wear(&self.uri).await;
        until_ready(self.broker.as_ref(), &self.work(), 0).await.unwrap();
        until_ready(self.broker.as_ref(), &Queue::Completion, 2).await.unwrap();
        let unknown = |header: &mut ChunkHeader| {
            header.hash = "ff".parse().unwrap();
            header.held_ms = 600_000;
        };
        self.send(self.work(), self.chunk(1, unknown)).await;
        self.send(self.work(), self.chunk(2, |_| {})).await;
        let totals = SourceProgress { accepted: 30, chunks: 3, rejected: 0 };
        let sources = [(SourceName::only(), totals)].into();
        let sealed = Sealed { run: "worn".parse().unwrap(), sources, error: None };
        self.send(Queue::Completion, Completion::Sealed(sealed).to_message(false)).await;
    }

    /// Something on each queue that nobody can make sense of.
    async fn rubbish(&self) {
        for queue in [self.work(), Queue::Due(self.stage()), Queue::Completion] {
            let message_id = format!("rubbish on {}\u{1b}[2J", queue.kind());
            let rubbish = Message {
                kind: "rubbish".into(),
                message_id,
                reply_to: String::new(),
                headers: Headers::new(),
                content_encoding: String::new(),
                body: Bytes::from_static(b"\xff\x00secret"),
            };
            self.send(queue, rubbish).await;
        }
    }

    async fn send(&self, queue: Queue, message: Message) {
        self.broker.publish(Outgoing { target: Target::Queue(queue), message }).await.unwrap();
    }

    fn opened(&self) -> Opened {
        Opened {
            run: "worn".parse().unwrap(),
            root_run: "worn".parse().unwrap(),
            job: self.job.name.clone(),
            hash: self.job.hash.clone(),
            sources: vec![SourceName::only()],
            fingerprint: "f".into(),
            started_at: 1_700_000_000_000,
            producer: ProcessId::generate(),
        }
    }

    /// Ten items.
    fn chunk(&self, ordinal: u64, change: impl FnOnce(&mut ChunkHeader)) -> Message {
        let span = Span { first: ordinal * 10, count: 10 };
        let (run, StageKey { job, stage }) = ("worn".parse().unwrap(), self.stage());
        let mut header = ChunkHeader {
            id: ChunkId { run, stage, source: SourceName::only(), ordinal },
            root_run: "worn".parse().unwrap(),
            job,
            hash: self.job.hash.clone(),
            span,
            items: span.to_ranges(),
            attempts: Runs::repeat(0, 10),
            throttles: Runs::repeat(0, 10),
            holds: Runs::repeat(0, 10),
            hop: 0,
            held_ms: 0,
            not_before: None,
            expires: None,
            resent: false,
            alone: false,
            returns: 0,
            id_field: None,
            traceparent: None,
        };
        change(&mut header);
        header.to_message(Bytes::from("{}\n".repeat(10)), false)
    }

    fn dead(&self, arguments: &[&str]) -> Said {
        self.desk.windrow(&[&["dead"], arguments, &["--broker", &self.uri]].concat())
    }

    fn list(&self) -> Vec<Value> {
        json_lines(&self.dead(&["list", "--json"]).ended(0, &[]).out)
    }

    fn looking_changes_nothing(&self) {
        let letters = self.list();
        for at in 1..=letters.len() {
            let (letter, at) = (&letters[at - 1], at.to_string());
            let id = letter["id"].as_str().unwrap();
            let shown = self.dead(&["show", &at]).ended(0, &[]);
            assert_eq!(shown.out, self.dead(&["show", id]).ended(0, &[]).out);
            for text in [id, letter["reason"].as_str().unwrap(), letter["from"].as_str().unwrap()] {
                assert!(shown.out.contains(text), "{text} is not shown: {shown}");
            }
            assert!(!shown.out.contains("secret") && !shown.out.contains('\u{1b}'), "{shown}");
        }
        assert_eq!(self.list(), letters, "looking has changed something");
        let table = self.dead(&["list", "--limit", "2"]).ended(0, &["2 of 5 dead letters"]);
        assert_eq!(table.out.lines().count(), 3, "{table}");
        let found = |text: &str| {
            letters.iter().find(|letter| letter["reason"].as_str().unwrap().contains(text)).unwrap()
        };
        for (letter, ordinal) in [(found("too often"), 0), (found("no consumer of this queue"), 1)] {
            assert_eq!((&letter["from"], &letter["failed_items"]), (&"work".into(), &10.into()));
            assert_eq!(
                (&letter["headers"]["run"], &letter["headers"]["ordinal"]),
                (&"worn".into(), &ordinal.into())
            );
            assert_eq!((&letter["job"], &letter["stage"]), (&"dead".into(), &"call".into()));
            assert!(letter["parked_at"].as_str().unwrap().starts_with("20"), "{letter}");
        }
    }

    async fn sending_back(&self, run: &Path, consumer: Metrics) {
        let before = report(run);
        let letters = self.list();
        let id_of = |text: &str| {
            let has = |letter: &&Value| letter.to_string().contains(text);
            letters.iter().find(has).unwrap()["id"].as_str().unwrap()
        };
        for origin in ["work", "due", "completion"] {
            let id = id_of(&format!("rubbish on {origin}"));
            self.dead(&["replay", id]).ended(0, &[]);
            until_ready(self.broker.as_ref(), &Queue::Parking, 5).await.unwrap();
            let back = self.list();
            let last = back.last().unwrap();
            assert_eq!((&last["id"], &last["from"]), (&id.into(), &origin.into()), "it was parked again");
        }
        // The chunk asks, is told that all of its items have ended, and changes nothing.
        let said = self.dead(&["replay", id_of("too often")]).ended(0, &["10 items ended as failed"]);
        assert!(said.out.contains("sent back: 1 dead letter"), "{said}");
        assert_eq!(self.list().len(), 4);
        wait_until("the chunk has asked, and is let go of", PATIENCE, || {
            let settled = consumer.sum("windrow_chunks_settled_total");
            consumer.sum("windrow_questions_answered_total") >= 1.0
                && settled >= consumer.sum("windrow_chunks_received_total")
        });
        until_ready(self.broker.as_ref(), &Queue::Completion, 0).await.unwrap();
        assert_eq!(report(run), before);
        self.dead(&["replay", "d00000000000"]).ended(1, &["d00000000000 is not among 4 dead letters"]);
    }

    fn dropping(&self) {
        let letters = self.list();
        let id = letters[0]["id"].as_str().unwrap();
        let body = self.dead(&["show", id, "--body"]).ended(0, &[]);
        assert!(body.out.starts_with("{}\n") || body.out.contains("secret"), "{body}");
        self.dead(&["drop", id]).ended(0, &[]);
        assert_eq!(self.list(), renumbered(&letters[1..]));
        self.dead(&["drop"]).ended(2, &["--all"]);
        let said = self.dead(&["drop", "--all"]).ended(0, &[]);
        assert!(said.out.contains("dropped: 3 dead letters"), "{said}");
        self.dead(&["list"]).ended(0, &["no dead letters"]);
    }
}

/// The same letters, counted from 1.
fn renumbered(letters: &[Value]) -> Vec<Value> {
    let mut letters = letters.to_vec();
    for (position, letter) in (1..).zip(&mut letters) {
        letter["position"] = Value::from(position);
    }
    letters
}
