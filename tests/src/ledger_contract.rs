//! The contract of the ledger seam, for every implementation: what is said in the comments of `Ledger`.

use std::collections::BTreeMap;

use futures::future::BoxFuture;
use windrow_collector::chunk_state::{ChunkState, ItemEnd};
use windrow_collector::ledger::{
    Changes, ChunkKey, Gap, ItemRow, Ledger, LedgerError, RunKey, RunRecord, SinkSpan,
};
use windrow_collector::sink::order::{Piece, Position};
use windrow_collector::spool::Extent;
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{Claim, Opened, Reject};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::{ProcessId, RunId, SourceName};
use windrow_common::job::Rate;
use windrow_common::outcome::{Outcome, OutcomeCounts};
use windrow_common::ranges::{Ranges, Runs};

/// Opens the same ledger, as a collector that starts does.
pub type Opening = dyn Fn() -> BoxFuture<'static, Result<Box<dyn Ledger>, LedgerError>>;

/// Every rule, each on a ledger of its own from `place`.
pub async fn holds(mut place: impl FnMut() -> Box<Opening>) {
    a_later_opening_deposes_the_earlier(&*place()).await;
    a_commit_is_all_or_nothing(&*place()).await;
    runs_are_kept_and_taken_up_while_open(&*place()).await;
    chunks_and_what_is_open_are_kept(&*place()).await;
    items_are_counted_again_from_the_settled_set(&*place()).await;
    pieces_and_spans_wait_for_their_turn(&*place()).await;
    a_reject_is_new_once(&*place()).await;
    claims_are_kept_and_taken_up(&*place()).await;
    what_holds_for_destinations_is_kept(&*place()).await;
}

fn record(key: RunKey, id: &str) -> RunRecord {
    let run: RunId = id.parse().unwrap();
    let opened = Opened {
        run: run.clone(),
        root_run: run,
        job: "sync".parse().unwrap(),
        hash: "0123456789abcdef0123456789abcdef".parse().unwrap(),
        sources: vec![SourceName::only()],
        fingerprint: "f\u{0}".into(),
        started_at: 1_800_000_000_000,
        producer: ProcessId::generate(),
    };
    RunRecord::new(key, opened)
}

fn key(ordinal: u64) -> ChunkKey {
    ChunkKey { run: 1, stage: 0, source: 0, ordinal }
}

/// A chunk of ten items of which the first `settled` have settled: succeeded, but every third failed.
fn chunk(ordinal: u64, settled: u64) -> ChunkState {
    let mut chunk = ChunkState::new(Span { first: ordinal * 10, count: 10 });
    let end = |at| if at % 3 == 0 { Outcome::Failed } else { Outcome::Succeeded };
    let items: Vec<ItemEnd> =
        (0..settled).map(|at| ItemEnd { index: ordinal * 10 + at, outcome: end(at), digest: 7 }).collect();
    chunk.settle(&items);
    chunk
}

fn piece(ordinal: u64, offset: u64) -> Piece {
    let at = Position { source: 0, ordinal, offset };
    let extent = Extent { segment: 3, at: ordinal * 100 + offset, bytes: 5 };
    Piece { at, next: Position { offset: offset + 1, ..at }, extent }
}

async fn a_later_opening_deposes_the_earlier(open: &Opening) {
    let mut first = open().await.unwrap();
    first.commit(&Changes { runs: vec![record(1, "r1")], ..Changes::default() }).await.unwrap();
    let mut second = open().await.unwrap();
    let changes = Changes { chunks: vec![(key(0), chunk(0, 10))], ..Changes::default() };
    let refused = first.commit(&changes).await.unwrap_err();
    assert!(matches!(refused, LedgerError::Deposed { ours, theirs } if ours < theirs), "{refused}");
    assert_eq!(second.chunks(&[key(0)]).await.unwrap(), [None], "a deposed commit left a trace");
    second.commit(&changes).await.unwrap();
    assert_eq!(second.chunks(&[key(0)]).await.unwrap(), [Some(chunk(0, 10))]);
    first.commit(&changes).await.unwrap_err();
}

async fn a_commit_is_all_or_nothing(open: &Opening) {
    let mut ledger = open().await.unwrap();
    ledger.commit(&Changes { runs: vec![record(1, "r1")], ..Changes::default() }).await.unwrap();
    // Two runs of one name cannot be.
    let impossible = Changes {
        runs: vec![record(2, "r2"), record(3, "r1")],
        chunks: vec![(key(0), chunk(0, 10))],
        waiting: vec![(1, piece(0, 0))],
        ..Changes::default()
    };
    ledger.commit(&impossible).await.unwrap_err();
    assert_eq!(ledger.run(&"r2".parse().unwrap()).await.unwrap(), None);
    assert_eq!(ledger.chunks(&[key(0)]).await.unwrap(), [None]);
    ledger.commit(&Changes { runs: vec![record(2, "r2")], ..Changes::default() }).await.unwrap();
    assert_eq!(open().await.unwrap().open_runs().await.unwrap().runs.len(), 2);
}

