//! W1: items through queues, ledger and sink, against a bare loop that moves the same bytes.

use std::process::Command;

use tempfile::TempDir;
use windrow_tests::process::binary;
use windrow_tests::rabbitmq_server::RabbitMqServer;

use super::measure::{Running, lines, printed, take_turns, timed, write_items};

const ITEMS: u64 = 1_000_000;
const SINGLE_ITEMS: u64 = 100_000;

/// Echo over `items.jsonl` with the sink in input order.
pub(crate) fn job(items_per_chunk: u64) -> String {
    format!(
        "name = \"throughput\"\n\
         [source]\ntype = \"jsonl\"\npath = \"../items.jsonl\"\n\
         [chunk]\nitems = {items_per_chunk}\n\
         [[stage]]\nname = \"echo\"\ntype = \"echo\"\n\
         [sink]\ntype = \"jsonl\"\npath = \"out.jsonl\"\norder = \"input\"\n"
    )
}

/// 1,000,000 items in chunks of 100 on RabbitMQ.
pub(crate) fn chunks_of_a_hundred() {
    against_the_bare_loop("W1, chunks of 100", ITEMS, 100);
}

/// 100,000 items, one a chunk, on RabbitMQ.
pub(crate) fn one_item_a_chunk() {
    against_the_bare_loop("W1, one item a chunk", SINGLE_ITEMS, 1);
}

fn against_the_bare_loop(name: &str, items: u64, items_per_chunk: u64) {
    let folder = TempDir::new().expect("a folder");
    let server = RabbitMqServer::start_blocking();
    let file = folder.path().join("items.jsonl");
    write_items(&file, items);
    let mut fleet = Running::start(folder.path(), &server.uri(), &job(items_per_chunk));
    let bare = || {
        let mut command = Command::new(binary("bare-loop"));
        printed(command.arg(server.uri()).arg(&file).arg(items_per_chunk.to_string()))
    };
    take_turns(|| fleet.run(items), bare).report(name, "bare lapin loop", items);
}

/// 1,000,000 items in chunks of 100: the embedded broker in one process against RabbitMQ with three.
pub(crate) fn embedded() {
    let folder = TempDir::new().expect("a folder");
    let server = RabbitMqServer::start_blocking();
    write_items(&folder.path().join("items.jsonl"), ITEMS);
    let mut fleet = Running::start(folder.path(), &server.uri(), &job(100));
    let job = folder.path().join("jobs").join("job.toml");
    let sink = folder.path().join("jobs").join("out.jsonl");
    let embedded = || {
        let data = TempDir::new_in(folder.path()).expect("a folder");
        let mut command = Command::new(binary("windrow"));
        let seconds = timed(command.arg("run").arg(&job).arg("--quiet").arg("--data-dir").arg(data.path()));
        assert_eq!(lines(&sink), ITEMS);
        std::fs::remove_file(&sink).expect("the sink is there");
        seconds
    };
    take_turns(embedded, || fleet.run(ITEMS)).report("W1, embedded", "on RabbitMQ", ITEMS);
}
