//! What a producer publishes, and when it waits or stops.

use std::io::Cursor;
use std::sync::Arc;

use windrow_common::broker::embedded::EmbeddedBroker;
use windrow_common::broker::{Broker, Outgoing, Queue, Target};
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::SourceProgress;
use windrow_common::envelope::control::{Control, RunState};
use windrow_common::ids::{Group, ProcessId};
use windrow_common::telemetry::metrics::Metrics;
use windrow_producer::{End, Options, ProducerProgress, Wiring, follow_news, plan, preview, produce};

use crate::support::*;

const LINES: &str = "[source]\ntype = \"jsonl\"\npath = \"a.jsonl\"\n";

#[tokio::test]
async fn a_run_is_opened_published_and_sealed_with_its_totals() {
    let workplace =
        Workplace::new(&[("a.csv", b"email,n\na@x,1\nb@x\nc@x,3\nd@x,4\n"), ("b.jsonl", b"[1]\nx\n")]);
    let job = workplace.job(
        "[[source]]\nname = \"a\"\ntype = \"csv\"\npath = \"a.csv\"\nid = \"email\"\n\
         [[source]]\nname = \"b\"\ntype = \"jsonl\"\npath = \"b.jsonl\"\n[chunk]\nitems = 2\n",
    );
    let broker = MemoryBroker::new();
    let options = Options { root_run: Some("root".parse().unwrap()), ..named(&workplace.data_dir(), "r1") };
    let produced = run(&job, &options, &broker).await.unwrap();
    assert_eq!((produced.run.as_str(), &produced.end), ("r1", &End::Sealed));

    let published = Published::read(&broker.kept());
    let without_progress: Vec<&str> =
        published.kinds.iter().map(String::as_str).filter(|kind| *kind != "progress").collect();
    assert_eq!(without_progress, ["opened", "rejects", "chunk", "chunk", "rejects", "chunk", "sealed"]);
    let (first, lines) = &published.chunks[0];
    assert_eq!(first.message_id(), "r1/echo/a/0/0/0-1");
    assert_eq!((first.id_field.as_deref(), first.root_run.as_str()), (Some("email"), "root"));
    assert_eq!((&first.hash, first.hop, first.resent), (&job.hash, 0, false));
    assert_eq!(lines[1], r#"{"email":"c@x","n":"3"}"#);
    assert_eq!(published.chunks[2].0.id_field, None);
    assert_eq!((published.rejects[0].file.as_str(), published.rejects[0].line), ("a.csv", 3));
    let sealed = &published.sealed[0];
    assert_eq!(sealed.sources, produced.sources);
    let totals: Vec<_> = sealed.sources.values().cloned().collect();
    let of = |accepted, chunks, rejected| SourceProgress { accepted, chunks, rejected };
    assert_eq!((totals, &sealed.error), (vec![of(3, 2, 1), of(1, 1, 1)], &None));
    assert!(broker.kept()[2].message.message_id.starts_with("r1/"));
    assert_eq!(broker.kept()[0].target, Target::Queue(Queue::Completion));
}

#[tokio::test]
async fn an_empty_source_is_a_run_of_no_items() {
    let workplace = Workplace::new(&[("a.jsonl", b"")]);
    let broker = MemoryBroker::new();
    let produced = run(&workplace.job(LINES), &workplace.options(), &broker).await.unwrap();
    assert_eq!(produced.end, End::Sealed);
    assert_eq!(produced.sources.values().next(), Some(&SourceProgress::default()));
}

#[tokio::test]
async fn bodies_are_compressed_when_the_job_says_so() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(5000))]);
    let job = workplace.job(&format!("{LINES}[chunk]\nitems = 5000\ncompress = true\n"));
    let broker = MemoryBroker::new();
    run(&job, &workplace.options(), &broker).await.unwrap();
    let kept = broker.kept();
    let chunk = kept.iter().find(|outgoing| outgoing.message.kind == "chunk").unwrap();
    assert_eq!(chunk.message.content_encoding, "zstd");
    assert_eq!(Published::read(&kept).items().len(), 5000);
}