async fn runs_are_kept_and_taken_up_while_open(open: &Opening) {
    let mut ledger = open().await.unwrap();
    assert_eq!(ledger.open_runs().await.unwrap().next_key, 1);
    let mut ended = record(2, "r2");
    let runs = vec![record(1, "r1"), ended.clone(), record(7, "r7")];
    ledger.commit(&Changes { runs: runs.clone(), ..Changes::default() }).await.unwrap();
    let mut ledger = open().await.unwrap();
    let taken_up = ledger.open_runs().await.unwrap();
    assert_eq!((taken_up.runs, taken_up.next_key), (runs, 8));
    ended.state = RunState::Completed;
    ended.is_reported = true;
    ended.sink = windrow_collector::ledger::SinkRecord::None;
    ledger.commit(&Changes { runs: vec![ended.clone()], ..Changes::default() }).await.unwrap();
    let keys: Vec<RunKey> = ledger.open_runs().await.unwrap().runs.iter().map(|run| run.key).collect();
    assert_eq!(keys, [1, 7]);
    assert_eq!(ledger.run(ended.id()).await.unwrap(), Some(ended));
}

async fn chunks_and_what_is_open_are_kept(open: &Opening) {
    let mut ledger = open().await.unwrap();
    let mut handed_over = chunk(4, 2);
    handed_over.hops = Some(vec![0, 0, 1, 1, 1, 2, 2, 2, 2, 2]);
    let chunks = vec![(key(0), chunk(0, 10)), (key(1), chunk(1, 9)), (key(4), handed_over.clone())];
    ledger.commit(&Changes { chunks, ..Changes::default() }).await.unwrap();
    ledger.commit(&Changes { chunks: vec![(key(1), chunk(1, 10))], ..Changes::default() }).await.unwrap();
    let mut ledger = open().await.unwrap();
    let loaded = ledger.chunks(&[key(4), key(2), key(1), key(0)]).await.unwrap();
    assert_eq!(loaded, [Some(handed_over), None, Some(chunk(1, 10)), Some(chunk(0, 10))]);
    assert_eq!(ledger.chunks(&[]).await.unwrap(), []);
    let open_items = ledger.open_items(1, 0, 0).await.unwrap();
    assert_eq!((open_items.incomplete, open_items.next_ordinal, open_items.next_index), (vec![4], 5, 50));
    assert_eq!(open_items.gaps, [Gap { ordinal: 2, next_ordinal: 4, first: 20, count: 20 }]);
    assert_eq!(ledger.open_items(1, 1, 0).await.unwrap().next_ordinal, 0);
}

async fn items_are_counted_again_from_the_settled_set(open: &Opening) {
    let mut ledger = open().await.unwrap();
    let row = |first, count, outcome| ItemRow {
        run: 1,
        stage: 0,
        source: 0,
        first,
        count,
        outcome,
        id: Some("a\u{0}\u{1F980}'\"".into()),
        attempts: 2,
        error: "{\"message\":\"\\u0000\"}".into(),
    };
    let changes = Changes {
        chunks: vec![(key(0), chunk(0, 10)), (key(1), chunk(1, 5))],
        items: vec![row(0, 1, Outcome::Failed), row(3, 4, Outcome::Failed), row(20, 2, Outcome::Skipped)],
        ..Changes::default()
    };
    ledger.commit(&changes).await.unwrap();
    let recount = open().await.unwrap().recount(1, 0).await.unwrap();
    assert_eq!(recount.settled, 15);
    assert_eq!(recount.chunks, OutcomeCounts { succeeded: 9, failed: 6, ..OutcomeCounts::default() });
    assert_eq!(recount.items, OutcomeCounts { failed: 5, skipped: 2, ..OutcomeCounts::default() });
    assert_eq!(ledger.recount(1, 1).await.unwrap().settled, 0);
}

async fn pieces_and_spans_wait_for_their_turn(open: &Opening) {
    let mut ledger = open().await.unwrap();
    let span = |at| SinkSpan { at, extent: Extent { segment: 4, at, bytes: 10 } };
    let changes = Changes {
        waiting: vec![(1, piece(2, 0)), (1, piece(0, 3)), (1, piece(0, 1)), (2, piece(0, 0))],
        spans: vec![(1, span(10)), (1, span(0)), (2, span(0))],
        ..Changes::default()
    };
    ledger.commit(&changes).await.unwrap();
    let mut ledger = open().await.unwrap();
    let all = ledger.waiting(1, Position::START, 9).await.unwrap();
    assert_eq!(all, [piece(0, 1), piece(0, 3), piece(2, 0)]);
    assert_eq!(ledger.waiting(1, piece(0, 3).at, 1).await.unwrap(), [piece(0, 3)]);
    let held = ledger.held(1).await.unwrap();
    assert_eq!(held.spans, [span(0), span(10)]);
    assert_eq!(held.segments, BTreeMap::from([(3, 15), (4, 20)]));
    let changes = Changes { placed: vec![(1, piece(0, 3).at)], synced: vec![(1, 10)], ..Changes::default() };
    ledger.commit(&changes).await.unwrap();
    let left = ledger.waiting(1, Position::START, 9).await.unwrap();
    assert_eq!(left, [piece(0, 3), piece(2, 0)]);
    assert_eq!(ledger.held(1).await.unwrap().spans, [span(10)]);
    assert_eq!(ledger.held(2).await.unwrap().segments, BTreeMap::from([(3, 5), (4, 10)]));
}

