//! Which run a command begins or takes up again.

use std::fs::{self, File};

use windrow_common::envelope::control::RunState;
use windrow_common::job::Job;
use windrow_producer::{End, Options, ProducerError, plan};

use crate::support::*;

const LINES: &str = "[source]\ntype = \"jsonl\"\npath = \"*.jsonl\"\n";
const ONE_ITEM_CHUNKS: &str = "[chunk]\nitems = 1\n";

fn workplace() -> (Workplace, Job) {
    let workplace = Workplace::new(&[("a.jsonl", b"1\n2\n"), ("b.jsonl", b"3\n")]);
    let job = workplace.job(&format!("{LINES}{ONE_ITEM_CHUNKS}"));
    (workplace, job)
}

/// Begins a run and interrupts it before its end.
async fn leave_unfinished(job: &Job, options: &Options) {
    let mut job = job.clone();
    job.chunk.outstanding = 1;
    let broker = MemoryBroker::new();
    let running = start(plan(&job, options).unwrap(), &job, &broker);
    broker.until(|published| !published.chunks.is_empty()).await;
    running.shutdown.cancel();
    assert_eq!(running.task.await.unwrap().unwrap().end, End::Interrupted);
}

#[tokio::test]
async fn the_same_command_resumes_what_it_left_and_begins_anew_after_the_end() {
    let (workplace, job) = workplace();
    leave_unfinished(&job, &workplace.options()).await;
    let again = plan(&job, &workplace.options()).unwrap();
    assert!(again.is_resumed());
    let run = again.run().clone();
    assert!(matches!(plan(&job, &workplace.options()), Err(ProducerError::Busy(busy)) if busy == run));
    start(again, &job, &MemoryBroker::new()).task.await.unwrap().unwrap();
    let next = plan(&job, &workplace.options()).unwrap();
    assert!(!next.is_resumed() && next.run() != &run);
}

#[tokio::test]
async fn a_byte_changed_under_the_same_size_and_time_is_another_source() {
    let (workplace, job) = workplace();
    leave_unfinished(&job, &named(&workplace.data_dir(), "left")).await;
    assert!(plan(&job, &workplace.options()).unwrap().is_resumed());

    let path = workplace.path("a.jsonl");
    let before = fs::metadata(&path).unwrap();
    fs::write(&path, "1\n7\n").unwrap();
    File::options().append(true).open(&path).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(&path).unwrap();
    assert_eq!((before.len(), before.modified().unwrap()), (after.len(), after.modified().unwrap()));

    assert!(!plan(&job, &workplace.options()).unwrap().is_resumed());
    let refused = plan(&job, &named(&workplace.data_dir(), "left")).unwrap_err();
    let ProducerError::Changed { changes, .. } = &refused else { panic!("{refused}") };
    assert_eq!(changes.len(), 1);
    assert!(changes[0].starts_with("a.jsonl: was 4 bytes with hash"), "{}", changes[0]);
}

#[tokio::test]
async fn files_of_other_names_or_number_are_another_source() {
    let (workplace, job) = workplace();
    leave_unfinished(&job, &named(&workplace.data_dir(), "left")).await;
    fs::rename(workplace.path("b.jsonl"), workplace.path("c.jsonl")).unwrap();
    assert!(!plan(&job, &workplace.options()).unwrap().is_resumed());
    fs::rename(workplace.path("c.jsonl"), workplace.path("b.jsonl")).unwrap();
    fs::write(workplace.path("c.jsonl"), "").unwrap();
    assert!(!plan(&job, &workplace.options()).unwrap().is_resumed());
    fs::remove_file(workplace.path("c.jsonl")).unwrap();
    assert!(plan(&job, &workplace.options()).unwrap().is_resumed());
}

#[tokio::test]
async fn a_run_begun_with_other_chunks_is_refused_with_both_values() {
    let (workplace, job) = workplace();
    leave_unfinished(&job, &workplace.options()).await;
    let other = workplace.job(&format!("{LINES}[chunk]\nitems = 7\n"));
    let refused = plan(&other, &workplace.options()).unwrap_err().to_string();
    assert!(refused.contains("chunk.items: was 1, is 7"), "{refused}");
    assert!(refused.contains("--run"), "{refused}");
}

