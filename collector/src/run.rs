//! A run in the collector's hands: its record, its spool and its sink, and what each kind of completion
//! does to it.

use std::collections::VecDeque;
use std::time::Instant;

use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::{Progress, Question, Rejects, Sealed, SourceProgress};
use windrow_common::envelope::control::{RunNews, RunState};
use windrow_common::ids::{ChunkId, SourceName, StageName};
use windrow_common::ranges::Ranges;
use windrow_common::telemetry::metrics::Metrics;

use crate::chunk_state::ChunkState;
use crate::chunks::Chunks;
use crate::ledger::{Changes, ChunkKey, RunRecord, SinkRecord, SinkSpan, StageRecord};
use crate::meters::Meters;
use crate::sink::Sink;
use crate::sink::order::{Piece, Position};
use crate::spool::Spool;

/// Why a completion cannot be taken; it is parked with this.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Refusal(pub String);

/// A run in the collector's hands.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "five facts apart from one another")]
pub(crate) struct Run {
    /// Its record; ahead of the ledger while a batch is under way.
    pub(crate) record: RunRecord,
    /// Its spool, once there was something to keep.
    pub(crate) spool: Option<Spool>,
    /// Its sink, while open.
    pub(crate) sink: Option<Box<dyn Sink>>,
    /// What it adds to the metrics.
    pub(crate) meters: Meters,
    /// Whether the spool was made ready for this batch.
    pub(crate) spool_is_ready: bool,
    /// Pieces of this batch.
    pub(crate) fresh: Vec<Piece>,
    /// Spans written to the sink and not known to be safe there.
    pub(crate) unsynced: VecDeque<SinkSpan>,
    /// Whether the record is ahead of the ledger.
    pub(crate) is_changed: bool,
    /// Whether there is something to broadcast.
    pub(crate) has_news: bool,
    /// Whether the run folder is behind.
    pub(crate) folder_is_behind: bool,
    /// Whether a notice of its end is under way.
    pub(crate) is_being_told: bool,
    /// When people were last told of a dead letter of it.
    pub(crate) death_told_at: Option<Instant>,
    /// The state the run folder was last written in.
    pub(crate) written_state: Option<RunState>,
    /// When the producer was last heard of.
    pub(crate) producer_heard_at: Instant,
    /// When news were last broadcast.
    pub(crate) told_at: Option<Instant>,
    /// When the sink was last synced.
    pub(crate) synced_at: Instant,
    /// When it ended, or was loaded as ended.
    pub(crate) ended_at: Option<Instant>,
    /// Room for rendering, used again and again.
    pub(crate) lines: Vec<u8>,
}

impl Run {
    /// A run as the ledger has it.
    pub(crate) fn new(record: RunRecord, now: Instant) -> Self {
        let meters = Meters::new(&record);
        let ended_at = record.state.is_ended().then_some(now);
        Self {
            record,
            spool: None,
            sink: None,
            meters,
            spool_is_ready: false,
            fresh: Vec::new(),
            unsynced: VecDeque::new(),
            is_changed: false,
            has_news: true,
            folder_is_behind: true,
            is_being_told: false,
            death_told_at: None,
            written_state: None,
            producer_heard_at: now,
            told_at: None,
            synced_at: now,
            ended_at,
            lines: Vec::new(),
        }
    }

    /// Whether lines of settled items are to be kept.
    pub(crate) fn keeps_lines(&self) -> bool {
        matches!(self.record.sink, SinkRecord::Unbound | SinkRecord::File(_))
    }

    /// The chunk's key, if its stage and source are this run's. A first stage is learnt from the chunk
    /// when no job file told it.
    pub(crate) fn chunk_key(&mut self, id: &ChunkId) -> Result<ChunkKey, Refusal> {
        let source = self.source_number(&id.source)?;
        let stages = &mut self.record.stages;
        if stages.is_empty() {
            stages.push(StageRecord::new(id.stage.clone()));
        }
        let stage = stages
            .iter()
            .position(|stage| stage.name == id.stage)
            .ok_or_else(|| Refusal(format!("the run has no stage `{}`", id.stage)))?;
        Ok(ChunkKey { run: self.record.key, stage: number(stage), source, ordinal: id.ordinal })
    }

    /// Takes the producer's word on how far it is.
    pub(crate) fn progress(&mut self, progress: &Progress, now: Instant) {
        self.producer_heard_at = now;
        if self.record.sealed {
            return;
        }
        let mut is_further = false;
        for source in &mut self.record.sources {
            if let Some(said) = progress.sources.get(&source.name) {
                is_further |= said.accepted > source.accepted || said.chunks > source.chunks;
                source.accepted = source.accepted.max(said.accepted);
                source.chunks = source.chunks.max(said.chunks);
            }
        }
        if is_further {
            self.mark_changed();
        }
    }

    /// Takes the totals. The first seal holds.
    pub(crate) fn seal(&mut self, sealed: &Sealed) -> Result<(), Refusal> {
        let said = |name| sealed.sources.get(name).cloned().unwrap_or_default();
        if self.record.sealed {
            let differs = self.record.sources.iter().any(|source| {
                let SourceProgress { accepted, chunks, .. } = said(&source.name);
                (accepted, chunks) != (source.accepted, source.chunks)
            });
            // After a stop the collector may have sealed the run itself, at what it knew.
            return if differs && !self.record.cut {
                Err(Refusal("the run was sealed before, with other totals".into()))
            } else {
                Ok(())
            };
        }
        for source in &mut self.record.sources {
            let SourceProgress { accepted, chunks, .. } = said(&source.name);
            (source.accepted, source.chunks) = (accepted, chunks);
        }
        self.record.sealed = true;
        self.record.seal_error.clone_from(&sealed.error);
        self.mark_changed();
        Ok(())
    }

