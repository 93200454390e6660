//! A processor written in Rust: of 100,000 items no value is seen in the outcome of another one.

use std::hash::{BuildHasher, RandomState};

use futures::future::join_all;
use windrow_common::envelope::chunk::Span;
use windrow_common::ids::ChunkId;
use windrow_common::ranges::{Ranges, Runs};

use super::*;

const CHUNK: u64 = 1_000;
const CHUNKS_AT_ONCE: u64 = 4;

const TWO_HUNDRED_AT_ONCE: Settings = Settings { concurrency: Concurrency::Fixed(200), ..USUAL };

/// What the processor makes of a value: nothing an item has in it to begin with.
fn work(value: u64) -> u64 {
    value.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(31)
}

fn value(item: &Item) -> u64 {
    std::str::from_utf8(&item.raw).unwrap().parse().unwrap()
}

fn answer(value: u64) -> Attempt {
    Attempt::Succeeded(work(value).to_string().into())
}

fn chunk(ordinal: u64) -> ChunkHeader {
    let id = ChunkId { ordinal, ..header(1).id };
    let first = ordinal * CHUNK;
    ChunkHeader {
        id,
        span: Span { first, count: CHUNK },
        items: Ranges::span(first, CHUNK),
        attempts: Runs::repeat(0, CHUNK),
        throttles: Runs::repeat(0, CHUNK),
        holds: Runs::repeat(0, CHUNK),
        ..header(1)
    }
}

/// Works on `chunks` chunks of random values, some chunks at once; how many outputs are not their own item's.
async fn strangers(bench: &mut Bench, chunks: u64) -> usize {
    let random = RandomState::new();
    let value_of = |index: u64| random.hash_one(index);
    let mut strangers = 0;
    for first in (0..chunks).step_by(usize::try_from(CHUNKS_AT_ONCE).unwrap()) {
        let mut handled = Vec::new();
        for ordinal in first..(first + CHUNKS_AT_ONCE).min(chunks) {
            let chunk = chunk(ordinal);
            let lines: Vec<String> = chunk.items.iter().map(|index| value_of(index).to_string()).collect();
            let message = chunk.to_message(Bytes::from(lines.join("\n")), false);
            let target = Target::Queue(Queue::Work(bench.intake.key.clone()));
            bench.broker.publish(Outgoing { target, message }).await.unwrap();
            handled.push(bench.work.next().await.unwrap());
        }
        let mut open = handled.len() as u64 * CHUNK;
        join_all(handled.into_iter().map(|delivery| handle(&bench.intake, delivery))).await;
        while open > 0 {
            let outcomes = bench.outcomes().await;
            assert!(outcomes.outcomes.iter().all(|outcome| outcome == Outcome::Succeeded));
            let outputs: Vec<&[u8]> = outcomes.body.trim_ascii_end().split(|byte| *byte == b'\n').collect();
            assert_eq!(outputs.len() as u64, outcomes.items.len());
            let right =
                |(index, output): &(u64, &[u8])| *output == work(value_of(*index)).to_string().as_bytes();
            strangers += outcomes.items.iter().zip(outputs).filter(|pair| !right(pair)).count();
            open -= outcomes.items.len();
        }
    }
    bench.assert_settled().await;
    strangers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_outcome_of_a_hundred_thousand_items_has_a_value_of_another() {
    let mut bench = Bench::new(TWO_HUNDRED_AT_ONCE, |item| {
        async move {
            let value = value(&item);
            // So that items come to their ends in another order than they began in.
            for _ in 0..value % 4 {
                tokio::task::yield_now().await;
            }
            answer(value)
        }
        .boxed()
    })
    .await;
    assert_eq!(strangers(&mut bench, 100).await, 0);
}

/// What the test above is for is seen by it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_processor_that_keeps_a_value_between_items_is_seen() {
    let kept = Arc::new(Mutex::new(0));
    let mut bench = Bench::new(TWO_HUNDRED_AT_ONCE, move |item| {
        let kept = Arc::clone(&kept);
        async move {
            *kept.lock().unwrap() = value(&item);
            tokio::task::yield_now().await;
            let value = *kept.lock().unwrap();
            answer(value)
        }
        .boxed()
    })
    .await;
    assert!(strangers(&mut bench, 1).await > 0);
}
