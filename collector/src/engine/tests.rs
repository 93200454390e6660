mod any_order;
mod claims;
mod dead;
mod deadline;
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use bytes::Bytes;
use tempfile::TempDir;
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{
    Latencies, Opened, Outcomes, Progress, Question, Reject, Rejects, Sealed, SourceProgress,
};
use windrow_common::envelope::control::{WorkedOn, Working};
use windrow_common::ids::{ChunkId, SourceName};
use windrow_common::job::Job;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};
use windrow_common::telemetry::metrics::Metrics;

use self::world::*;
use super::*;
use crate::SinkBase;
use crate::ledger::sqlite::SqliteLedger;
use crate::ledger::{LedgerError, LedgerPlace, Reader};

#[tokio::test]
async fn a_run_ends_completed_with_its_lines_in_the_order_of_the_input() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1")]).await;
    world.step(&[whole("r1", 2), progress("r1", 3)]).await;
    assert_eq!(world.output(), "", "item 0 has not settled");
    world.step(&[whole("r1", 0)]).await;
    assert_eq!(world.output(), in_order(10), "lines come as soon as their turn does");
    let effects = world.step(&[sealed("r1", 3), whole("r1", 1)]).await;
    assert_eq!(world.output(), in_order(30));
    assert_eq!(effects.news.last().unwrap().state, RunState::Completed);
    let report = world.report("r1");
    assert_eq!((report.state, report.accepted, report.open), (RunState::Completed, 30, 0));
    assert_eq!((report.outcomes.succeeded, report.chunks, report.settled_chunks), (30, 3, 3));
    assert_eq!((report.balance_error, report.sink_error), (None, None));
    let written = fs::read_to_string(world.data_dir().join("runs/r1/report.json")).unwrap();
    let written: serde_json::Value = serde_json::from_str(&written).unwrap();
    assert_eq!((written["state"].as_str(), written["accepted"].as_u64()), (Some("completed"), Some(30)));
    assert!(!world.data_dir().join("spool/r1").exists(), "nothing is kept in the spool");
}

#[tokio::test]
async fn lines_come_as_they_settle_where_the_job_asks_for_that() {
    let mut world = World::new(ARRIVAL, "").await;
    world.step(&[world.opened("r1"), whole("r1", 1)]).await;
    world.step(&[whole("r1", 0), sealed("r1", 2)]).await;
    let expected: String = (10..20).chain(0..10).map(line).collect();
    assert_eq!(world.output(), expected);
    assert_eq!(world.report("r1").state, RunState::Completed);
}

#[tokio::test]
async fn items_of_one_chunk_that_settle_apart_come_in_order_too() {
    let mut world = World::new(INPUT, "").await;
    let mut first = outcomes("r1", 0, "1-3,6,8-9", Outcome::Succeeded);
    first.handed_over = "0,4-5,7".parse().unwrap();
    let retried =
        |items| Completion::Outcomes(Outcomes { hop: 1, ..outcomes("r1", 0, items, Outcome::Succeeded) });
    let effects = world.step(&[world.opened("r1"), Completion::Outcomes(first), progress("r1", 1)]).await;
    assert_eq!(effects.news.last().unwrap().waiting_items, 4);
    world.step(&[retried("0")]).await;
    assert_eq!(world.output(), in_order(4));
    world.step(&[retried("4-5,7")]).await;
    assert_eq!(world.output(), in_order(10));
    let effects = world.step(&[sealed("r1", 1)]).await;
    assert_eq!(effects.news.last().unwrap().waiting_items, 0);
    assert_eq!(world.report("r1").state, RunState::Completed);
}

#[tokio::test]
async fn a_second_copy_is_counted_and_changes_nothing() {
    let mut world = World::new(INPUT, "").await;
    let copy = Completion::Outcomes(outcomes("r1", 0, "0-4", Outcome::Failed));
    let all = [world.opened("r1"), whole("r1", 0), whole("r1", 0), copy, sealed("r1", 1), sealed("r1", 1)];
    world.step(&all).await;
    let report = world.report("r1");
    assert_eq!((report.duplicates, report.conflicts, report.attempts), (15, 5, 10));
    assert_eq!((report.state, world.output()), (RunState::Completed, in_order(10)));
    world.step(&[whole("r1", 0)]).await;
    assert_eq!((world.report("r1").duplicates, world.output()), (25, in_order(10)));
}

