//! Bringing lines to their place: into the spool, then, in the sink's order, into the sink.

use std::path::Path;
use std::time::Instant;

use windrow_common::crash;

use crate::CollectorError;
use crate::ledger::{Changes, Held, Ledger, SinkRecord, SinkSpan};
use crate::patience::Patience;
use crate::run::Run;
use crate::sink::Sink;
use crate::sink::jsonl::JsonlFile;
use crate::sink::order::{Feed, Next, Piece, Position, Rule};
use crate::spool::{Extent, Spool};

/// Waiting pieces are loaded in pages of this many.
const PAGE: usize = 2_000;

/// One transaction brings at most about this many pieces ...
const MOST_PIECES: usize = 20_000;

/// ... and this many bytes to a sink; the rest follows in the next.
const MOST_BYTES: u64 = 64 * 1024 * 1024;

/// Spool and sink move in blocks of this size.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Makes sure the run's spool takes lines of a new batch.
pub(crate) async fn make_ready(
    data_dir: &Path,
    patience: &Patience,
    run: &mut Run,
) -> Result<(), CollectorError> {
    if !run.keeps_lines() || run.spool_is_ready || run.record.state.is_ended() {
        return Ok(());
    }
    let id = run.record.id().clone();
    let what = format!("the spool of run {id} in {}", data_dir.display());
    let spool = &mut run.spool;
    patience
        .insist(what, || {
            let spool = match spool {
                Some(spool) => spool,
                None => spool.insert(Spool::open(data_dir, &id, Held::default().segments)?),
            };
            spool.begin_batch()
        })
        .await?;
    run.spool_is_ready = true;
    Ok(())
}

/// Gives an open run of an earlier process its spool back, and writes the last bytes of its sink again.
pub(crate) async fn take_up(
    ledger: &mut dyn Ledger,
    data_dir: &Path,
    patience: &Patience,
    run: &mut Run,
) -> Result<(), CollectorError> {
    if !run.keeps_lines() {
        return Ok(());
    }
    let held = ledger.held(run.record.key).await?;
    let id = run.record.id().clone();
    let spool = patience
        .insist(format!("the spool of run {id}"), || Spool::open(data_dir, &id, held.segments.clone()))
        .await?;
    run.spool = Some(spool);
    write_spans(patience, run, &held.spans).await
}

/// Decides, in memory, which of the run's pieces have their turn, and fixes their bytes.
pub(crate) async fn choose(
    ledger: &mut dyn Ledger,
    run: &mut Run,
    changes: &mut Changes,
) -> Result<(), CollectorError> {
    let waiting = run.record.waiting_pieces;
    let key = run.record.key;
    if run.fresh.is_empty() && !run.record.has_lines_to_place() {
        return Ok(());
    }
    let everything_settled = run.record.sealed && run.record.open() == 0;
    let SinkRecord::File(file) = &mut run.record.sink else {
        // No sink yet: everything waits.
        run.record.waiting_pieces += run.fresh.len() as u64;
        changes.waiting.extend(run.fresh.drain(..).map(|piece| (key, piece)));
        return Ok(());
    };
    let mut spans = Spans { fixed: file.fixed, list: Vec::new() };
    if !file.input_order && waiting == 0 {
        run.fresh.drain(..).for_each(|piece| spans.add(piece.extent));
    } else {
        let rule = if everything_settled || !file.input_order { Rule::Lowest } else { Rule::Gapless };
        let mut head = if file.input_order { file.head } else { Position::START };
        let mut feed = Feed::new(run.fresh.drain(..), waiting > 0);
        let ends: Vec<Option<u64>> =
            run.record.sources.iter().map(|source| run.record.sealed.then_some(source.chunks)).collect();
        let drawn = draw(ledger, key, &mut feed, &mut head, rule, &ends, &mut spans).await?;
        if drawn.waited > 0 {
            changes.placed.push((key, head));
        }
        if file.input_order {
            file.head = head;
        }
        let left: Vec<Piece> = feed.into_left().collect();
        let in_ledger = if drawn.is_everything { 0 } else { waiting.saturating_sub(drawn.waited) };
        run.record.waiting_pieces = in_ledger + left.len() as u64;
        changes.waiting.extend(left.into_iter().map(|piece| (key, piece)));
    }
    run.is_changed |= !spans.list.is_empty();
    file.fixed = spans.fixed;
    changes.spans.extend(spans.list.into_iter().map(|span| (key, span)));
    Ok(())
}

/// What was taken from a feed.
struct Drawn {
    /// How many pieces had been waiting in the ledger.
    waited: u64,
    /// Whether nothing waits there any more.
    is_everything: bool,
}

