//! Items that may or may not have been called, and must not be called twice: they end as unknown, for a person to judge.

use std::collections::BTreeMap;

use bytes::{BufMut, Bytes, BytesMut};
use windrow_common::envelope::completion::{ItemError, Latencies, Outcomes};
use windrow_common::ids::ChunkId;
use windrow_common::outcome::Outcome;
use windrow_common::ranges::{Ranges, Runs};

use crate::chunk_state::ChunkState;
use crate::chunks::Chunks;
use crate::claims::Claimed;
use crate::engine::{Engine, Now};
use crate::ledger::{Changes, ChunkKey};
use crate::render::Line;
use crate::run::{Refusal, Run};
use crate::{CollectorError, place};

/// Why items are in doubt.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Doubt {
    /// Nobody said in time how their call ended.
    ClaimantGone,
    /// Their call was under way when the run was stopped.
    RunStopped,
    /// Their call was under way when somebody else ended them.
    EndedByAnother,
}

impl Doubt {
    /// The `ItemError`, as JSON.
    fn error(self) -> Vec<u8> {
        let (class, message) = match self {
            Self::ClaimantGone => (
                "claim_expired",
                "who was to make this call is gone, or did not say in time whether it was made",
            ),
            Self::RunStopped => ("stopped", "this call was under way when the run was stopped"),
            Self::EndedByAnother => ("claimed", "this call was under way elsewhere when the item was ended"),
        };
        let error = ItemError { class: class.to_owned(), message: message.to_owned(), status: None };
        // Text and a number: writing them cannot fail.
        serde_json::to_vec(&error).unwrap_or_default()
    }
}

impl Engine {
    /// Takes up the claims on these chunks.
    pub(crate) async fn take_up_claims(&mut self, claimed: &[ChunkKey]) -> Result<(), CollectorError> {
        for (key, chunk) in claimed.iter().zip(self.ledger.chunks(claimed).await?) {
            if let Some(chunk) = chunk {
                self.claim_times.note(*key, &chunk);
            }
        }
        Ok(())
    }

    /// Ends the items whose claims had run out at `at`, in Unix milliseconds, as unknown: what was sent of them before then
    /// has been read. The chunks are loaded.
    pub(crate) async fn end_overdue(
        &mut self,
        at: u64,
        chunks: &mut Chunks,
        changes: &mut Changes,
        now: Now,
    ) -> Result<(), CollectorError> {
        let at = at.min(now.unix_ms);
        for key in self.claim_times.overdue(at) {
            let Some(run) = self.runs.values_mut().find(|run| run.record.key == key.run) else { continue };
            let items = chunks.get(&key).map_or_else(BTreeMap::new, |chunk| chunk.claims.overdue(at));
            if items.is_empty() {
                continue;
            }
            place::make_ready(&self.options.data_dir, &self.patience, run).await?;
            run.end_in_doubt(key, &items, Doubt::ClaimantGone, chunks, changes);
            tracing::warn!(run = %run.record.id(), ordinal = key.ordinal, items = items.len(),
                "claims ran out: these items end as unknown");
        }
        Ok(())
    }
}

impl Run {
    /// Ends claimed items as unknown. They were claimed, so the chunk is this run's.
    pub(crate) fn end_in_doubt(
        &mut self,
        key: ChunkKey,
        items: &BTreeMap<u64, Claimed>,
        doubt: Doubt,
        chunks: &mut Chunks,
        changes: &mut Changes,
    ) {
        let Some(chunk) = chunks.get(&key) else { return };
        let outcomes = self.in_doubt(key, chunk, items, doubt);
        if let Err(Refusal(reason)) = self.settle_outcomes(&outcomes, key, chunks, changes) {
            tracing::error!(run = %self.record.id(), reason, "items in doubt could not be ended");
        }
    }

    /// Ends what is claimed of a chunk before its run is cut.
    pub(crate) fn end_claimed(
        &mut self,
        key: ChunkKey,
        chunk: ChunkState,
        changes: &mut Changes,
    ) -> ChunkState {
        if chunk.claims.is_empty() {
            return chunk;
        }
        let items = chunk.claims.overdue(u64::MAX);
        let mut chunks = Chunks::default();
        let unchanged = chunk.clone();
        chunks.put_loaded(key, Some(chunk));
        self.end_in_doubt(key, &items, Doubt::RunStopped, &mut chunks, changes);
        chunks.get(&key).cloned().unwrap_or(unchanged)
    }

    fn in_doubt(
        &self,
        key: ChunkKey,
        chunk: &ChunkState,
        claimed: &BTreeMap<u64, Claimed>,
        doubt: Doubt,
    ) -> Outcomes {
        let error = doubt.error();
        let mut body = BytesMut::new();
        for item in claimed.values() {
            // An item without an id has an empty one.
            let id = serde_json::Value::from(item.id.as_deref().unwrap_or_default());
            body.put_slice(id.to_string().as_bytes());
            body.put_u8(b'\t');
            body.put_slice(&error);
            body.put_u8(b'\n');
        }
        let items = Ranges::from_ascending(claimed.keys().copied());
        let count = items.len();
        Outcomes {
            id: ChunkId {
                run: self.record.id().clone(),
                stage: self.record.stages[key.stage as usize].name.clone(),
                source: self.record.sources[key.source as usize].name.clone(),
                ordinal: key.ordinal,
            },
            span: chunk.span,
            hop: 0,
            items,
            outcomes: Runs::repeat(Outcome::Unknown, count),
            attempts: claimed.values().map(|item| item.attempt).collect(),
            throttles: Runs::repeat(0, count),
            holds: Runs::repeat(0, count),
            handed_over: Ranges::new(),
            claimant: None,
            released: Ranges::new(),
            latencies: Latencies::default(),
            unasked: false,
            ids: true,
            body: Bytes::from(body),
        }
    }
}

/// The same outcomes with these items as unknown: whoever ended them did not know how their call ended.
pub(crate) fn with_unknown(outcomes: &Outcomes, lines: &[Line<'_>], disputed: &Ranges) -> Outcomes {
    let error = Doubt::EndedByAnother.error();
    let mut body = BytesMut::with_capacity(outcomes.body.len());
    let mut ends = Runs::default();
    for ((index, outcome), line) in outcomes.items.iter().zip(outcomes.outcomes.iter()).zip(lines) {
        let is_disputed = disputed.contains(index);
        if outcomes.ids {
            body.put_slice(line.id.unwrap_or(b"\"\""));
            body.put_u8(b'\t');
        }
        body.put_slice(if is_disputed { &error } else { line.value });
        body.put_u8(b'\n');
        ends.push(if is_disputed { Outcome::Unknown } else { outcome });
    }
    Outcomes { outcomes: ends, body: body.freeze(), ..outcomes.clone() }
}