#[tokio::test]
async fn failures_are_listed_with_their_reasons_and_rejects_once() {
    let mut world = World::new(INPUT, "").await;
    let reject =
        |line| Reject { source: SourceName::only(), file: "a.csv".into(), line, reason: "too short".into() };
    let rejects =
        Completion::Rejects(Rejects { run: "r1".parse().unwrap(), rejects: vec![reject(3), reject(9)] });
    let failed = Completion::Outcomes(outcomes("r1", 0, "2-4,7", Outcome::Failed));
    let rest = Completion::Outcomes(outcomes("r1", 0, "0-1,5-6,8-9", Outcome::Succeeded));
    world.step(&[world.opened("r1"), failed, rest, rejects.clone(), rejects, sealed("r1", 1)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.rejected), (RunState::CompletedWithFailures, 2));
    assert_eq!((report.outcomes.failed, report.balance_error), (4, None));
    let reader = Reader::open(&world.data_dir()).unwrap();
    let run = reader.resolve(None).unwrap();
    let of = |after, limit| -> Vec<u64> {
        reader.failures(&run, after, limit).unwrap().iter().map(|row| row.index).collect()
    };
    let main = SourceName::only();
    assert_eq!(of(None, 10), [2, 3, 4, 7]);
    assert_eq!(of(None, 2), [2, 3]);
    assert_eq!(of(Some((&main, 3)), 10), [4, 7]);
    let lines = fs::read_to_string(world.data_dir().join("runs/r1/failures.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 4);
    assert!(
        lines.contains(r#""item":7,"outcome":"failed","error":{"class":"test","message":"no"},"attempts":1"#)
    );
    let rejected = fs::read_to_string(world.data_dir().join("runs/r1/rejected.jsonl")).unwrap();
    assert_eq!(rejected.lines().count(), 2);
}

#[tokio::test]
async fn a_run_beyond_what_is_tolerated_is_stopped_and_its_open_items_cancelled() {
    let mut world = World::new(INPUT, "[tolerate]\nfailed = 3").await;
    let failed = Completion::Outcomes(outcomes("r1", 1, "10-13", Outcome::Failed));
    let effects = world.step(&[world.opened("r1"), progress("r1", 5), failed]).await;
    let news = effects.news.last().unwrap();
    assert_eq!((news.state, news.stopping), (RunState::Running, true));
    world.step(&[whole("r1", 3)]).await;
    world.step(&[sealed("r1", 6)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.accepted, report.open), (RunState::Failed, 60, 0));
    assert_eq!((report.outcomes.succeeded, report.outcomes.failed, report.outcomes.cancelled), (10, 4, 46));
    assert_eq!((report.balance_error.clone(), report.settled_chunks), (None, 6));
    assert!(report.stop_reason.unwrap().contains("the job tolerates 3"));
    let items: Vec<u64> = world
        .output()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["item"].as_u64().unwrap())
        .collect();
    assert_eq!(items, (0..60).collect::<Vec<_>>(), "every item has its line");
    world.step(&[whole("r1", 0), whole("r1", 1), whole("r1", 3)]).await;
    let report = world.report("r1");
    assert_eq!((report.late, report.duplicates, report.conflicts), (16, 14, 4));
    assert_eq!(report.outcomes.settled(), 60);
}

#[tokio::test]
async fn a_cancelled_run_whose_producer_is_gone_is_sealed_at_what_is_known() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), progress("r1", 4), whole("r1", 4)]).await;
    let run: RunId = "r1".parse().unwrap();
    let engine = world.engine.as_mut().unwrap();
    assert_eq!(engine.command(&run, RunCommand::Pause).await.unwrap(), Ok(RunState::Paused));
    assert_eq!(engine.command(&run, RunCommand::Cancel).await.unwrap(), Ok(RunState::Cancelling));
    world.tick(Duration::from_secs(9)).await;
    assert_eq!(world.report("r1").state, RunState::Cancelling);
    world.tick(Duration::from_secs(1)).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.accepted, report.open), (RunState::Cancelled, 50, 0));
    assert_eq!((report.outcomes.cancelled, report.balance_error), (40, None));
}

