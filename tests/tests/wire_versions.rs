//! Versions side by side: what a fleet of an earlier build said, recorded in `tests/wire/`, is understood by today's
//! consumer and collector on a real broker. So is the same under the version before today's, and with headers and
//! fields that nobody knows.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tempfile::TempDir;
use windrow_common::broker::{Broker, Outgoing, Queue, Subscription, Target, address};
use windrow_common::envelope::completion::Completion;
use windrow_common::envelope::control::{Answer, Control, Lease};
use windrow_common::envelope::{HeaderValue, Headers, Message, WIRE_VERSION};
use windrow_common::ids::{Group, ProcessId, StageKey};
use windrow_common::job::Job;
use windrow_common::ranges::Ranges;
use windrow_tests::account::{check_balance, check_sink, report};
use windrow_tests::fleet::Fleet;
use windrow_tests::process::{Process, workspace};
use windrow_tests::rabbitmq_server::RabbitMqServer;

const PATIENCE: Duration = Duration::from_secs(60);

/// The run of the recording.
const RUN: &str = "recorded-run";

/// How recorded messages are said again.
#[derive(Debug, Clone, Copy)]
enum Saying {
    /// As they are.
    Recorded,
    /// Under the version before today's. None older than 1 was ever written, so the number stands for it.
    VersionBefore,
    /// With a header more, and a field more in every object of a known form.
    WithAdditions,
}

const SAYINGS: [Saying; 3] = [Saying::Recorded, Saying::VersionBefore, Saying::WithAdditions];

impl Saying {
    /// Each has a run of its own.
    fn run(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    fn adds_to(self, body: &mut Map<String, Value>) {
        let Self::WithAdditions = self else { return };
        let lists = body.values_mut().filter_map(Value::as_array_mut);
        for object in lists.flatten().filter_map(Value::as_object_mut) {
            object.insert("not_known_yet".to_owned(), json!({"a": [1, "b"]}));
        }
        body.insert("not_known_yet".to_owned(), json!({"a": [1, "b"]}));
    }
}

/// The messages of the recording, in the order they were sent.
struct Recording(Vec<Value>);

impl Recording {
    fn read() -> Self {
        let text = fs::read_to_string(workspace().join("tests/wire/messages.jsonl")).unwrap();
        Self(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
    }

    /// Those of a kind, with their bodies changed by `change`.
    fn said(&self, kind: &str, saying: Saying, change: &dyn Fn(&mut Map<String, Value>)) -> Vec<Message> {
        let recorded = self.0.iter().filter(|recorded| recorded["kind"] == kind);
        let said: Vec<Message> = recorded.map(|recorded| say(recorded, saying, change)).collect();
        assert!(!said.is_empty(), "no `{kind}` was recorded");
        said
    }

    fn first(&self, kind: &str, saying: Saying, change: &dyn Fn(&mut Map<String, Value>)) -> Message {
        self.said(kind, saying, change).remove(0)
    }
}

fn unchanged(_: &mut Map<String, Value>) {}

fn say(recorded: &Value, saying: Saying, change: &dyn Fn(&mut Map<String, Value>)) -> Message {
    let text = |value: &Value| value.as_str().unwrap().replace(RUN, &saying.run());
    let mut headers = Headers::new();
    for (name, value) in recorded["headers"].as_object().unwrap() {
        match value.as_u64() {
            Some(number) => headers.set_int(name, number),
            None => headers.set_text(name, text(value)),
        }
    }
    match saying {
        Saying::Recorded => {}
        Saying::VersionBefore => headers.set("version", HeaderValue::Int(WIRE_VERSION - 1)),
        Saying::WithAdditions => headers.set_text("not_known_yet", "1*3"),
    }
    let mut body = text(&recorded["body"]);
    // Bodies of chunks and outcomes are lines of users' data.
    if !["chunk", "outcomes", "question"].contains(&recorded["kind"].as_str().unwrap()) {
        let mut object: Map<String, Value> = serde_json::from_str(&body).unwrap();
        change(&mut object);
        saying.adds_to(&mut object);
        body = Value::Object(object).to_string();
    }
    Message {
        kind: text(&recorded["kind"]),
        message_id: text(&recorded["message_id"]),
        reply_to: text(&recorded["reply_to"]),
        headers,
        content_encoding: String::new(),
        body: Bytes::from(body),
    }
}

/// A broker with a fleet's folder, and the rest of the fleet played by the test.
struct Stage {
    recording: Recording,
    fleet: Fleet,
    broker: Arc<dyn Broker>,
    _server: RabbitMqServer,
    _folder: TempDir,
}

impl Stage {
    async fn set() -> Self {
        let folder = TempDir::new().unwrap();
        let server = RabbitMqServer::start().await.unwrap();
        let job = fs::read_to_string(workspace().join("tests/wire/job.toml")).unwrap();
        let fleet = Fleet::new(folder.path(), &server.uri(), &job);
        let broker = address::connect(&server.uri().parse().unwrap(), &Group::main()).await.unwrap();
        let recording = Recording::read();
        let chunk = recording.first("chunk", Saying::Recorded, &unchanged);
        let hash = Job::load(&fleet.job()).unwrap().hash;
        assert_eq!(
            chunk.headers.text("hash"),
            Ok(hash.as_str()),
            "a job keeps its hash from version to version"
        );
        Self { recording, fleet, broker, _server: server, _folder: folder }
    }