#[tokio::test]
async fn a_canary_stops_after_its_items_over_all_sources() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(5)), ("b.jsonl", &numbers(50))]);
    let job = workplace.job(
        "[[source]]\nname = \"a\"\ntype = \"jsonl\"\npath = \"a.jsonl\"\n\
         [[source]]\nname = \"b\"\ntype = \"jsonl\"\npath = \"b.jsonl\"\n[chunk]\nitems = 3\n",
    );
    for first in [0, 1, 3, 4, 5, 6, 9, 55, 100] {
        let broker = MemoryBroker::new();
        let options = Options { first: Some(first), ..workplace.options() };
        let produced = run(&job, &options, &broker).await.unwrap();
        assert_eq!(produced.end, End::Sealed);
        let accepted: Vec<u64> = produced.sources.values().map(|source| source.accepted).collect();
        assert_eq!(accepted, [first.min(5), first.saturating_sub(5).min(50)], "first {first}");
        assert_eq!(Published::read(&broker.kept()).items().len() as u64, first.min(55));
    }
}

#[tokio::test(start_paused = true)]
async fn publishing_stops_at_the_outstanding_chunks_and_goes_on_as_they_settle() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(400))]);
    let job = workplace.job(&format!("{LINES}[chunk]\nitems = 10\noutstanding = 7\n"));
    let broker = MemoryBroker::new();
    let plan = plan(&job, &workplace.options()).unwrap();
    let run = plan.run().clone();
    let running = start(plan, &job, &broker);
    broker.until(|published| published.chunks.len() == 7).await;
    assert_eq!(broker.after_beats(12).await.chunks.len(), 7, "the window is full and no news has come");
    running.news.send_replace(Some(news(&run, RunState::Running, 3, 30)));
    broker.until(|published| published.chunks.len() == 10).await;
    assert_eq!(broker.after_beats(3).await.chunks.len(), 10);
    running.news.send_replace(Some(news(&run, RunState::Paused, 10, 100)));
    assert_eq!(broker.after_beats(3).await.chunks.len(), 10, "a paused run publishes nothing");
    running.news.send_replace(Some(news(&run, RunState::Running, 40, 400)));
    assert_eq!(running.task.await.unwrap().unwrap().end, End::Sealed);
}

#[tokio::test]
async fn at_most_256_messages_are_unconfirmed_and_progress_never_runs_ahead() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(1000))]);
    let job = workplace.job(&format!("{LINES}[chunk]\nitems = 2\n"));
    let broker = MemoryBroker::with(Vec::new(), 0, Box::new(|_| ()));
    let running = start(plan(&job, &workplace.options()).unwrap(), &job, &broker);
    broker.until(|published| published.chunks.len() >= 255).await;
    broker.allow_confirms(10);
    broker.until(|published| published.chunks.len() >= 265).await;
    let published = Published::read(&broker.kept());
    let accepted = |sources: &std::collections::BTreeMap<String, SourceProgress>| sources["main"].accepted;
    assert!(published.progress.iter().all(|sources| accepted(sources) <= 20));
    broker.allow_confirms(1000);
    assert_eq!(running.task.await.unwrap().unwrap().end, End::Sealed);
    assert!((255..=256).contains(&broker.most_unconfirmed()), "{}", broker.most_unconfirmed());
    assert_eq!(running.progress.borrow().sources.values().next().unwrap().accepted, 1000);
    assert!(running.progress.borrow().is_read);
    assert_eq!(running.progress.borrow().read_bytes, running.progress.borrow().total_bytes.unwrap());
}

#[tokio::test]
async fn at_most_16_mebibytes_are_under_way() {
    let item = format!("\"{}\"\n", "x".repeat(1024 * 1024));
    let workplace = Workplace::new(&[("a.jsonl", item.repeat(40).as_bytes())]);
    let job = workplace.job(LINES);
    let broker = MemoryBroker::with(Vec::new(), 0, Box::new(|_| ()));
    let running = start(plan(&job, &workplace.options()).unwrap(), &job, &broker);
    broker.until(|published| published.chunks.len() >= 15).await;
    broker.allow_confirms(40);
    let produced = running.task.await.unwrap().unwrap();
    assert_eq!(produced.sources.values().next().unwrap().chunks, 40);
    assert!(broker.most_unconfirmed() <= 16, "{}", broker.most_unconfirmed());
}