#[tokio::test]
async fn a_retry_of_scattered_items_balances_and_one_that_is_cancelled_waits_for_their_ends() {
    let mut world = World::new(INPUT, "").await;
    let retry = |run: &str| match world.opened(run) {
        Completion::Opened(opened) => {
            Completion::Opened(Opened { root_run: "r0".parse().unwrap(), ..opened })
        }
        other => other,
    };
    let (first, second) = (retry("r1"), retry("r2"));
    let one = |run, ordinal, index: u64, end| {
        let span = Span { first: index, count: 1 };
        Completion::Outcomes(Outcomes { span, ..outcomes(run, ordinal, &index.to_string(), end) })
    };
    let two = |run: &str| {
        let progress = SourceProgress { accepted: 2, chunks: 2, rejected: 0 };
        let sources = BTreeMap::from([(SourceName::only(), progress)]);
        Completion::Sealed(Sealed { run: run.parse().unwrap(), sources, error: None })
    };
    world.step(&[first, one("r1", 1, 7_000, Outcome::Succeeded)]).await;
    assert_eq!((world.report("r1").accepted, world.report("r1").open), (1, 0), "not its index");
    world.step(&[two("r1"), one("r1", 0, 42, Outcome::Succeeded)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.accepted, report.balance_error), (RunState::Completed, 2, None));
    assert_eq!(world.output(), format!("{}{}", line(42), line(7_000)));

    world.step(&[second, one("r2", 0, 42, Outcome::Failed), two("r2")]).await;
    let engine = world.engine.as_mut().unwrap();
    engine.command(&"r2".parse().unwrap(), RunCommand::Cancel).await.unwrap().unwrap();
    world.tick(Duration::from_secs(20)).await;
    assert_eq!((world.report("r2").state, world.report("r2").open), (RunState::Cancelling, 1));
    world.step(&[one("r2", 1, 7_000, Outcome::Cancelled)]).await;
    let report = world.report("r2");
    assert_eq!((report.state, report.outcomes.cancelled), (RunState::Cancelled, 1));
    assert_eq!(report.balance_error, None);
}

#[tokio::test]
async fn a_seal_with_an_error_lets_open_items_end_and_fails_the_run() {
    let mut world = World::new(INPUT, "").await;
    let error = Some("a.csv: gone".to_owned());
    let sealed = Completion::Sealed(Sealed { run: "r1".parse().unwrap(), sources: totals(2), error });
    world.step(&[world.opened("r1"), whole("r1", 0), sealed]).await;
    assert_eq!(world.report("r1").state, RunState::Running);
    world.step(&[whole("r1", 1)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.outcomes.succeeded), (RunState::Failed, 20));
    assert_eq!(report.source_error.as_deref(), Some("a.csv: gone"));
}

#[tokio::test]
async fn a_file_that_is_there_refuses_the_run_and_keeps_its_bytes() {
    let mut world = World::new(INPUT, "").await;
    fs::write(world.dir.path().join("out.jsonl"), "precious").unwrap();
    let effects = world.step(&[world.opened("r1"), whole("r1", 0)]).await;
    assert!(effects.news.last().unwrap().stopping);
    world.step(&[sealed("r1", 2)]).await;
    let report = world.report("r1");
    assert_eq!((report.state, report.outcomes.cancelled), (RunState::Failed, 10));
    assert!(report.sink_error.unwrap().contains("if_exists"));
    assert_eq!(world.output(), "precious");
}

#[tokio::test]
async fn a_run_is_refused_the_file_of_one_that_has_not_ended() {
    let mut world = World::new(&format!("{INPUT}\nif_exists = 'replace'"), "").await;
    world.step(&[world.opened("r1"), whole("r1", 0)]).await;
    world.step(&[world.opened("r2")]).await;
    let reason = world.report("r2").sink_error.unwrap();
    assert!(reason.contains("run `r1`, which has not ended"), "{reason}");
    assert_eq!(world.output(), in_order(10));
}

#[tokio::test]
async fn an_existing_file_is_replaced_or_continued_where_the_job_says_so() {
    for (if_exists, expected) in
        [("replace", in_order(10)), ("append", format!("no line break\n{}", in_order(10)))]
    {
        let mut world = World::new(&format!("{INPUT}\nif_exists = '{if_exists}'"), "").await;
        fs::write(world.dir.path().join("out.jsonl"), "no line break").unwrap();
        world.step(&[world.opened("r1")]).await;
        world.restart().await;
        world.step(&[world.opened("r1"), whole("r1", 0), sealed("r1", 1)]).await;
        assert_eq!(world.output(), expected);
        assert_eq!(world.report("r1").sink_error, None);
    }
}

#[tokio::test]
async fn a_run_without_its_job_file_keeps_its_lines_until_the_file_is_there() {
    let mut world = World::new(INPUT, "").await;
    world.restart_with(JobSet::default()).await;
    world.step(&[world.opened("r1"), whole("r1", 1), sealed("r1", 2)]).await;
    world.step(&[whole("r1", 0)]).await;
    let report = world.report("r1");
    assert_eq!(report.state, RunState::Completed);
    assert!(report.sink_error.unwrap().contains("no job file"));
    world.restart().await;
    world.tick(Duration::from_secs(2)).await;
    assert_eq!(world.output(), in_order(20));
    assert_eq!(world.report("r1").sink_error, None);
    assert!(!world.data_dir().join("spool/r1").exists());
}