/// Takes pieces from the feed as long as they have their turn.
async fn draw(
    ledger: &mut dyn Ledger,
    run: i64,
    feed: &mut Feed,
    head: &mut Position,
    rule: Rule,
    ends: &[Option<u64>],
    spans: &mut Spans,
) -> Result<Drawn, CollectorError> {
    let (begin, mut taken, mut waited) = (spans.fixed, 0, 0);
    let mut page_size = 1;
    while taken < MOST_PIECES && spans.fixed - begin < MOST_BYTES {
        match feed.next(*head, rule) {
            Next::Fresh(piece) => {
                spans.add(piece.extent);
                *head = piece.next;
            }
            Next::Waited(piece) => {
                spans.add(piece.extent);
                *head = piece.next;
                waited += 1;
            }
            Next::Load => {
                let page = ledger.waiting(run, *head, page_size).await?;
                let is_full = page.len() == page_size;
                feed.load(page, is_full);
                // Most often the next one is not there: one row tells.
                page_size = (page_size * 16).min(PAGE);
                continue;
            }
            Next::Nothing => {
                let is_at_end = ends.get(head.source as usize).copied().flatten() == Some(head.ordinal);
                if rule == Rule::Lowest || !is_at_end || head.source as usize + 1 >= ends.len() {
                    return Ok(Drawn { waited, is_everything: rule == Rule::Lowest });
                }
                *head = head.next_source();
            }
        }
        taken += 1;
    }
    Ok(Drawn { waited, is_everything: false })
}

/// Brings the lines of a batch to disk, in the spool.
pub(crate) async fn flush(patience: &Patience, run: &mut Run) -> Result<(), CollectorError> {
    if !std::mem::take(&mut run.spool_is_ready) {
        return Ok(());
    }
    let Some(spool) = &mut run.spool else { return Ok(()) };
    patience.insist(format!("the spool of run {}", run.record.id()), || spool.flush()).await
}

/// After the transaction: what it fixed goes into the sink, and what it made superfluous goes.
pub(crate) async fn write(
    patience: &Patience,
    run: &mut Run,
    changes: &Changes,
) -> Result<(), CollectorError> {
    let key = run.record.key;
    let spans: Vec<SinkSpan> =
        changes.spans.iter().filter(|(run, _)| *run == key).map(|(_, span)| *span).collect();
    if let Some((_, synced)) = changes.synced.iter().find(|(run, _)| *run == key) {
        release(patience, run, *synced).await?;
    }
    write_spans(patience, run, &spans).await
}

async fn write_spans(patience: &Patience, run: &mut Run, spans: &[SinkSpan]) -> Result<(), CollectorError> {
    let SinkRecord::File(file) = &run.record.sink else { return Ok(()) };
    if spans.is_empty() && (run.sink.is_some() || run.record.state.is_ended()) {
        return Ok(());
    }
    let what = format!("the sink {}", file.path.display());
    if run.sink.is_none() {
        run.sink = Some(Box::new(patience.insist(&what, || JsonlFile::open(file)).await?));
    }
    let (Some(sink), Some(spool)) = (&mut run.sink, &mut run.spool) else { return Ok(()) };
    for span in spans {
        patience.insist(&what, || write_span(spool, sink.as_mut(), *span)).await?;
        run.unsynced.push_back(*span);
    }
    Ok(())
}

fn write_span(spool: &mut Spool, sink: &mut dyn Sink, span: SinkSpan) -> std::io::Result<()> {
    spool.read(span.extent, BLOCK_BYTES, |at, lines| {
        sink.write(span.at + at, lines)?;
        crash::point("collector.writing");
        Ok(())
    })
}

/// Brings the sink to disk. The ledger learns of it with the returned mark; the spool lets go after that.
pub(crate) async fn sync(
    patience: &Patience,
    run: &mut Run,
    now: Instant,
) -> Result<Option<u64>, CollectorError> {
    run.synced_at = now;
    let (SinkRecord::File(file), Some(sink)) = (&mut run.record.sink, &mut run.sink) else { return Ok(None) };
    if file.synced == file.fixed {
        return Ok(None);
    }
    patience.insist(format!("the sink {}", file.path.display()), || sink.sync()).await?;
    file.synced = file.fixed;
    run.is_changed = true;
    Ok(Some(file.synced))
}

async fn release(patience: &Patience, run: &mut Run, synced: u64) -> Result<(), CollectorError> {
    let Some(spool) = &mut run.spool else { return Ok(()) };
    let count = run.unsynced.partition_point(|span| span.at < synced);
    let extents: Vec<Extent> = run.unsynced.drain(..count).map(|span| span.extent).collect();
    let what = format!("the spool of run {}", run.record.id());
    let mut extents = Some(extents);
    patience.insist(what, || spool.release(extents.take().unwrap_or_default())).await
}

/// Bytes fixed in a batch: neighbours in the spool become one span.
struct Spans {
    fixed: u64,
    list: Vec<SinkSpan>,
}

impl Spans {
    fn add(&mut self, extent: Extent) {
        let joined = self.list.last_mut().and_then(|last| Some((last.extent.joined(extent)?, last)));
        match joined {
            Some((extent, last)) => last.extent = extent,
            None => self.list.push(SinkSpan { at: self.fixed, extent }),
        }
        self.fixed += extent.bytes;
    }
}
