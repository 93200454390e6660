//! What outcomes do to a run: its chunks, its totals, its rows and its lines.

use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::Outcomes;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::Ranges;

use crate::chunk_state::{HandedOver, ItemEnd, Settled, digest};
use crate::chunks::Chunks;
use crate::doubt::with_unknown;
use crate::ledger::{Changes, ChunkKey, ItemRow};
use crate::render::{self, ItemLine, Line};
use crate::run::{Refusal, Run};
use crate::sink::order::Position;

impl Run {
    /// Takes outcomes and hand-overs. Nothing has changed after a refusal. An item that somebody else has claimed ends as
    /// unknown: only the claimant knows how its call ended.
    pub(crate) fn outcomes(
        &mut self,
        outcomes: &Outcomes,
        key: ChunkKey,
        chunks: &mut Chunks,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let claims = chunks.get(&key).map(|chunk| &chunk.claims).filter(|claims| !claims.is_empty());
        let disputed = claims.map_or_else(Ranges::new, |claims| {
            outcomes.items.filter(|index| claims.is_of_another(index, outcomes.claimant.as_ref()))
        });
        if disputed.is_empty() {
            return self.settle_outcomes(outcomes, key, chunks, changes);
        }
        let lines = render::lines(outcomes).map_err(|error| Refusal(error.to_string()))?;
        self.settle_outcomes(&with_unknown(outcomes, &lines, &disputed), key, chunks, changes)
    }

    /// The same, whoever has claimed the items.
    pub(crate) fn settle_outcomes(
        &mut self,
        outcomes: &Outcomes,
        key: ChunkKey,
        chunks: &mut Chunks,
        changes: &mut Changes,
    ) -> Result<(), Refusal> {
        let lines = render::lines(outcomes).map_err(|error| Refusal(error.to_string()))?;
        if !self.takes(key, outcomes.span, chunks.get(&key))? {
            self.record.late += outcomes.items.len();
            self.mark_changed();
            return Ok(());
        }
        let items: Vec<ItemEnd> = (outcomes.items.iter().zip(outcomes.outcomes.iter()).zip(&lines))
            .map(|((index, outcome), line)| ItemEnd { index, outcome, digest: digest(outcome, line.value) })
            .collect();
        let chunk = chunks.change(key, outcomes.span);
        let settled = chunk.settle(&items);
        let handed = chunk.hand_over(&outcomes.handed_over, outcomes.hop.saturating_add(1));
        if let Some(claimant) = &outcomes.claimant {
            chunk.claims.release(claimant, &outcomes.released);
        }
        self.add_up(outcomes, key, &settled, handed);
        if settled.counts.settled() > 0 {
            self.keep_rows(outcomes, key, &settled, &lines, changes);
            if self.keeps_lines() {
                self.keep_lines(outcomes, key, &settled, &lines);
            }
        }
        self.saw_chunk(key, outcomes.span);
        self.mark_changed();
        Ok(())
    }

    fn add_up(&mut self, outcomes: &Outcomes, key: ChunkKey, settled: &Settled, handed: HandedOver) {
        self.record.duplicates += settled.duplicates;
        self.record.conflicts += settled.conflicts;
        self.record.late += settled.late;
        let stage = &mut self.record.stages[key.stage as usize];
        stage.waiting_items = (stage.waiting_items + handed.waiting).saturating_sub(settled.waited);
        stage.settled_chunks += u64::from(settled.completed);
        if settled.counts.settled() == 0 && !handed.is_new {
            // A copy of what was counted before.
            return;
        }
        self.record.unasked += u64::from(outcomes.unasked);
        stage.latencies.merge(&outcomes.latencies);
        for outcome in Outcome::ALL {
            stage.counts.add(outcome, settled.counts.of(outcome));
        }
        let sum = |values: &mut dyn Iterator<Item = u32>| -> u64 {
            values.zip(&settled.new).filter(|(_, new)| **new).map(|(value, _)| u64::from(value)).sum()
        };
        stage.attempts += sum(&mut outcomes.attempts.iter());
        stage.throttles += sum(&mut outcomes.throttles.iter());
        stage.holds += sum(&mut outcomes.holds.iter());
    }

    /// Rows of the new items that did not succeed; neighbours that ended alike share one.
    fn keep_rows(
        &self,
        outcomes: &Outcomes,
        key: ChunkKey,
        settled: &Settled,
        lines: &[Line<'_>],
        changes: &mut Changes,
    ) {
        if settled.counts.succeeded == settled.counts.settled() {
            return;
        }
        let items = outcomes.items.iter().zip(outcomes.outcomes.iter()).zip(outcomes.attempts.iter());
        for (((index, outcome), attempts), (new, line)) in items.zip(settled.new.iter().zip(lines)) {
            if !new || outcome == Outcome::Succeeded {
                continue;
            }
            let row = ItemRow {
                run: self.record.key,
                stage: key.stage,
                source: key.source,
                first: index,
                count: 1,
                outcome,
                id: line.id.and_then(|id| serde_json::from_slice(id).ok()),
                attempts,
                error: String::from_utf8_lossy(line.value).into_owned(),
            };
            match changes.items.last_mut() {
                Some(last) if last.is_continued_by(&row) => last.count += 1,
                _ => changes.items.push(row),
            }
        }
    }

    /// The new items' lines, into the spool: one piece for each stretch of consecutive items.
    fn keep_lines(&mut self, outcomes: &Outcomes, key: ChunkKey, settled: &Settled, lines: &[Line<'_>]) {
        let span = outcomes.span;
        let mut rendered = std::mem::take(&mut self.lines);
        rendered.clear();
        let mut first = None;
        let mut end = 0;
        let items = outcomes.items.iter().zip(outcomes.outcomes.iter()).zip(outcomes.attempts.iter());
        for (((index, outcome), attempts), (new, line)) in items.zip(settled.new.iter().zip(lines)) {
            if !new {
                continue;
            }
            if let Some(first) = first.filter(|_| index != end) {
                self.spool_stretch(key, span, first..end, &rendered);
                rendered.clear();
            }
            if rendered.is_empty() {
                first = Some(index);
            }
            end = index + 1;
            let source = self.named_source(key.source);
            render::render(ItemLine { index, source, outcome, attempts }, line, &mut rendered);
        }
        if let Some(first) = first {
            self.spool_stretch(key, span, first..end, &rendered);
        }
        self.lines = rendered;
    }

    fn spool_stretch(&mut self, key: ChunkKey, span: Span, items: std::ops::Range<u64>, lines: &[u8]) {
        let at = Position { source: key.source, ordinal: key.ordinal, offset: items.start - span.first };
        let next = if items.end == span.first + span.count {
            Position { ordinal: key.ordinal + 1, offset: 0, ..at }
        } else {
            Position { offset: items.end - span.first, ..at }
        };
        self.spool_piece(at, next, lines);
    }
}

impl ItemRow {
    fn is_continued_by(&self, next: &Self) -> bool {
        (self.run, self.stage, self.source) == (next.run, next.stage, next.source)
            && self.first + self.count == next.first
            && self.id.is_none()
            && next.id.is_none()
            && (self.outcome, self.attempts, &self.error) == (next.outcome, next.attempts, &next.error)
    }
}