    async fn send(&self, target: Target, message: Message) {
        self.broker.publish(Outgoing { target, message }).await.unwrap();
    }

    async fn next(&self, subscription: &mut Subscription) -> Message {
        let delivery = tokio::time::timeout(PATIENCE, subscription.next()).await.unwrap().unwrap();
        let message = delivery.message.clone();
        self.broker.settle(delivery, Vec::new()).await.unwrap();
        message
    }

    async fn listen(&self, process: &ProcessId) -> Subscription {
        self.broker.subscribe(vec![Queue::Process(process.clone())], 100).await.unwrap()
    }

    async fn assert_nothing_is_parked(&self, process: &Process) {
        let parked = self.broker.depth(&Queue::Parking).await.unwrap().ready;
        assert_eq!(parked, 0, "{}", process.log());
    }
}

/// The end of a run is told before its report is written.
async fn until_ended(run_folder: &Path) {
    let written = async {
        let report = run_folder.join("report.json");
        while !fs::read_to_string(&report).is_ok_and(|text| text.contains("completed_with_failures")) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, written).await.unwrap();
}

async fn until_logged(process: &Process, text: &str) {
    tokio::time::timeout(PATIENCE, async {
        while !process.log().contains(text) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("never said `{text}`:\n{}", process.log()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_settles_what_a_producer_and_a_consumer_of_an_earlier_build_say() {
    let stage = Stage::set().await;
    let collector = stage.fleet.collector(None);
    until_logged(&collector, "collecting").await;
    let asker: ProcessId =
        stage.recording.first("question", Saying::Recorded, &unchanged).reply_to.parse().unwrap();
    let mut heard = stage.listen(&asker).await;
    for saying in SAYINGS {
        let lease = stage.tell_collector(saying, &mut heard).await;
        assert_eq!(lease.lent.len(), 2, "{lease:?}");
        let run_folder = stage.fleet.run_folder(&saying.run());
        until_ended(&run_folder).await;
        let report = report(&run_folder);
        check_balance(&report, 6);
        assert_eq!((&report["state"], &report["rejected"]), (&"completed_with_failures".into(), &1.into()));
        let outcomes = check_sink(&stage.fleet.data().join("out.jsonl"), 6, true);
        assert_eq!((outcomes["succeeded"], outcomes["failed"]), (5, 1));
    }
    stage.assert_nothing_is_parked(&collector).await;
}

impl Stage {
    /// Says what goes to the completion queue, then demands permits. Returns those lent.
    async fn tell_collector(&self, saying: Saying, heard: &mut Subscription) -> Lease {
        let recorded = self.recording.first("answer", Saying::Recorded, &unchanged);
        for recorded_completion in self.recording.0.iter().filter(|said| said["queue"] == "completion") {
            let message = say(recorded_completion, saying, &unchanged);
            let is_question = message.kind == "question";
            self.send(Target::Queue(Queue::Completion), message).await;
            // What comes after the question must not come with it: it would count.
            if is_question {
                let answer = self
                    .hear(heard, |said| if let Control::Answer(it) = said { Some(it) } else { None })
                    .await;
                // The build of the recording knew nothing of claims.
                assert_eq!(answer.claimed, Some(Ranges::new()));
                assert_eq!(
                    Control::Answer(Answer { claimed: None, ..answer }),
                    Control::from_message(&recorded).unwrap(),
                    "{saying:?}"
                );
            }
        }
        let beat = self.hear(heard, |said| if let Control::Beat(it) = said { Some(it) } else { None }).await;
        let demand = self.recording.first("demand", saying, &unchanged);
        self.send(Target::Process(beat.collector), demand).await;
        self.hear(heard, |said| if let Control::Lease(it) = said { Some(it) } else { None }).await
    }

    /// The next thing said to this process that is wanted.
    async fn hear<T>(&self, heard: &mut Subscription, wanted: impl Fn(Control) -> Option<T>) -> T {
        let next = async {
            loop {
                if let Some(it) = wanted(Control::from_message(&self.next(heard).await).unwrap()) {
                    return it;
                }
            }
        };
        tokio::time::timeout(PATIENCE, next).await.unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_works_on_what_a_producer_and_a_collector_of_an_earlier_build_say() {
    let stage = Stage::set().await;
    let mut completions = stage.broker.subscribe(vec![Queue::Completion], 10).await.unwrap();
    let consumer = stage.fleet.consumer(0, None);
    until_logged(&consumer, "consuming").await;
    let key = StageKey { job: "recorded".parse().unwrap(), stage: "call".parse().unwrap() };
    for saying in SAYINGS {
        let chunks = stage.recording.said("chunk", saying, &unchanged);
        let [first, second, remainder] = chunks.as_slice() else { panic!("{} chunks", chunks.len()) };
        let collector = ProcessId::generate();
        let mut own = stage.listen(&collector).await;
        // What is broadcast comes to a process in order: once it demands permits there, it has heard of the pause.
        stage.tell_state(saying, "paused").await;
        stage.send(Target::Everybody, stage.beat(saying, &collector)).await;
        stage.lend_once(saying, &mut own).await;

        stage.send(Target::Queue(Queue::Work(key.clone())), second.clone()).await;
        stage.until_held(&key, &consumer).await;
        let lending = stage.lend(saying, &mut own);
        let working = async {
            stage.tell_state(saying, "running").await;
            stage.answer(saying, &mut completions, "4-5").await;
            let ends = stage.outcomes(&mut completions, 2).await;
            assert_eq!(ends, ["4 succeeded 1", "5 succeeded 1"], "{saying:?}");

            stage.send(Target::Queue(Queue::Work(key.clone())), first.clone()).await;
            let ends = stage.outcomes(&mut completions, 3).await;
            assert_eq!(ends, ["0 succeeded 1", "2 succeeded 1", "3 succeeded 1"], "{saying:?}");
            // Its own remainder, which the failed item leaves as, and the recorded one, of the same item.
            for _ in 0..2 {
                stage.answer(saying, &mut completions, "1").await;
                assert_eq!(stage.outcomes(&mut completions, 1).await, ["1 failed 2"], "{saying:?}");
                stage.send(Target::Queue(Queue::Due(key.clone())), remainder.clone()).await;
            }
            stage.answer(saying, &mut completions, "").await;
        };
        tokio::select! {
            () = lending => {}
            () = working => {}
        }
    }
    stage.assert_nothing_is_parked(&consumer).await;
}

/// The collector that the test plays.
impl Stage {
    async fn tell_state(&self, saying: Saying, state: &str) {
        let set = |news: &mut Map<String, Value>| drop(news.insert("state".to_owned(), state.into()));
        self.send(Target::Everybody, self.recording.first("run_news", saying, &set)).await;
    }

    fn beat(&self, saying: Saying, collector: &ProcessId) -> Message {
        let name = |beat: &mut Map<String, Value>| {
            drop(beat.insert("collector".to_owned(), collector.as_str().into()));
        };
        self.recording.first("beat", saying, &name)
    }

    /// Answers one demand with the recorded lease.
    async fn lend_once(&self, saying: Saying, own: &mut Subscription) {
        let demand = loop {
            let message = self.next(own).await;
            // An earlier build knows no demand of another kind.
            if let ("demand", Ok(Control::Demand(demand))) =
                (message.kind.as_str(), Control::from_message(&message))
            {
                break demand;
            }
        };
        // The recorded permits would not do for all the calls here.
        let fill = |lease: &mut Map<String, Value>| {
            lease.insert("sequence".to_owned(), demand.sequence.into());
            for lent in lease["lent"].as_array_mut().unwrap() {
                lent["permits"] = 100.into();
            }
        };
        self.send(Target::Process(demand.process), self.recording.first("lease", saying, &fill)).await;
    }

    async fn lend(&self, saying: Saying, own: &mut Subscription) {
        loop {
            self.lend_once(saying, own).await;
        }
    }

    async fn until_held(&self, key: &StageKey, consumer: &Process) {
        let held = async {
            while self.broker.depth(&Queue::Held(key.clone())).await.unwrap().ready == 0 {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let held = tokio::time::timeout(PATIENCE, held).await;
        held.unwrap_or_else(|_| panic!("nothing was held:\n{}", consumer.log()));
    }

    /// Answers the next question with the recorded answer, for these items.
    async fn answer(&self, saying: Saying, completions: &mut Subscription, items: &str) {
        let question = loop {
            match self.next_completion(completions).await {
                Completion::Question(question) => break question,
                // The last words of a delivery whose items were reported before.
                Completion::Outcomes(outcomes) if outcomes.items.is_empty() => {}
                other => panic!("not a question: {other:?}"),
            }
        };
        let fill = |answer: &mut Map<String, Value>| {
            answer.insert("token".to_owned(), question.token.clone().into());
            answer.insert("run_items".to_owned(), items.into());
        };
        let answer = self.recording.first("answer", saying, &fill);
        self.send(Target::Process(question.reply_to), answer).await;
    }

    /// The ends of the next `count` items: index, outcome and attempts.
    async fn outcomes(&self, completions: &mut Subscription, count: usize) -> Vec<String> {
        let mut ends = Vec::new();
        while ends.len() < count {
            let Completion::Outcomes(outcomes) = self.next_completion(completions).await else {
                panic!("not outcomes")
            };
            let each = outcomes.items.iter().zip(outcomes.outcomes.iter()).zip(outcomes.attempts.iter());
            ends.extend(each.map(|((index, outcome), attempts)| format!("{index} {outcome} {attempts}")));
        }
        ends.sort_unstable();
        ends
    }

    async fn next_completion(&self, completions: &mut Subscription) -> Completion {
        Completion::from_message(&self.next(completions).await).unwrap()
    }
}
