//! The benchmarks the README names, each with its rival in the same run.
//!
//! `cargo bench -p windrow-tests` runs all; `cargo bench -p windrow-tests -- w2 w3` some: `w1`, `w1-single`,
//! `w1-embedded`, `w2`, `w3`, `memory`, `start`. Ours and the rival take turns, three times each
//! (`WINDROW_BENCH_RUNS`), and the ratio is of the medians: machines are noisy, single figures say little.

mod bench {
    pub(crate) mod measure;
    pub(crate) mod memory;
    pub(crate) mod throughput;
    pub(crate) mod work;
}

use bench::{memory, throughput, work};

fn main() {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let all: [(&str, fn()); 7] = [
        ("w1", throughput::chunks_of_a_hundred),
        ("w1-single", throughput::one_item_a_chunk),
        ("w1-embedded", throughput::embedded),
        ("w2", work::http_calls),
        ("w3", work::commands),
        ("memory", memory::peaks),
        ("start", work::start),
    ];
    for (name, run) in all {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            run();
        }
    }
}
