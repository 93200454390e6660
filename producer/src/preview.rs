//! What a job's sources come to, without publishing anything.

use std::collections::BTreeMap;

use bytes::Bytes;
use windrow_common::envelope::Lines;
use windrow_common::envelope::completion::{Reject, SourceProgress};
use windrow_common::ids::SourceName;
use windrow_common::job::Job;

use crate::chunker::{ChunkLimits, Cut, Mark};
use crate::error::ProducerError;
use crate::pieces::{Failure, Piece, Pieces};
use crate::plan::survey;
use crate::source::{BytesRead, Inputs, Streams};

/// Rejects are shown up to this many; all are counted.
const REJECTS_SHOWN: usize = 20;

/// What a job's sources come to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Preview {
    /// Items, chunks and rejects by source. Of a source that cannot be read to its end, those before.
    pub sources: BTreeMap<SourceName, SourceProgress>,
    /// The first items, over all sources.
    pub items: Vec<PreviewItem>,
    /// The first 20 rejects, over all sources.
    pub rejects: Vec<Reject>,
    /// Sources that are standard input, which only a run reads.
    pub unread: Vec<SourceName>,
    /// Why a source could not be read on: a run would end as failed here.
    pub errors: Vec<String>,
}

/// An item as a run would send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PreviewItem {
    /// Its source.
    pub source: SourceName,
    /// Its index in it.
    pub index: u64,
    /// The item: one JSON value on one line.
    pub json: Bytes,
}

/// Reads the job's sources to the end, as a run would, and keeps the first `items` items. It blocks for as
/// long as that takes; memory does not depend on the size of the sources.
///
/// # Errors
/// Sources that are not there or cannot be opened.
pub fn preview(job: &Job, items: usize) -> Result<Preview, ProducerError> {
    let mut preview = Preview::default();
    for (spec, inputs) in job.sources.iter().zip(survey(job)?) {
        if matches!(inputs, Inputs::StandardInput(_)) {
            preview.unread.push(spec.name.clone());
            continue;
        }
        let (name, kind, start) = (spec.name.clone(), spec.kind.clone(), Mark::start());
        let limits = ChunkLimits { items: job.chunk.items, bytes: job.chunk.bytes };
        let streams = Streams::new(name, kind, inputs, start.position, BytesRead::default());
        let pieces = Pieces::new(Box::new(streams), limits, start, None, spec.on_reject, None);
        preview.read(&spec.name, pieces, items)?;
    }
    Ok(preview)
}

impl Preview {
    fn read(&mut self, name: &SourceName, mut pieces: Pieces, items: usize) -> Result<(), ProducerError> {
        let mut counts = SourceProgress::default();
        loop {
            match pieces.next() {
                Ok(Some(Piece::Chunk(cut))) => {
                    counts.chunks += 1;
                    counts.accepted += cut.span.count;
                    self.show_items(name, cut, items);
                }
                Ok(Some(Piece::Rejects { rejects, total })) => {
                    counts.rejected = total;
                    let room = REJECTS_SHOWN.saturating_sub(self.rejects.len());
                    self.rejects.extend(rejects.into_iter().take(room));
                }
                Ok(Some(Piece::End(_))) => {}
                Ok(None) | Err(Failure::Unwanted) => break,
                Err(Failure::Seal(reason)) => {
                    self.errors.push(reason);
                    break;
                }
                Err(Failure::Stop(error)) => return Err(error),
            }
        }
        self.sources.insert(name.clone(), counts);
        Ok(())
    }

    fn show_items(&mut self, source: &SourceName, cut: Cut, items: usize) {
        let room = items.saturating_sub(self.items.len());
        for (json, index) in Lines::new(cut.body).zip(cut.span.first..).take(room) {
            self.items.push(PreviewItem { source: source.clone(), index, json });
        }
    }
}
