//! Judging a run by what is outside of us: the sink, the report, and the destination's own log.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::destination::Call;

/// Checks that the sink has every index of `0..items` once, in input order if asked; returns the outcomes' counts.
pub fn check_sink(path: &Path, items: u64, in_order: bool) -> HashMap<String, u64> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut seen = vec![false; usize::try_from(items).unwrap()];
    let mut outcomes = HashMap::new();
    for (position, line) in text.lines().enumerate() {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("line {position}: {error}: {line}"));
        let index = usize::try_from(line["item"].as_u64().unwrap()).unwrap();
        assert!(!std::mem::replace(&mut seen[index], true), "item {index} is in the sink twice");
        assert!(!in_order || index == position, "item {index} is at line {position}");
        *outcomes.entry(line["outcome"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let missing: Vec<usize> = (0..seen.len()).filter(|index| !seen[*index]).take(10).collect();
    assert!(missing.is_empty(), "items are missing from the sink, the first of them {missing:?}");
    outcomes
}

/// A run's `report.json`.
pub fn report(run_folder: &Path) -> Value {
    let path = run_folder.join("report.json");
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// Checks that the report balances: accepted is what the outcomes come to, and nothing is open.
pub fn check_balance(report: &Value, accepted: u64) {
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("`{key}` is not in {report}"));
    let settled: u64 =
        ["succeeded", "failed", "skipped", "expired", "cancelled", "unknown"].into_iter().map(count).sum();
    assert_eq!((count("accepted"), settled, count("open")), (accepted, accepted, 0), "{report}");
    assert!(report.get("balance_error").is_none(), "{report}");
    assert_eq!(count("conflicts"), 0, "{report}");
}

/// A call for an item that was seen to be settled.
#[derive(Debug)]
pub struct LateCall<'a> {
    /// The call.
    pub call: &'a Call,
    /// How long after that it began.
    pub late: Duration,
}

impl std::fmt::Display for LateCall<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} by `{}`, {:.1?} late", self.call.key, self.call.caller, self.late)
    }
}

/// Watches a sink in arrival order and remembers when each item's line was first seen. A line is written after
/// its item is in the ledger, so a seen item is a settled one.
#[derive(Debug)]
pub struct SinkWatch {
    settled: Arc<Mutex<HashMap<u64, Instant>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl SinkWatch {
    /// Watches the file at `path`, which may not be there yet.
    pub fn start(path: PathBuf) -> Self {
        let settled = Arc::new(Mutex::new(HashMap::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (known, stopped) = (Arc::clone(&settled), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let mut offset = 0;
            while !stopped.load(Ordering::Relaxed) {
                offset += read_new(&path, offset, &known);
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { settled, stop, thread: Some(thread) }
    }

    /// How many items were seen to be settled.
    pub fn count(&self) -> usize {
        self.settled.lock().unwrap().len()
    }

    /// Calls that began more than `slack` after their item was seen to be settled. The slack covers the time
    /// from an answer given to a copy to the call it allowed.
    pub fn called_after_settled<'a>(&self, calls: &'a [Call], slack: Duration) -> Vec<LateCall<'a>> {
        let settled = self.settled.lock().unwrap();
        let late = |call: &'a Call| {
            let index: u64 = call.key.rsplit('/').next().unwrap().parse().unwrap();
            let late = call.at.checked_duration_since(*settled.get(&index)?)?;
            (late > slack).then_some(LateCall { call, late })
        };
        calls.iter().filter_map(late).collect()
    }
}

impl Drop for SinkWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// Reads whole new lines from `offset` on; returns how many bytes they are.
fn read_new(path: &Path, offset: u64, settled: &Mutex<HashMap<u64, Instant>>) -> u64 {
    let Ok(mut file) = File::open(path) else { return 0 };
    let mut text = Vec::new();
    if file.seek(SeekFrom::Start(offset)).is_err() || file.read_to_end(&mut text).is_err() {
        return 0;
    }
    let Some(end) = memchr::memrchr(b'\n', &text) else { return 0 };
    let now = Instant::now();
    let mut settled = settled.lock().unwrap();
    for line in text[..end].split(|byte| *byte == b'\n') {
        // After a crash of the collector the last bytes may be there before they are right.
        if let Some(index) = serde_json::from_slice::<Value>(line).ok().and_then(|line| line["item"].as_u64())
        {
            settled.entry(index).or_insert(now);
        }
    }
    end as u64 + 1
}
