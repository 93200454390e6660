//! A producer killed at any point loses nothing, and marks what it may send twice.
//!
//! Each test runs a producer once and photographs its data folder at each publish: what a kill at that
//! moment would leave on the disk. Each photograph is then resumed with what the broker had by then.

use std::fmt::Write as _;
use std::io::{Cursor, Read};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use windrow_common::broker::Outgoing;
use windrow_common::job::Job;
use windrow_producer::{End, Options, plan};

use crate::support::*;

type Photographs = Arc<Mutex<Vec<(tempfile::TempDir, Vec<Outgoing>)>>>;

/// A broker that photographs `workplace` at each publish for which `wanted` holds (publishes are counted
/// from 0), before the message is kept.
fn photographing(
    workplace: &Workplace,
    wanted: impl Fn(usize) -> bool + Send + Sync + 'static,
) -> (Arc<MemoryBroker>, Photographs) {
    let photographs = Photographs::default();
    let (data_dir, taken) = (workplace.data_dir(), Arc::clone(&photographs));
    let on_publish = move |kept: &[Outgoing]| {
        if wanted(kept.len()) {
            taken.lock().unwrap().push((photograph(&data_dir), kept.to_vec()));
        }
    };
    (MemoryBroker::with(Vec::new(), usize::MAX >> 3, Box::new(on_publish)), photographs)
}

/// Resumes a photograph, and holds the outcome against the run that was not killed.
async fn resume_and_compare(
    job: &Job,
    options: &Options,
    kept: Vec<Outgoing>,
    input: Option<Box<dyn Read + Send>>,
    whole: &Published,
) -> Published {
    let before = kept.len();
    let broker = MemoryBroker::with(kept, usize::MAX >> 3, Box::new(|_| ()));
    let mut plan = plan(job, options).unwrap();
    assert!(before == 0 || plan.is_resumed(), "something was published and the run is not resumed");
    if let Some(input) = input {
        plan = plan.with_standard_input(input);
    }
    let produced = start(plan, job, &broker).task.await.unwrap().unwrap();
    assert_eq!(produced.end, End::Sealed);
    let all = Published::read(&broker.kept());
    assert_eq!(all.items(), whole.items(), "killed at publish {before}");
    assert_eq!(all.chunk_spans(), whole.chunk_spans());
    assert_eq!(all.distinct_rejects(), whole.distinct_rejects());
    assert_eq!(all.sealed.last(), whole.sealed.last());
    let runs: Vec<_> = all.chunks.iter().map(|(header, _)| &header.id.run).collect();
    assert!(runs.windows(2).all(|pair| pair[0] == pair[1]), "a resumed run keeps its id");
    all
}

fn mixed_sources() -> Workplace {
    let mut csv = "id,n\n".to_owned();
    let mut lines = String::new();
    for n in 0..40 {
        writeln!(csv, "{n},{}", if n % 9 == 4 { "x" } else { "1" }).unwrap();
        writeln!(lines, "{}", if n % 11 == 7 { "broken".to_owned() } else { format!("{{\"n\":{n}}}") })
            .unwrap();
    }
    let gz = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, lines.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    Workplace::new(&[("a-1.csv", csv.as_bytes()), ("a-2.csv", csv.as_bytes()), ("b.jsonl.gz", &gz)])
}

const MIXED: &str = r#"
    [[source]]
    name = "table"
    type = "csv"
    path = "a-*.csv"
    id = "id"
    types = { n = "int" }

    [[source]]
    name = "lines"
    type = "jsonl"
    path = "b.jsonl.gz"

    [chunk]
    items = 4
"#;

#[tokio::test]
async fn a_producer_killed_at_any_publish_is_resumed_without_loss() {
    let workplace = mixed_sources();
    let job = workplace.job(MIXED);
    let (broker, photographs) = photographing(&workplace, |_| true);
    run(&job, &workplace.options(), &broker).await.unwrap();
    let whole = Published::read(&broker.kept());
    assert_eq!((whole.items().len(), whole.rejects.len()), (72 + 37, 8 + 3));
    assert_eq!(whole.kinds[0], "opened");
    let photographs = std::mem::take(&mut *photographs.lock().unwrap());
    assert_eq!(photographs.len(), whole.kinds.len());
    for (data_dir, kept) in photographs {
        // Killed before the broker had the message, and after, with the confirm still to come.
        for kept in [kept.clone(), broker.kept()[..=kept.len()].to_vec()] {
            let data_dir = photograph(data_dir.path());
            resume_and_compare(&job, &options(data_dir.path()), kept, None, &whole).await;
        }
    }
}