async fn a_reject_is_new_once(open: &Opening) {
    let mut ledger = open().await.unwrap();
    let reject = |line| {
        let reason = "no JSON: \u{0}".to_owned();
        (1, 0, Reject { source: SourceName::only(), file: "a.jsonl".into(), line, reason })
    };
    let runs = vec![record(1, "r1")];
    let changes = Changes { runs, rejects: vec![reject(1), reject(2)], ..Changes::default() };
    assert_eq!(ledger.commit(&changes).await.unwrap().get(&1), Some(&2));
    let again = Changes { rejects: vec![reject(2), reject(3)], ..Changes::default() };
    assert_eq!(ledger.commit(&again).await.unwrap().get(&1), Some(&1));
    let run = open().await.unwrap().run(&"r1".parse().unwrap()).await.unwrap().unwrap();
    assert_eq!(run.rejected, 3);
}

async fn claims_are_kept_and_taken_up(open: &Opening) {
    let mut ledger = open().await.unwrap();
    let mut claimed = chunk(1, 2);
    let claim = Claim {
        claimant: "a".parse().unwrap(),
        holds_ms: 5,
        attempts: Runs::repeat(3, 2),
        ids: Some(vec!["a\u{0}\u{1F980}'\"".into(), String::new()]),
    };
    let items = Ranges::span(14, 2);
    claimed.claims.grant(&claim, &items, &items, 1_800_000_000_000);
    let chunks = vec![(key(0), chunk(0, 2)), (key(1), claimed.clone()), (key(2), claimed.clone())];
    ledger.commit(&Changes { runs: vec![record(1, "r1")], chunks, ..Changes::default() }).await.unwrap();
    let mut settled = claimed.clone();
    settled.claims.settle(14);
    settled.claims.settle(15);
    let chunks = vec![(key(2), settled.clone())];
    ledger.commit(&Changes { chunks, ..Changes::default() }).await.unwrap();
    let mut ledger = open().await.unwrap();
    let all = [Some(chunk(0, 2)), Some(claimed), Some(settled)];
    assert_eq!(ledger.chunks(&[key(0), key(1), key(2)]).await.unwrap(), all);
    assert_eq!(ledger.open_runs().await.unwrap().claimed, [key(1)]);
}

async fn what_holds_for_destinations_is_kept(open: &Opening) {
    let mut ledger = open().await.unwrap();
    let rates: Vec<Rate> = vec!["10/s".parse().unwrap(), "500/d".parse().unwrap()];
    let set = |name: &str, rates: Option<&Vec<Rate>>| Changes {
        limits: vec![(name.to_owned(), rates.cloned())],
        ..Changes::default()
    };
    ledger.commit(&set("crm", Some(&rates[..1].to_vec()))).await.unwrap();
    ledger.commit(&set("crm", Some(&rates))).await.unwrap();
    ledger.commit(&set("erp", Some(&rates))).await.unwrap();
    let mut ledger = open().await.unwrap();
    let down = |until| Changes { outages: vec![("crm".to_owned(), until)], ..Changes::default() };
    ledger.commit(&down(Some(1_000))).await.unwrap();
    ledger.commit(&down(Some(1_800_000_000_000))).await.unwrap();
    let outages = BTreeMap::from([("crm".to_owned(), 1_800_000_000_000)]);
    assert_eq!(open().await.unwrap().open_runs().await.unwrap().outages, outages);
    let mut ledger = open().await.unwrap();
    ledger.commit(&down(None)).await.unwrap();
    assert!(ledger.open_runs().await.unwrap().outages.is_empty());
    let left_alone = |until| Changes { pauses: vec![("crm".to_owned(), until)], ..Changes::default() };
    ledger.commit(&left_alone(Some(1_000))).await.unwrap();
    ledger.commit(&left_alone(Some(2_000))).await.unwrap();
    let pauses = BTreeMap::from([("crm".to_owned(), 2_000)]);
    let mut ledger = open().await.unwrap();
    assert_eq!(ledger.open_runs().await.unwrap().pauses, pauses);
    ledger.commit(&left_alone(None)).await.unwrap();
    assert!(ledger.open_runs().await.unwrap().pauses.is_empty());
    let both = BTreeMap::from([("crm".to_owned(), rates.clone()), ("erp".to_owned(), rates.clone())]);
    assert_eq!(ledger.open_runs().await.unwrap().limits, both);
    ledger.commit(&set("erp", None)).await.unwrap();
    let one = BTreeMap::from([("crm".to_owned(), rates)]);
    assert_eq!(open().await.unwrap().open_runs().await.unwrap().limits, one);
}
