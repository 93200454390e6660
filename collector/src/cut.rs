//! Ending what is open in a run that is stopped or cancelled.

use std::ops::Range;

use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::outcome::Outcome;

use crate::chunk_state::ChunkState;
use crate::engine::Engine;
use crate::ledger::{Changes, ChunkKey, Gap, ItemRow};
use crate::render::{self, ItemLine, Line};
use crate::run::Run;
use crate::sink::order::Position;
use crate::{CollectorError, place};

impl Engine {
    /// Ends every open item as cancelled, and as unknown where its call may have been made, in one transaction.
    pub(crate) async fn cut(&mut self, id: &RunId, changes: &mut Changes) -> Result<(), CollectorError> {
        let Some(run) = self.runs.get_mut(id) else { return Ok(()) };
        place::make_ready(&self.options.data_dir, &self.patience, run).await?;
        if run.record.stages.is_empty() {
            // Not one outcome came, and no job file says what the stage is called.
            run.set_stages(["unknown".parse()].iter().flatten());
        }
        let key = run.record.key;
        for source in 0..u32::try_from(run.record.sources.len()).unwrap_or(0) {
            let mut open = self.ledger.open_items(key, 0, source).await?;
            let totals = &run.record.sources[source as usize];
            if totals.accepted > open.next_index {
                open.gaps.push(Gap {
                    ordinal: open.next_ordinal,
                    next_ordinal: totals.chunks.max(open.next_ordinal + 1),
                    first: open.next_index,
                    count: totals.accepted - open.next_index,
                });
            }
            let chunk = |ordinal: u64| ChunkKey { run: key, stage: 0, source, ordinal };
            let keys: Vec<ChunkKey> = open.incomplete.iter().map(|ordinal| chunk(*ordinal)).collect();
            let known = self.ledger.chunks(&keys).await?;
            for (key, state) in keys.into_iter().zip(known) {
                if let Some(state) = state {
                    let state = run.end_claimed(key, state, changes);
                    run.cut_chunk(key, state, changes);
                }
            }
            for gap in open.gaps {
                run.cut_gap(chunk(gap.ordinal), gap, changes);
            }
        }
        run.record.cut = true;
        run.mark_changed();
        Ok(())
    }
}

impl Run {
    /// Ends the open items of a chunk that is known in part.
    fn cut_chunk(&mut self, key: ChunkKey, mut chunk: ChunkState, changes: &mut Changes) {
        let (open, waited) = chunk.close();
        let stage = &mut self.record.stages[key.stage as usize];
        stage.counts.add(Outcome::Cancelled, open.len());
        stage.waiting_items = stage.waiting_items.saturating_sub(waited);
        stage.settled_chunks += 1;
        let Span { first, count } = chunk.span;
        for stretch in open.as_ranges() {
            let (from, end) = (*stretch.start(), *stretch.end() + 1);
            let at = Position { source: key.source, ordinal: key.ordinal, offset: from - first };
            let next = if end == first + count {
                Position { ordinal: key.ordinal + 1, offset: 0, ..at }
            } else {
                Position { offset: end - first, ..at }
            };
            self.cut_stretch(key, from..end, at, next, changes);
        }
        changes.chunks.push((key, chunk));
    }

    /// Ends the items of chunks nobody has reported on; they are kept as one.
    fn cut_gap(&mut self, key: ChunkKey, gap: Gap, changes: &mut Changes) {
        let mut chunk = ChunkState::new(Span { first: gap.first, count: gap.count });
        chunk.close();
        chunk.digests.clear();
        let stage = &mut self.record.stages[key.stage as usize];
        stage.counts.add(Outcome::Cancelled, gap.count);
        stage.settled_chunks += gap.next_ordinal - gap.ordinal;
        let at = Position { source: key.source, ordinal: gap.ordinal, offset: 0 };
        let next = Position { ordinal: gap.next_ordinal, ..at };
        self.cut_stretch(key, gap.first..gap.first + gap.count, at, next, changes);
        changes.chunks.push((key, chunk));
    }

    fn cut_stretch(
        &mut self,
        key: ChunkKey,
        items: Range<u64>,
        at: Position,
        next: Position,
        changes: &mut Changes,
    ) {
        let error = render::closed_error(self.record.state == RunState::Cancelling);
        changes.items.push(ItemRow {
            run: key.run,
            stage: key.stage,
            source: key.source,
            first: items.start,
            count: items.end - items.start,
            outcome: Outcome::Cancelled,
            id: None,
            attempts: 0,
            error: error.to_owned(),
        });
        if !self.keeps_lines() {
            return;
        }
        let mut lines = Vec::new();
        let line = Line { id: None, value: error.as_bytes() };
        for index in items {
            let source = self.named_source(key.source);
            let item = ItemLine { index, source, outcome: Outcome::Cancelled, attempts: 0 };
            render::render(item, &line, &mut lines);
        }
        self.spool_piece(at, next, &lines);
    }
}