#[tokio::test]
async fn several_unfinished_runs_are_ambiguous_until_one_is_named() {
    let (workplace, job) = workplace();
    for run in ["one", "two"] {
        leave_unfinished(&job, &named(&workplace.data_dir(), run)).await;
    }
    let refused = plan(&job, &workplace.options()).unwrap_err().to_string();
    assert!(refused.contains("one, two") && refused.contains("--run NAME"), "{refused}");
    assert!(plan(&job, &named(&workplace.data_dir(), "two")).unwrap().is_resumed());
    assert!(!plan(&job, &named(&workplace.data_dir(), "three")).unwrap().is_resumed());
}

#[tokio::test]
async fn what_the_ledger_says_of_runs_decides_which_are_unfinished() {
    let (workplace, job) = workplace();
    let with = |state| Options { states: [("left".parse().unwrap(), state)].into(), ..workplace.options() };
    leave_unfinished(&job, &named(&workplace.data_dir(), "left")).await;
    assert!(!plan(&job, &with(RunState::Cancelled)).unwrap().is_resumed());
    let by_name = Options { run: Some("left".parse().unwrap()), ..with(RunState::Cancelled) };
    assert!(matches!(plan(&job, &by_name), Err(ProducerError::Ended(_))));

    // Sealed, but with items still open: the same command goes on with it, and publishes no chunk again.
    run(&job, &workplace.options(), &MemoryBroker::new()).await.unwrap();
    let sealed = plan(&job, &with(RunState::Running)).unwrap();
    assert!(sealed.is_resumed() && sealed.is_sealed());
    let broker = MemoryBroker::new();
    let produced = start(sealed, &job, &broker).task.await.unwrap().unwrap();
    assert_eq!((produced.end, produced.sources.values().next().unwrap().accepted), (End::Sealed, 3));
    assert_eq!(Published::read(&broker.kept()).kinds, ["opened", "sealed"]);
    assert!(!plan(&job, &with(RunState::Completed)).unwrap().is_resumed());
}

#[tokio::test]
async fn standard_input_is_resumed_only_by_name() {
    let workplace = Workplace::new(&[]);
    let job = workplace.job(&format!("[source]\ntype = \"jsonl\"\npath = \"-\"\n{ONE_ITEM_CHUNKS}"));
    let first = plan(&job, &named(&workplace.data_dir(), "piped")).unwrap();
    assert_eq!(first.total_bytes(), None);
    assert!(first.fingerprint().starts_with("spool:"));
    let mut hasty = job.clone();
    hasty.chunk.outstanding = 1;
    let broker = MemoryBroker::new();
    let input = Box::new(std::io::Cursor::new("1\n2\n"));
    let running = start(first.with_standard_input(input), &hasty, &broker);
    broker.until(|published| !published.chunks.is_empty()).await;
    running.shutdown.cancel();
    assert_eq!(running.task.await.unwrap().unwrap().end, End::Interrupted);
    assert!(!plan(&job, &workplace.options()).unwrap().is_resumed());
    assert!(plan(&job, &named(&workplace.data_dir(), "piped")).unwrap().is_resumed());
}

#[test]
fn a_path_that_stands_for_no_file_says_why() {
    let workplace = Workplace::new(&[("[x].jsonl", b"1\n")]);
    fs::create_dir(workplace.path("folder")).unwrap();
    let refused = |path: &str| {
        let job = workplace.job(&format!("[source]\ntype = \"jsonl\"\npath = \"{path}\"\n"));
        plan(&job, &workplace.options()).unwrap_err().to_string()
    };
    assert!(refused("none-*.jsonl").contains("none it matches"));
    assert!(refused("folder").contains("name its files"));
    assert!(refused("a[.jsonl").contains("no valid glob"));
    let job = workplace.job("[source]\ntype = \"jsonl\"\npath = \"[x].jsonl\"\n");
    assert_eq!(plan(&job, &workplace.options()).unwrap().total_bytes(), Some(2), "a file of that very name");
}

#[test]
fn files_are_read_in_bytewise_order_and_hidden_ones_are_left_out() {
    let workplace = Workplace::new(&[
        ("b.jsonl", b"3\n"),
        ("B.jsonl", b"1\n"),
        ("a-10.jsonl", b"2\n"),
        (".hidden.jsonl", b"0\n"),
        ("\u{e9}.jsonl", b"4\n"),
    ]);
    let preview = windrow_producer::preview(&workplace.job(LINES), 10).unwrap();
    let items: Vec<&[u8]> = preview.items.iter().map(|item| &item.json[..]).collect();
    assert_eq!(items, [b"1", b"2", b"3", b"4"]);
}