#[tokio::test]
async fn only_chunks_that_may_have_been_published_are_marked_when_sent_again() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(1300))]);
    let job = workplace.job("[source]\ntype = \"jsonl\"\npath = \"a.jsonl\"\n[chunk]\nitems = 1\n");
    let (broker, photographs) = photographing(&workplace, |publish| publish % 97 == 5);
    run(&job, &workplace.options(), &broker).await.unwrap();
    let whole = Published::read(&broker.kept());
    assert!(whole.chunks.iter().all(|(header, _)| !header.resent), "a first run marks nothing");
    let photographs = std::mem::take(&mut *photographs.lock().unwrap());
    assert!(photographs.len() > 10);
    let mut unmarked_at_all = 0;
    for (data_dir, kept) in photographs {
        let published_before = Published::read(&kept).chunks.len();
        let all = resume_and_compare(&job, &options(data_dir.path()), kept, None, &whole).await;
        let copies = all.chunks.len() - 1300;
        assert!(copies <= 256 + 256, "{copies}: more than what was unconfirmed and not yet in the journal");
        let unmarked = all.chunks[published_before..].iter().filter(|(header, _)| !header.resent).count();
        unmarked_at_all += unmarked;
        let new = 1300 - published_before;
        assert!(unmarked + 1024 >= new, "{unmarked} of {new} new chunks are unmarked");
    }
    assert!(unmarked_at_all > 1000, "new chunks are not marked");
}

/// The reading end of a pipe: gives what is sent, and ends when the sender is dropped.
struct Pipe(Receiver<Vec<u8>>, Vec<u8>);

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.1.is_empty() {
            self.1 = self.0.recv().unwrap_or_default();
        }
        let bytes = self.1.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&self.1[..bytes]);
        self.1.drain(..bytes);
        Ok(bytes)
    }
}

fn pipe() -> (Sender<Vec<u8>>, Box<dyn Read + Send>) {
    let (writer, reader) = channel();
    (writer, Box::new(Pipe(reader, Vec::new())))
}

const PIPED: &str = "[source]\ntype = \"jsonl\"\npath = \"-\"\n[chunk]\nitems = 3\n";

fn piped_lines() -> Vec<String> {
    (0..30).map(|n| if n % 8 == 5 { "broken\n".to_owned() } else { format!("{{\"n\":{n}}}\n") }).collect()
}

/// Pipes `lines` in one by one and photographs the folder whenever a chunk of them is published.
async fn photograph_piped(workplace: &Workplace, job: &Job) -> (Published, Photographs) {
    let (broker, photographs) = photographing(workplace, |_| true);
    let (writer, reader) = pipe();
    let plan = plan(job, &named(&workplace.data_dir(), "piped")).unwrap().with_standard_input(reader);
    let running = start(plan, job, &broker);
    let (mut accepted, mut chunks) = (0, 0);
    for line in piped_lines() {
        accepted += usize::from(line != "broken\n");
        writer.send(line.into_bytes()).unwrap();
        if accepted / 3 > chunks {
            chunks = accepted / 3;
            broker.until(|published| published.chunks.len() == chunks).await;
        }
    }
    drop(writer);
    assert_eq!(running.task.await.unwrap().unwrap().end, End::Sealed);
    (Published::read(&broker.kept()), photographs)
}

