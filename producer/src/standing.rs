//! Where a run stands: what of each source is confirmed, and what of that the journal knows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use windrow_common::envelope::completion::SourceProgress;
use windrow_common::ids::SourceName;

use crate::chunker::Mark;
use crate::error::ProducerError;
use crate::journal::{Journal, Reached, Record};

/// The journal is written at most this often,
const WRITE_EVERY: Duration = Duration::from_millis(100);
/// but after this many chunks in any case.
const WRITE_EVERY_CHUNKS: u64 = 256;

/// By how much the broker's confirm of a piece moves a source on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Advance {
    /// A chunk, up to this place.
    Chunk(Mark),
    /// Rejects, up to this many in all.
    Rejects(u64),
    /// The source's end.
    End(Mark),
}

/// What is confirmed.
#[derive(Debug)]
pub(crate) struct Standing {
    sources: Vec<SourceStanding>,
    written_at: Instant,
    chunks_since: u64,
}

#[derive(Debug)]
struct SourceStanding {
    name: SourceName,
    mark: Mark,
    /// Rejects go out ahead of the chunk they come before.
    rejected: u64,
    ended: bool,
    /// Whether the journal knows.
    is_written: bool,
}

impl Standing {
    /// Sources as they were reached before.
    pub(crate) fn new(sources: impl IntoIterator<Item = (SourceName, Reached)>, now: Instant) -> Self {
        let sources = sources.into_iter().map(|(name, Reached { mark, ended, .. })| SourceStanding {
            name,
            mark,
            rejected: mark.rejected,
            ended,
            is_written: true,
        });
        Self { sources: sources.collect(), written_at: now, chunks_since: 0 }
    }

    /// A piece of the source at `place` is confirmed, and all before it. What that adds.
    pub(crate) fn advance(&mut self, place: usize, advance: Advance) -> SourceProgress {
        let source = &mut self.sources[place];
        let before = source.progress();
        match advance {
            Advance::Chunk(mark) => {
                source.mark = mark;
                self.chunks_since += 1;
                source.is_written = false;
            }
            Advance::Rejects(total) => source.rejected = source.rejected.max(total),
            Advance::End(mark) => (source.mark, source.ended, source.is_written) = (mark, true, false),
        }
        source.rejected = source.rejected.max(source.mark.rejected);
        let now = source.progress();
        SourceProgress {
            accepted: now.accepted - before.accepted,
            chunks: now.chunks - before.chunks,
            rejected: now.rejected - before.rejected,
        }
    }

    /// What is confirmed, by source.
    pub(crate) fn progress(&self) -> BTreeMap<SourceName, SourceProgress> {
        self.sources.iter().map(|source| (source.name.clone(), source.progress())).collect()
    }

    /// Whether it is time to tell the journal.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        self.chunks_since >= WRITE_EVERY_CHUNKS || now.duration_since(self.written_at) >= WRITE_EVERY
    }

    /// Tells the journal what it does not know.
    pub(crate) fn write(&mut self, journal: &Journal, now: Instant) -> Result<(), ProducerError> {
        (self.written_at, self.chunks_since) = (now, 0);
        for source in self.sources.iter_mut().filter(|source| !source.is_written) {
            let (name, mark, ended) = (source.name.clone(), source.mark, source.ended);
            journal.append(&Record::Confirmed { source: name, mark, ended })?;
            source.is_written = true;
        }
        Ok(())
    }
}

impl SourceStanding {
    fn progress(&self) -> SourceProgress {
        SourceProgress { accepted: self.mark.accepted(), chunks: self.mark.ordinal, rejected: self.rejected }
    }
}