    /// Takes rejected rows.
    pub(crate) fn rejects(&mut self, rejects: Rejects, changes: &mut Changes) -> Result<(), Refusal> {
        let numbers: Vec<u32> = rejects
            .rejects
            .iter()
            .map(|reject| self.source_number(&reject.source))
            .collect::<Result<_, _>>()?;
        let rows = numbers.into_iter().zip(rejects.rejects);
        changes.rejects.extend(rows.map(|(source, reject)| (self.record.key, source, reject)));
        self.mark_changed();
        Ok(())
    }

    /// Takes a question: it shows that its items were handed to its hop, and what it claims is the asker's alone from now
    /// on. Without a claim one at hop 0 says nothing, and an unknown chunk stays unknown.
    pub(crate) fn question(
        &mut self,
        question: &Question,
        key: ChunkKey,
        chunks: &mut Chunks,
        now_ms: u64,
    ) -> Result<(), Refusal> {
        let says_nothing = question.hop == 0 && question.claim.is_none();
        if !self.takes(key, question.span, chunks.get(&key))? || says_nothing {
            return Ok(());
        }
        let chunk = chunks.change(key, question.span);
        let waiting = chunk.hand_over(&question.items, question.hop).waiting;
        if let Some(claim) = &question.claim {
            chunk.claim(claim, &question.items, question.hop, now_ms);
        }
        self.record.stages[key.stage as usize].waiting_items += waiting;
        self.saw_chunk(key, question.span);
        self.mark_changed();
        Ok(())
    }

    /// Answers a question that was taken: the items to run, and those that somebody else has claimed.
    pub(crate) fn answer(
        &mut self,
        question: &Question,
        chunks: &Chunks,
    ) -> Result<(Ranges, Ranges), Refusal> {
        let key = self.chunk_key(&question.id)?;
        let known = chunks.get(&key);
        if !self.takes(key, question.span, known)? {
            return Ok((Ranges::new(), Ranges::new()));
        }
        let claimant = question.claim.as_ref().map(|claim| &claim.claimant);
        let answer = known.map(|chunk| chunk.answer(&question.items, question.hop, claimant));
        Ok(answer.unwrap_or_else(|| (question.items.clone(), Ranges::new())))
    }

    /// Brings the metrics up to the record, which is durable.
    pub(crate) fn count(&mut self, metrics: &Metrics) {
        let spool_bytes = self.spool.as_ref().map_or(0, Spool::bytes);
        self.meters.catch_up(metrics, &self.record, spool_bytes);
    }

    /// What is broadcast of the run.
    pub(crate) fn news(&self) -> RunNews {
        let first = self.record.stages.first();
        let counts = self.record.counts();
        RunNews {
            run: self.record.id().clone(),
            state: self.record.state,
            stopping: self.record.is_stopping(),
            settled_chunks: first.map_or(0, |stage| stage.settled_chunks),
            settled_items: counts.settled(),
            failed_items: counts.failed,
            waiting_items: first.map_or(0, |stage| stage.waiting_items),
        }
    }

    /// The record has changed: it is to be written, told and reported.
    pub(crate) fn mark_changed(&mut self) {
        self.is_changed = true;
        self.has_news = true;
        self.folder_is_behind = true;
    }

    /// The name of the source, where the lines of the sink are to say it.
    pub(crate) fn named_source(&self, source: u32) -> Option<&SourceName> {
        let sources = &self.record.sources;
        if sources.len() > 1 { sources.get(source as usize).map(|source| &source.name) } else { None }
    }

    /// Puts rendered lines of consecutive items into the spool.
    pub(crate) fn spool_piece(&mut self, at: Position, next: Position, lines: &[u8]) {
        let extent = self.spool.as_mut().and_then(|spool| spool.push(lines));
        debug_assert!(extent.is_some(), "the spool was not made ready for this batch");
        self.fresh.extend(extent.map(|extent| Piece { at, next, extent }));
    }

    /// Whether outcomes of this chunk still count (late ones do not); refuses what cannot be this run's.
    pub(crate) fn takes(
        &self,
        key: ChunkKey,
        span: Span,
        known: Option<&ChunkState>,
    ) -> Result<bool, Refusal> {
        let is_over = self.record.cut || self.record.state.is_ended();
        match known {
            Some(chunk) if chunk.span == span => return Ok(true),
            _ if is_over => return Ok(false),
            Some(_) => return Err(Refusal("the chunk is known with another span".into())),
            None => {}
        }
        let source = &self.record.sources[key.source as usize];
        let is_beyond = !self.record.is_retry() && span.first + span.count > source.accepted;
        if self.record.sealed && (key.ordinal >= source.chunks || is_beyond) {
            return Err(Refusal("the chunk lies beyond the run's sealed totals".into()));
        }
        Ok(true)
    }

    fn source_number(&self, name: &SourceName) -> Result<u32, Refusal> {
        let at = self.record.sources.iter().position(|source| &source.name == name);
        at.map(number).ok_or_else(|| Refusal(format!("the run has no source `{name}`")))
    }

    pub(crate) fn saw_chunk(&mut self, key: ChunkKey, span: Span) {
        let source = &mut self.record.sources[key.source as usize];
        source.seen_chunks = source.seen_chunks.max(key.ordinal + 1);
        source.seen_items = source.seen_items.max(span.first + span.count);
    }

    /// Tells the stages, where a job file is there to say them.
    pub(crate) fn set_stages<'a>(&mut self, names: impl Iterator<Item = &'a StageName>) {
        self.record.stages = names.map(|name| StageRecord::new(name.clone())).collect();
    }
}

fn number(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}
