//! The whole of it in one process: real consumers and the real engine of the collector, on a broker in memory that
//! reorders, duplicates and drops connections, on a clock that jumps. Thousands of seeds, each another history.
//!
//! `WINDROW_SEED=N` runs one seed and shows its trace; `WINDROW_MODEL_SEEDS=N` sets how many are run.

mod collector;
mod judge;
mod plan;
mod producer;
mod schedules;
mod work;
mod world;

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use judge::Figures;
use tempfile::TempDir;
use windrow_common::telemetry::metrics::Metrics;

/// Seeds, unless the environment says otherwise.
const SEEDS: u64 = 3_000;

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} must be a number")))
}

/// A folder in memory where there is one: this is no test of disks.
fn folder() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    TempDir::new_in(&memory).or_else(|_| TempDir::new()).unwrap()
}

/// Runs seeds until there are no more, or one is wrong. Each thread has its own.
fn run_seeds(next: &AtomicU64, seeds: u64, wrong: &Mutex<Option<String>>) -> Figures {
    let metrics = Metrics::new("model");
    let (folder, mut all) = (folder(), Figures::default());
    loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= seeds || wrong.lock().unwrap().is_some() {
            return all;
        }
        let place = folder.path().join(seed.to_string());
        std::fs::create_dir(&place).unwrap();
        match world::run(seed, &place, &metrics) {
            Ok((figures, _)) => all.add(figures),
            Err(sentence) => {
                *wrong.lock().unwrap() =
                    Some(format!("seed {seed}\n{sentence}\n(WINDROW_SEED={seed} repeats it)"));
            }
        }
        // A thread that writes run folders may be about to.
        let _ = std::fs::remove_dir_all(&place);
    }
}

#[test]
fn whatever_happens_every_item_has_one_outcome_and_no_settled_item_runs_again() {
    if let Some(seed) = number("WINDROW_SEED") {
        match world::run(seed, folder().path(), &Metrics::new("model")) {
            Ok((figures, trace)) => return println!("{trace}\n{figures:?}"),
            Err(sentence) => panic!("seed {seed}\n{sentence}"),
        }
    }
    let seeds = number("WINDROW_MODEL_SEEDS").unwrap_or(SEEDS);
    let (next, wrong) = (AtomicU64::new(0), Mutex::new(None));
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let figures = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(|| run_seeds(&next, seeds, &wrong))).collect();
        let mut all = Figures::default();
        for thread in threads {
            all.add(thread.join().unwrap());
        }
        all
    });
    if let Some(wrong) = wrong.into_inner().unwrap() {
        panic!("{wrong}");
    }
    println!("{seeds} seeds: {figures:?}");
    if seeds >= 1_000 {
        let Figures { calls, cuts, copies, questions, items_refused, deaths } = figures;
        for (what, figure) in [
            ("calls", calls),
            ("cuts", cuts),
            ("copies", copies),
            ("questions", questions),
            ("items copies were not to run", items_refused),
            ("deaths", deaths),
        ] {
            assert!(figure >= seeds / 2, "hardly anything was tested: {figure} {what}");
        }
    }
}
