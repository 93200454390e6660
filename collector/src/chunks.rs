//! The chunks a batch works on.

use std::collections::HashMap;

use windrow_common::envelope::chunk::Span;

use crate::chunk_state::ChunkState;
use crate::ledger::ChunkKey;

/// The chunks a batch works on, as loaded or changed so far.
#[derive(Debug, Default)]
pub(crate) struct Chunks(HashMap<ChunkKey, Slot>);

#[derive(Debug)]
struct Slot {
    state: Option<ChunkState>,
    is_changed: bool,
}

impl Chunks {
    /// Puts in what the ledger had.
    pub(crate) fn put_loaded(&mut self, key: ChunkKey, state: Option<ChunkState>) {
        self.0.insert(key, Slot { state, is_changed: false });
    }

    /// What has changed, to be written.
    pub(crate) fn into_changed(self) -> Vec<(ChunkKey, ChunkState)> {
        let mut changed: Vec<_> = self
            .0
            .into_iter()
            .filter(|(_, slot)| slot.is_changed)
            .filter_map(|(key, slot)| Some((key, slot.state?)))
            .collect();
        // In the order of the ledger's own tree: cheaper to write.
        changed.sort_unstable_by_key(|(key, _)| *key);
        changed
    }

    /// What is known of a chunk.
    pub(crate) fn get(&self, key: &ChunkKey) -> Option<&ChunkState> {
        self.0.get(key).and_then(|slot| slot.state.as_ref())
    }

    /// A chunk to change, new if nothing was known.
    pub(crate) fn change(&mut self, key: ChunkKey, span: Span) -> &mut ChunkState {
        let slot = self.0.entry(key).or_insert(Slot { state: None, is_changed: true });
        slot.is_changed = true;
        slot.state.get_or_insert_with(|| ChunkState::new(span))
    }
}
