//! The spool of standard input: what cannot be read again is on the producer's disk before it is sent.
//!
//! A resumed run is piped its input again from the beginning. What was spooled is compared with it, piece
//! by piece, and what comes after that is spooled in turn. A spool that has the input's end needs no input.

use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use tokio::sync::mpsc;
use windrow_common::ids::{RunId, SourceName};
use windrow_common::telemetry::metrics::IntGauge;

use crate::chunker::Mark;
use crate::error::ProducerError;
use crate::framed::{Framed, Records};
use crate::patience::insist;
use crate::pieces::{Failure, Piece};
use crate::reading::{Outlet, Room, Roomed};

/// Pieces that share a flush to the disk, at most.
const PIECES_AT_ONCE: usize = 64;

/// The spool of one source of a run.
pub(crate) struct Spool {
    run: RunId,
    source: SourceName,
    path: PathBuf,
    /// What was spooled before and not compared yet.
    recorded: Option<Records>,
    file: Framed,
    end: Option<Mark>,
    bytes: IntGauge,
}

impl Spool {
    /// Opens a source's spool, made if it is not there; `bytes` is kept at its size.
    pub(crate) fn open(
        path: PathBuf,
        run: RunId,
        source: SourceName,
        bytes: IntGauge,
    ) -> Result<Self, ProducerError> {
        let (valid_bytes, end) = scan(&path).map_err(ProducerError::state(&path))?;
        let file = Framed::open(&path, valid_bytes).map_err(ProducerError::state(&path))?;
        let recorded = Records::open(&path).map_err(ProducerError::state(&path))?;
        Ok(Self { run, source, path, recorded, file, end, bytes })
    }

    /// Where the source ends, when it was spooled to its end.
    pub(crate) fn end(&self) -> Option<Mark> {
        self.end
    }

    /// Sends everything spooled after `mark`.
    pub(crate) fn replay(mut self, mark: &Mark, room: &Room, outlet: &mut Outlet) -> Result<(), Failure> {
        while let Some(piece) = self.next_recorded()? {
            if piece.is_beyond(mark) {
                outlet.send(room.make(piece)?)?;
            }
        }
        Ok(())
    }

    /// Compares what comes with what was spooled, spools what is new, and then sends what is after `mark`.
    pub(crate) fn pass_on(
        mut self,
        mark: &Mark,
        mut pieces: mpsc::Receiver<Roomed>,
        outlet: &mut Outlet,
    ) -> Result<(), Failure> {
        while let Some(first) = pieces.blocking_recv() {
            let mut batch = vec![first];
            while batch.len() < PIECES_AT_ONCE
                && let Ok(next) = pieces.try_recv()
            {
                batch.push(next);
            }
            let mut appended = false;
            for roomed in &batch {
                appended |= self.compare_or_append(&roomed.piece, outlet)?;
            }
            if appended {
                let sync = || self.file.sync().map_err(ProducerError::state(&self.path));
                insist(|| outlet.is_wanted(), sync)?;
                self.bytes.set(i64::try_from(self.file.bytes()).unwrap_or(i64::MAX));
            }
            for roomed in batch.into_iter().filter(|roomed| roomed.piece.is_beyond(mark)) {
                outlet.send(roomed)?;
            }
        }
        Ok(())
    }

    /// Whether the piece was new.
    fn compare_or_append(&mut self, piece: &Piece, outlet: &Outlet) -> Result<bool, ProducerError> {
        if let Some(recorded) = self.next_recorded()? {
            return match first_difference(&recorded, piece) {
                None => Ok(false),
                Some(index) => {
                    let (run, source_name) = (self.run.clone(), self.source.clone());
                    Err(ProducerError::InputDiffers { run, source_name, index })
                }
            };
        }
        let encoded = piece.encode().map_err(io::Error::from);
        let (header, body) = encoded.map_err(ProducerError::state(&self.path))?;
        let append = || self.file.append(&[&header, b"\n", &body]).map_err(ProducerError::state(&self.path));
        insist(|| outlet.is_wanted(), append)?;
        Ok(true)
    }

    fn next_recorded(&mut self) -> Result<Option<Piece>, ProducerError> {
        let Some(records) = &mut self.recorded else { return Ok(None) };
        let next = records.next().and_then(|record| record.map(decode).transpose());
        let next = next.map_err(ProducerError::state(&self.path))?;
        if next.is_none() {
            self.recorded = None;
        }
        Ok(next)
    }
}

/// How many bytes of a spool are whole records, and where the source ends if it was spooled to its end.
fn scan(path: &Path) -> io::Result<(u64, Option<Mark>)> {
    let Some(mut records) = Records::open(path)? else { return Ok((0, None)) };
    let mut end = None;
    while let Some(record) = records.next()? {
        if let Piece::End(mark) = decode(record)? {
            end = Some(mark);
        }
    }
    Ok((records.valid_bytes(), end))
}

fn decode(record: Vec<u8>) -> io::Result<Piece> {
    Piece::decode(record).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// The index of the first item in which two pieces of the same place differ. None when they are the same.
fn first_difference(old: &Piece, new: &Piece) -> Option<u64> {
    if old == new {
        return None;
    }
    Some(match (old, new) {
        (Piece::Chunk(old), Piece::Chunk(new)) => {
            let lines = |body| memchr::memchr_iter(b'\n', body).count() as u64;
            let same = old.body.iter().zip(&new.body).take_while(|(a, b)| a == b).count();
            old.span.first + lines(&old.body[..same])
        }
        (Piece::Chunk(old), _) => old.span.first,
        (_, Piece::Chunk(new)) => new.span.first,
        (Piece::End(mark), _) | (_, Piece::End(mark)) => mark.index,
        (Piece::Rejects { .. }, Piece::Rejects { .. }) => 0,
    })
}
