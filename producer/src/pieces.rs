//! A source as the pieces it is sent in: chunks, batches of rejects, and its end.

use std::collections::VecDeque;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use windrow_common::envelope::chunk::Span;
use windrow_common::envelope::completion::Reject;
use windrow_common::job::OnReject;
use windrow_common::ranges::Ranges;

use crate::chunker::{ChunkLimits, Chunker, Cut, Mark};
use crate::error::ProducerError;
use crate::source::{Source, Step};

/// Rejects travel together up to this many.
const REJECTS_AT_ONCE: usize = 500;

/// A piece of a source. The same source always comes in the same pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Items.
    Chunk(Cut),
    /// Rows that are no items.
    Rejects {
        /// The rows.
        rejects: Vec<Reject>,
        /// How many there are from the source's beginning to here.
        total: u64,
    },
    /// The source ends at this place.
    End(Mark),
}

/// Why no more pieces come.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The source cannot be read on: the run is sealed with this reason.
    Seal(String),
    /// The producer cannot go on; the run is left to be resumed.
    Stop(ProducerError),
    /// Nobody receives pieces any more.
    Unwanted,
}

impl From<ProducerError> for Failure {
    fn from(error: ProducerError) -> Self {
        Self::Stop(error)
    }
}

/// The pieces of a source, from a place on.
pub(crate) struct Pieces {
    source: Box<dyn Source>,
    chunker: Chunker,
    /// The index at which reading stops though the source goes on.
    stop_at: Option<u64>,
    on_reject: OnReject,
    /// The items that are part of the run; None: all.
    only: Option<Ranges>,
    rejects: Vec<Reject>,
    rejected: u64,
    ready: VecDeque<Piece>,
    /// Set once `ready` holds the last pieces; what comes after them.
    last: Option<Result<(), String>>,
}

impl Pieces {
    /// The pieces of `source`, which stands at `from`, up to the item of index `stop_at`; with `only`, of those items.
    pub(crate) fn new(
        source: Box<dyn Source>,
        limits: ChunkLimits,
        from: Mark,
        stop_at: Option<u64>,
        on_reject: OnReject,
        only: Option<Ranges>,
    ) -> Self {
        let after_last = only.as_ref().map(|only| only.last().map_or(0, |last| last + 1));
        let stop_at = stop_at.into_iter().chain(after_last).min();
        Self {
            source,
            chunker: Chunker::new(limits, from),
            stop_at,
            on_reject,
            only,
            rejects: Vec::new(),
            rejected: from.rejected,
            ready: VecDeque::new(),
            last: None,
        }
    }

    /// The next piece. None after the source's end.
    pub(crate) fn next(&mut self) -> Result<Option<Piece>, Failure> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                return Ok(Some(piece));
            }
            match &self.last {
                Some(Ok(())) => return Ok(None),
                Some(Err(reason)) => return Err(Failure::Seal(reason.clone())),
                None => self.gather(),
            }
        }
    }

    /// Reads until a piece is ready, or the last.
    fn gather(&mut self) {
        while self.ready.is_empty() && self.last.is_none() {
            if self.stop_at.is_some_and(|index| self.chunker.next_index() >= index) {
                self.end();
                return;
            }
            match self.source.next(self.chunker.body()) {
                Ok(Step::Item) => {
                    let (index, position) = (self.chunker.next_index(), self.source.position());
                    let cut = if self.only.as_ref().is_none_or(|only| only.contains(index)) {
                        self.chunker.accept(position, self.rejected)
                    } else {
                        self.chunker.leave_out(position, self.rejected)
                    };
                    if let Some(cut) = cut {
                        self.push_chunk(cut);
                    }
                }
                Ok(Step::Rejected(reject)) => self.reject(reject),
                Ok(Step::End) => self.end(),
                Err(error) => self.fail(error.to_string()),
            }
        }
    }

    fn reject(&mut self, reject: Reject) {
        if self.only.is_some() {
            // Told by the run that is retried.
            return;
        }
        let stop = (self.on_reject == OnReject::Stop).then(|| {
            let Reject { source, file, line, reason } = &reject;
            format!("source `{source}`, {file}, line {line} is no item ({reason}), and on_reject is \"stop\"")
        });
        self.rejects.push(reject);
        self.rejected += 1;
        if let Some(reason) = stop {
            self.fail(reason);
        } else if self.rejects.len() >= REJECTS_AT_ONCE {
            self.push_rejects();
        }
    }

    /// What was gathered for a chunk that is not full is not sent: the run ends as failed.
    fn fail(&mut self, reason: String) {
        self.push_rejects();
        self.last = Some(Err(reason));
    }

    fn end(&mut self) {
        match self.chunker.finish() {
            Some(cut) => self.push_chunk(cut),
            None => self.push_rejects(),
        }
        let end = Mark { rejected: self.rejected, position: self.source.position(), ..self.chunker.start() };
        self.ready.push_back(Piece::End(end));
        self.last = Some(Ok(()));
    }

    /// Rejects go first, so that a confirmed chunk has those before its end behind it.
    fn push_chunk(&mut self, cut: Cut) {
        self.push_rejects();
        self.ready.push_back(Piece::Chunk(cut));
    }

    fn push_rejects(&mut self) {
        if !self.rejects.is_empty() {
            let rejects = std::mem::take(&mut self.rejects);
            self.ready.push_back(Piece::Rejects { rejects, total: self.rejected });
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Header {
    Chunk { ordinal: u64, first: u64, count: u64, end: Mark },
    Rejects { rejects: Vec<Reject>, total: u64 },
    End { mark: Mark },
}

impl Piece {
    /// How much memory it takes up, about.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Chunk(cut) => cut.body.len(),
            Self::Rejects { rejects, .. } => {
                rejects.iter().map(|reject| 100 + reject.file.len() + reject.reason.len()).sum()
            }
            Self::End(_) => 1,
        }
    }

    /// Whether it adds to what was confirmed up to `mark`.
    pub(crate) fn is_beyond(&self, mark: &Mark) -> bool {
        match self {
            Self::Chunk(cut) => cut.ordinal >= mark.ordinal,
            Self::Rejects { total, .. } => *total > mark.rejected,
            Self::End(_) => true,
        }
    }

    /// The piece as a header, to be followed by a line break and the body.
    pub(crate) fn encode(&self) -> serde_json::Result<(Vec<u8>, Bytes)> {
        let (header, body) = match self.clone() {
            Self::Chunk(Cut { ordinal, span: Span { first, count }, body, end }) => {
                (Header::Chunk { ordinal, first, count, end }, body)
            }
            Self::Rejects { rejects, total } => (Header::Rejects { rejects, total }, Bytes::new()),
            Self::End(mark) => (Header::End { mark }, Bytes::new()),
        };
        Ok((serde_json::to_vec(&header)?, body))
    }

    /// Reads what [`Piece::encode`] gave.
    pub(crate) fn decode(encoded: Vec<u8>) -> serde_json::Result<Self> {
        let encoded = Bytes::from(encoded);
        let header_bytes = memchr::memchr(b'\n', &encoded).unwrap_or(encoded.len());
        Ok(match serde_json::from_slice(&encoded[..header_bytes])? {
            Header::Chunk { ordinal, first, count, end } => {
                let body = encoded.slice((header_bytes + 1).min(encoded.len())..);
                Self::Chunk(Cut { ordinal, span: Span { first, count }, body, end })
            }
            Header::Rejects { rejects, total } => Self::Rejects { rejects, total },
            Header::End { mark } => Self::End(mark),
        })
    }
}