#[tokio::test]
async fn what_cannot_be_understood_is_parked_and_stops_nothing() {
    let mut world = World::new(INPUT, "").await;
    let opened = world.opened("r1").to_message(false);
    let good = whole("r1", 0).to_message(false);
    let mut hostile = good.clone();
    hostile.body = Bytes::from("1}\n".repeat(10));
    let mut strange = good.clone();
    strange.kind = "strange".into();
    let mut other_span = outcomes("r1", 0, "0-3", Outcome::Succeeded);
    other_span.span = Span { first: 0, count: 4 };
    let other_span = Completion::Outcomes(other_span).to_message(false);
    let unknown_run = whole("r9", 0).to_message(false);
    let messages =
        [opened, hostile, strange, good, other_span, unknown_run, sealed("r1", 1).to_message(false)];
    let now = world.now();
    let effects = world.engine.as_mut().unwrap().step(&messages, now).await.unwrap();
    let parked: Vec<bool> = effects.parked.iter().map(Option::is_some).collect();
    assert_eq!(parked, [false, true, true, false, true, true, false]);
    assert_eq!((world.report("r1").state, world.output()), (RunState::Completed, in_order(10)));
}

#[tokio::test]
async fn of_a_run_that_a_step_cuts_nothing_is_answered_to_run() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), sealed("r1", 1)]).await;
    world
        .engine
        .as_mut()
        .unwrap()
        .command(&"r1".parse().unwrap(), RunCommand::Cancel)
        .await
        .unwrap()
        .unwrap();
    let question = Completion::Question(Question {
        id: chunk_id("r1", 0),
        span: span(0),
        hop: 0,
        items: "0-9".parse().unwrap(),
        reply_to: ProcessId::generate(),
        token: "t".into(),
        claim: None,
    });
    let effects = world.step(&[question]).await;
    assert_eq!(world.report("r1").outcomes.cancelled, 10);
    assert_eq!(effects.answers[0].1.run_items, "");
}

#[tokio::test]
async fn a_question_is_answered_by_what_came_before_it_and_with_it() {
    let mut world = World::new(INPUT, "").await;
    let ask = |hop, items: &str| {
        Completion::Question(Question {
            id: chunk_id("r1", 0),
            span: span(0),
            hop,
            items: items.parse().unwrap(),
            reply_to: ProcessId::generate(),
            token: "t".into(),
            claim: None,
        })
    };
    let mut first = outcomes("r1", 0, "0-3", Outcome::Succeeded);
    first.handed_over = "8-9".parse().unwrap();
    let all = [
        world.opened("r1"),
        ask(0, "0-9"),
        Completion::Outcomes(first),
        ask(0, "0-9"),
        ask(1, "8-9"),
        ask(2, "9"),
        ask(1, "8-9"),
    ];
    let effects = world.step(&all).await;
    let answers: Vec<&str> = effects.answers.iter().map(|(_, answer)| answer.run_items.as_str()).collect();
    assert_eq!(answers, ["4-7", "4-7", "8", "9", "8"]);
}

#[tokio::test]
async fn an_answer_names_what_somebody_is_still_working_on() {
    let mut world = World::new(INPUT, "").await;
    world
        .step(&[world.opened("r1"), Completion::Outcomes(outcomes("r1", 0, "0-3", Outcome::Succeeded))])
        .await;
    let items = "2-5".parse().unwrap();
    let chunks = vec![WorkedOn { id: chunk_id("r1", 0), hop: 0, items }];
    let working = Working { process: ProcessId::generate(), chunks };
    world.engine.as_ref().unwrap().long_work.lock().unwrap().hear(working, world.clock);
    let question = Completion::Question(Question {
        id: chunk_id("r1", 0),
        span: span(0),
        hop: 0,
        items: "0-9".parse().unwrap(),
        reply_to: ProcessId::generate(),
        token: "t".into(),
        claim: None,
    });
    for (seconds, busy) in [(0, "4-5"), (60, "")] {
        world.pass(Duration::from_secs(seconds));
        let effects = world.step(std::slice::from_ref(&question)).await;
        let (_, answer) = &effects.answers[0];
        assert_eq!((answer.run_items.as_str(), answer.busy_items.as_str()), ("4-9", busy));
    }
}