#[tokio::test]
async fn a_stopped_run_is_sealed_at_what_was_confirmed() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(5000))]);
    let job = workplace.job(&format!("{LINES}[chunk]\nitems = 10\noutstanding = 50\n"));
    let broker = MemoryBroker::new();
    let plan = plan(&job, &workplace.options()).unwrap();
    let run = plan.run().clone();
    let running = start(plan, &job, &broker);
    broker.until(|published| published.chunks.len() == 50).await;
    let mut stopping = news(&run, RunState::Running, 0, 0);
    stopping.stopping = true;
    running.news.send_replace(Some(stopping));
    let produced = running.task.await.unwrap().unwrap();
    assert_eq!(produced.end, End::Stopped);
    let published = Published::read(&broker.kept());
    assert_eq!(published.sealed[0].sources.values().next().unwrap().accepted, 500);
    assert_eq!(published.items().len(), 500);
}

#[tokio::test]
async fn an_interrupted_run_waits_for_its_confirms_is_not_sealed_and_goes_on_later() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(5000))]);
    let job = workplace.job(&format!("{LINES}[chunk]\nitems = 10\noutstanding = 50\n"));
    let broker = MemoryBroker::with(Vec::new(), 20, Box::new(|_| ()));
    let running = start(plan(&job, &workplace.options()).unwrap(), &job, &broker);
    broker.until(|published| published.chunks.len() == 50).await;
    running.shutdown.cancel();
    broker.allow_confirms(10_000);
    let produced = running.task.await.unwrap().unwrap();
    assert_eq!((produced.end, produced.sources.values().next().unwrap().chunks), (End::Interrupted, 50));
    assert!(Published::read(&broker.kept()).sealed.is_empty());

    let job = workplace.job(&format!("{LINES}[chunk]\nitems = 10\n"));
    let again = plan(&job, &workplace.options()).unwrap();
    assert!(again.is_resumed() && !again.is_sealed());
    assert_eq!(again.confirmed().values().next().unwrap().accepted, 500);
    assert_eq!(start(again, &job, &broker).task.await.unwrap().unwrap().end, End::Sealed);
    let published = Published::read(&broker.kept());
    assert_eq!((published.items().len(), published.chunks.len()), (5000, 500), "nothing was sent twice");
    assert_eq!(published.opened, 2);
}

#[tokio::test]
async fn a_source_that_cannot_be_read_on_seals_the_run_as_failed() {
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    std::io::Write::write_all(&mut gz, &numbers(1000)).unwrap();
    let gz = gz.finish().unwrap();
    let workplace = Workplace::new(&[("a.jsonl.gz", &gz[..gz.len() - 5])]);
    let job = workplace.job("[source]\ntype = \"jsonl\"\npath = \"a.jsonl.gz\"\n");
    let broker = MemoryBroker::new();
    let produced = run(&job, &workplace.options(), &broker).await.unwrap();
    let End::Failed(reason) = produced.end else { panic!("{:?}", produced.end) };
    assert!(reason.contains("a.jsonl.gz"), "{reason}");
    let sealed = &Published::read(&broker.kept()).sealed[0];
    assert_eq!(sealed.error.as_ref(), Some(&reason));
    assert_eq!(sealed.sources.values().next().unwrap().accepted, 1000, "full chunks before it are counted");
}

#[tokio::test]
async fn a_reject_stops_the_run_when_the_job_says_so() {
    let workplace = Workplace::new(&[("a.jsonl", b"1\n2\n3\nbroken\n5\n")]);
    let job = workplace.job(&format!("{LINES}on_reject = \"stop\"\n[chunk]\nitems = 2\n"));
    let broker = MemoryBroker::new();
    let produced = run(&job, &workplace.options(), &broker).await.unwrap();
    let End::Failed(reason) = produced.end else { panic!("{:?}", produced.end) };
    assert!(reason.contains("a.jsonl, line 4") && !reason.contains("broken"), "{reason}");
    let published = Published::read(&broker.kept());
    assert_eq!((published.rejects.len(), published.items().len()), (1, 2));
    let of = SourceProgress { accepted: 2, chunks: 1, rejected: 1 };
    assert_eq!(published.sealed[0].sources.values().next(), Some(&of));
}