#[tokio::test]
async fn standard_input_piped_in_again_after_a_kill_is_compared_and_continued() {
    let workplace = Workplace::new(&[]);
    let job = workplace.job(PIPED);
    let (whole, photographs) = photograph_piped(&workplace, &job).await;
    assert_eq!(whole.rejects.len(), 4);
    let photographs = std::mem::take(&mut *photographs.lock().unwrap());
    assert_eq!(photographs.len(), whole.kinds.len());
    let input = piped_lines().concat();
    let mut differing_refused = 0;
    for (data_dir, kept) in photographs {
        let spooled = Published::read(&kept).items().len();
        let again = photograph(data_dir.path());
        let piped: Box<dyn Read + Send> = Box::new(Cursor::new(input.clone()));
        let options_again = named(again.path(), "piped");
        resume_and_compare(&job, &options_again, kept.clone(), Some(piped), &whole).await;

        // Other input is refused at the item where it differs, before anything of it is published.
        if (3..24).contains(&spooled) {
            let broker = MemoryBroker::with(kept.clone(), usize::MAX >> 3, Box::new(|_| ()));
            let other = input.replace("{\"n\":2}", "{\"n\":9}");
            let options = named(data_dir.path(), "piped");
            let refused = run_piped(&job, &options, &broker, Box::new(Cursor::new(other))).await;
            let message = refused.unwrap_err().to_string();
            assert!(message.contains("at item 2 of source `main`"), "{message}");
            assert!(Published::read(&broker.kept()).sealed.is_empty(), "the run is left to be resumed");
            differing_refused += 1;
        }
    }
    assert!(differing_refused > 5);
}

#[tokio::test]
async fn input_that_ends_before_what_was_spooled_is_refused() {
    let workplace = Workplace::new(&[]);
    let job = workplace.job(PIPED);
    let (_, photographs) = photograph_piped(&workplace, &job).await;
    let (data_dir, kept) = photographs.lock().unwrap().remove(8);
    let spooled = Published::read(&kept).items().len() as u64;
    let short: String = piped_lines()[..4].concat();
    let broker = MemoryBroker::with(kept, usize::MAX >> 3, Box::new(|_| ()));
    let options = named(data_dir.path(), "piped");
    let refused = run_piped(&job, &options, &broker, Box::new(Cursor::new(short))).await;
    let message = refused.unwrap_err().to_string();
    assert!(spooled > 6 && message.contains("at item 3 of source `main`"), "{message}");
}

#[tokio::test]
async fn input_spooled_to_its_end_is_not_asked_for_again() {
    let workplace = Workplace::new(&[]);
    let job = workplace.job(PIPED);
    let (whole, photographs) = photograph_piped(&workplace, &job).await;
    let (data_dir, kept) = photographs.lock().unwrap().pop().unwrap();
    let (writer, never_ending) = pipe();
    resume_and_compare(&job, &named(data_dir.path(), "piped"), kept, Some(never_ending), &whole).await;
    drop(writer);
}

#[tokio::test]
async fn a_spool_goes_away_with_the_sealing() {
    let workplace = Workplace::new(&[]);
    let job = workplace.job(PIPED);
    let broker = MemoryBroker::new();
    let (writer, reader) = pipe();
    let plan = plan(&job, &named(&workplace.data_dir(), "piped")).unwrap().with_standard_input(reader);
    let running = start(plan, &job, &broker);
    writer.send(b"1\n2\n3\n".to_vec()).unwrap();
    broker.until(|published| published.chunks.len() == 1).await;
    let spool = workplace.data_dir().join("producer/piped/spool-main");
    assert!(std::fs::read(&spool).unwrap().ends_with(b"1\n2\n3\n"), "what is published is on the disk");
    drop(writer);
    running.task.await.unwrap().unwrap();
    assert!(!spool.exists());
}

#[tokio::test]
async fn a_producer_dropped_in_mid_run_lets_go_of_the_run_for_the_next() {
    let workplace = Workplace::new(&[("a.jsonl", &numbers(3000))]);
    let job = workplace.job("[source]\ntype = \"jsonl\"\npath = \"a.jsonl\"\n[chunk]\nitems = 3\n");
    let broker = MemoryBroker::with(Vec::new(), 100, Box::new(|_| ()));
    let running = start(plan(&job, &workplace.options()).unwrap(), &job, &broker);
    broker.until(|published| published.chunks.len() >= 300).await;
    running.task.abort();
    assert!(running.task.await.unwrap_err().is_cancelled());
    broker.allow_confirms(10_000);
    // The reading thread notices at its next piece.
    let produced = loop {
        match run(&job, &workplace.options(), &broker).await {
            Err(windrow_producer::ProducerError::Busy(_)) => tokio::task::yield_now().await,
            other => break other.unwrap(),
        }
    };
    assert_eq!(produced.end, End::Sealed);
    let all = Published::read(&broker.kept());
    assert_eq!(all.items().len(), 3000);
    assert!(all.chunks.len() > 1000, "the unconfirmed ones were sent again");
}