#[tokio::test]
async fn a_dropped_engine_goes_on_where_it_was() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), whole("r1", 0), whole("r1", 2)]).await;
    world.restart().await;
    // A crash may leave bytes of the last second anywhere between written and not.
    fs::write(world.dir.path().join("out.jsonl"), "garbage").unwrap();
    world.restart().await;
    assert_eq!(world.output(), in_order(10));
    world.step(&[whole("r1", 2), whole("r1", 3)]).await;
    world.tick(Duration::from_secs(1)).await;
    world.restart().await;
    world.step(&[whole("r1", 1), sealed("r1", 4)]).await;
    assert_eq!(world.output(), in_order(40));
    assert_eq!(world.report("r1").duplicates, 10);
}

#[tokio::test]
async fn a_collector_that_was_replaced_writes_nothing_more() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), whole("r1", 0)]).await;
    let mut old = world.engine.take().unwrap();
    world.restart().await;
    let late = whole("r1", 1).to_message(false);
    let refused = old.step(&[late], world.now()).await;
    let error = refused.map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("another collector has taken over"), "{error}");
    assert_eq!(world.output(), in_order(10));
    world.step(&[whole("r1", 1), sealed("r1", 2)]).await;
    assert_eq!((world.output(), world.report("r1").duplicates), (in_order(20), 0));
}

#[tokio::test]
async fn a_collector_that_was_replaced_answers_and_tells_nothing_more_either() {
    let mut world = World::new(INPUT, "").await;
    world.step(&[world.opened("r1"), whole("r1", 0)]).await;
    let mut old = world.engine.take().unwrap();
    world.restart().await;
    // Neither changes anything in the ledger: only asking for the epoch tells.
    let progress = progress("r1", 0).to_message(false);
    let question = Completion::Question(Question {
        id: chunk_id("r1", 1),
        span: span(1),
        hop: 0,
        items: span(1).to_ranges(),
        reply_to: ProcessId::generate(),
        token: "t".to_owned(),
        claim: None,
    });
    for messages in [vec![question.to_message(false)], vec![progress], vec![]] {
        let refused = old.step(&messages, world.now()).await;
        assert!(matches!(refused, Err(CollectorError::Ledger(LedgerError::Deposed { ours: 1, theirs: 2 }))));
    }
}

#[tokio::test]
async fn news_are_told_at_changes_but_not_too_often() {
    let mut world = World::new(INPUT, "").await;
    let first = world.step(&[world.opened("r1")]).await;
    assert_eq!(first.news.len(), 1);
    let soon = world.step(&[whole("r1", 0)]).await;
    assert_eq!((soon.news.len(), soon.wake_in), (0, Some(Duration::from_millis(50))));
    let later = world.tick(Duration::from_millis(50)).await;
    assert_eq!(later.news[0].settled_items, 10);
    assert_eq!(world.tick(Duration::from_secs(1)).await.news.len(), 0);
    assert_eq!(world.tick(Duration::from_secs(4)).await.news.len(), 1);
}

#[tokio::test]
async fn several_sources_come_one_after_another_and_lines_say_which() {
    let mut world = World::with_sources(&["one", "two"], INPUT, "").await;
    let of = |source: &str, ordinal| {
        let items = span(ordinal).to_ranges().to_string();
        let mut outcomes = outcomes("r1", ordinal, &items, Outcome::Succeeded);
        outcomes.id.source = source.parse().unwrap();
        Completion::Outcomes(outcomes)
    };
    world.step(&[world.opened("r1"), of("two", 0), of("one", 1), of("one", 0)]).await;
    assert_eq!(world.output().lines().count(), 20);
    let two_chunks = SourceProgress { accepted: 20, chunks: 2, rejected: 0 };
    let sources =
        BTreeMap::from([("one".parse().unwrap(), two_chunks.clone()), ("two".parse().unwrap(), two_chunks)]);
    world.step(&[Completion::Sealed(Sealed { run: "r1".parse().unwrap(), sources, error: None })]).await;
    assert_eq!(world.output().lines().count(), 30, "the second source goes on while it is open");
    world.step(&[of("two", 1)]).await;
    let seen: Vec<(String, u64)> = world
        .output()
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| (line["source"].as_str().unwrap().to_owned(), line["item"].as_u64().unwrap()))
        .collect();
    let expected: Vec<(String, u64)> =
        ["one", "two"].iter().flat_map(|source| (0..20).map(|index| ((*source).to_owned(), index))).collect();
    assert_eq!(seen, expected);
    assert_eq!(world.report("r1").state, RunState::Completed);
}