#[tokio::test]
async fn many_rejects_travel_in_bounded_batches_and_are_all_counted() {
    let workplace = Workplace::new(&[("a.jsonl", "x\n".repeat(1234).as_bytes())]);
    let broker = MemoryBroker::new();
    let produced = run(&workplace.job(LINES), &workplace.options(), &broker).await.unwrap();
    assert_eq!(produced.sources.values().next().unwrap().rejected, 1234);
    let published = Published::read(&broker.kept());
    assert_eq!(published.kinds.iter().filter(|kind| *kind == "rejects").count(), 3);
    assert_eq!(published.distinct_rejects().len(), 1234);
}

#[tokio::test]
async fn a_run_goes_through_the_embedded_broker_and_hears_its_news() {
    let workplace = Workplace::new(&[]);
    let job =
        workplace.job("[source]\ntype = \"jsonl\"\npath = \"-\"\n[chunk]\nitems = 10\noutstanding = 2\n");
    let broker: Arc<dyn Broker> =
        Arc::new(EmbeddedBroker::open(&workplace.path("broker"), &Group::main()).unwrap());
    let plan = plan(&job, &workplace.options()).unwrap();
    let (run, producer) = (plan.run().clone(), plan.producer().clone());
    let plan = plan.with_standard_input(Box::new(Cursor::new(numbers(100))));
    let wiring = Wiring {
        news: follow_news(&broker, &producer, run.clone()).await.unwrap(),
        broker: Arc::clone(&broker),
        progress: tokio::sync::watch::channel(ProducerProgress::default()).0,
        metrics: Metrics::new("producer").producer(&job.name),
        shutdown: tokio_util::sync::CancellationToken::new(),
    };
    let task = tokio::spawn(produce(plan, Arc::new(job.clone()), wiring));
    let work = Queue::Work(job.stage_key(&job.stages[0]));
    let mut subscription = broker.subscribe(vec![work], 10).await.unwrap();
    for settled in 1..=10 {
        let delivery = subscription.next().await.unwrap();
        let (header, _) = ChunkHeader::from_message(&delivery.message).unwrap();
        assert_eq!((header.id.ordinal, header.span.count), (settled - 1, 10));
        broker.settle(delivery, vec![]).await.unwrap();
        for run in [run.clone(), "another".parse().unwrap()] {
            let message = Control::RunNews(news(&run, RunState::Running, settled, settled * 10)).to_message();
            broker.publish(Outgoing { target: Target::Everybody, message }).await.unwrap();
        }
    }
    assert_eq!(task.await.unwrap().unwrap().end, End::Sealed);
    assert_ne!(producer, ProcessId::generate());
    broker.close(std::time::Duration::from_secs(5)).await;
}

#[test]
fn a_preview_reads_everything_and_publishes_nothing() {
    let workplace = Workplace::new(&[("a.jsonl", b"{\"n\":0}\n1\nbroken\n3\n"), ("b.json", b"[1, 2, [3")]);
    let job = workplace.job(
        "[[source]]\nname = \"a\"\ntype = \"jsonl\"\npath = \"a.jsonl\"\n\
         [[source]]\nname = \"b\"\ntype = \"json\"\npath = \"b.json\"\n\
         [[source]]\nname = \"c\"\ntype = \"jsonl\"\npath = \"-\"\n[chunk]\nitems = 2\n",
    );
    let preview = preview(&job, 4).unwrap();
    let of = |accepted, chunks, rejected| SourceProgress { accepted, chunks, rejected };
    assert_eq!(preview.sources.values().cloned().collect::<Vec<_>>(), [of(3, 2, 1), of(2, 1, 0)]);
    let items: Vec<(&str, u64, &[u8])> =
        preview.items.iter().map(|item| (item.source.as_str(), item.index, &item.json[..])).collect();
    assert_eq!(items, [("a", 0, b"{\"n\":0}".as_slice()), ("a", 1, b"1"), ("a", 2, b"3"), ("b", 0, b"1")]);
    assert_eq!((preview.rejects.len(), preview.rejects[0].line), (1, 3));
    assert_eq!(preview.unread, ["c".parse().unwrap()]);
    assert!(preview.errors[0].contains("b.json"), "{:?}", preview.errors);
    assert!(!workplace.data_dir().exists());
}
