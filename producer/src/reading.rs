//! The reading thread: sources in, pieces out. How much is under way between here and the broker's
//! confirms is bounded, so memory does not depend on the size of a source.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use windrow_common::ids::{RunId, SourceName};
use windrow_common::job::{OnReject, SourceKind};
use windrow_common::ranges::Ranges;
use windrow_common::telemetry::metrics::IntGauge;

use crate::chunker::{ChunkLimits, Mark};
use crate::error::ProducerError;
use crate::journal::{Journal, Reached, Record};
use crate::patience::insist;
use crate::pieces::{Failure, Piece, Pieces};
use crate::source::{BytesRead, Inputs, Streams};
use crate::spool::Spool;

/// Bytes read and not confirmed yet, at most: those waiting to be sent and those unconfirmed.
const BYTES_UNDER_WAY: usize = 16 * 1024 * 1024;

/// Pieces waiting to be sent, at most.
const PIECES_WAITING: usize = 64;

/// By how many chunks the horizon moves at once.
const HORIZON_STEP: u64 = 512;

/// How long a reading thread that is not wanted any more is waited for.
const READER_GRACE: Duration = Duration::from_secs(1);

/// What the reading thread works from.
pub(crate) struct Reading {
    /// The run.
    pub(crate) run: RunId,
    /// The sources, in order.
    pub(crate) sources: Vec<SourceReading>,
    /// How large chunks may become.
    pub(crate) limits: ChunkLimits,
    /// How many items are read at most, over all sources.
    pub(crate) first: Option<u64>,
    /// Where the horizon is kept.
    pub(crate) journal: Arc<Journal>,
    /// Counts the bytes read of files.
    pub(crate) bytes_read: BytesRead,
    /// Shows the size of the spool.
    pub(crate) spool_bytes: IntGauge,
}

/// A source to read.
pub(crate) struct SourceReading {
    /// Its name.
    pub(crate) name: SourceName,
    /// How its rows are read.
    pub(crate) kind: SourceKind,
    /// Its bytes.
    pub(crate) inputs: Inputs,
    /// What a reject means.
    pub(crate) on_reject: OnReject,
    /// The items that are part of the run; None: all.
    pub(crate) only: Option<Ranges>,
    /// How far it was read before.
    pub(crate) reached: Reached,
}

/// A piece and the room it takes up until it is dropped.
pub(crate) struct Roomed {
    /// The piece.
    pub(crate) piece: Piece,
    /// The room.
    pub(crate) room: OwnedSemaphorePermit,
}

/// What comes out of the reading thread: a piece of the source at this place in the list.
pub(crate) type Received = Result<(usize, Roomed), Failure>;

/// The room for pieces under way.
#[derive(Clone)]
pub(crate) struct Room {
    bytes: Arc<Semaphore>,
    runtime: Handle,
}

impl Room {
    /// Waits until there is room for a piece. Not to be called on the runtime's threads.
    pub(crate) fn make(&self, piece: Piece) -> Result<Roomed, Failure> {
        let bytes = u32::try_from(piece.bytes().clamp(1, BYTES_UNDER_WAY)).unwrap_or(u32::MAX);
        let room = self.runtime.block_on(Arc::clone(&self.bytes).acquire_many_owned(bytes));
        Ok(Roomed { piece, room: room.map_err(|_| Failure::Unwanted)? })
    }
}

/// Where the pieces of one source go.
pub(crate) struct Outlet {
    source: SourceName,
    place: usize,
    horizon: u64,
    journal: Arc<Journal>,
    to: mpsc::Sender<Received>,
}

impl Outlet {
    /// Whether anybody still receives pieces.
    pub(crate) fn is_wanted(&self) -> bool {
        !self.to.is_closed()
    }

    /// Sends a piece on; a chunk beyond the horizon only once the horizon is beyond it, on disk.
    pub(crate) fn send(&mut self, roomed: Roomed) -> Result<(), Failure> {
        if let Piece::Chunk(cut) = &roomed.piece
            && cut.ordinal >= self.horizon
        {
            self.horizon = cut.ordinal + HORIZON_STEP;
            let record = Record::Horizon { source: self.source.clone(), below: self.horizon };
            insist(|| self.is_wanted(), || self.journal.append_safely(&record))?;
        }
        self.to.blocking_send(Ok((self.place, roomed))).map_err(|_| Failure::Unwanted)
    }
}

/// The reading thread, seen from outside.
pub(crate) struct Reader {
    ended: oneshot::Receiver<()>,
}

impl Reader {
    /// Waits until the thread has let go of the run's files, unless it hangs in a read of standard input.
    pub(crate) async fn ended(self) {
        let _ = tokio::time::timeout(READER_GRACE, self.ended).await;
    }
}

/// Starts the reading thread, from within a runtime. The channel closes after the last source's end, or
/// after a failure. Dropping the receiver ends the thread at its next piece.
pub(crate) fn start(reading: Reading) -> Result<(mpsc::Receiver<Received>, Reader), ProducerError> {
    let (to, received) = mpsc::channel(PIECES_WAITING);
    let (alive, ended) = oneshot::channel();
    let room = Room { bytes: Arc::new(Semaphore::new(BYTES_UNDER_WAY)), runtime: Handle::current() };
    // Not a thread of the runtime: it may hang in a read of standard input when the process wants to end.
    thread::Builder::new()
        .name("windrow-reader".to_owned())
        .spawn(move || {
            match reading.run(&room, &to) {
                Ok(()) | Err(Failure::Unwanted) => {}
                // If nobody receives it, nobody wants to know.
                Err(failure) => drop(to.blocking_send(Err(failure))),
            }
            drop(alive);
        })
        .map_err(|error| ProducerError::Reader(error.to_string()))?;
    Ok((received, Reader { ended }))
}

impl Reading {
    fn run(self, room: &Room, to: &mpsc::Sender<Received>) -> Result<(), Failure> {
        let mut accepted = 0;
        for (place, source) in self.sources.into_iter().enumerate() {
            if source.reached.ended {
                accepted += source.reached.mark.index;
                continue;
            }
            let outlet = Outlet {
                source: source.name.clone(),
                place,
                horizon: source.reached.horizon,
                journal: Arc::clone(&self.journal),
                to: to.clone(),
            };
            let pieces = Cutting {
                limits: self.limits,
                stop_at: self.first.map(|first| first.saturating_sub(accepted)),
                bytes_read: self.bytes_read.clone(),
            };
            let end = match source.inputs {
                Inputs::Files(_) => read_files(source, &pieces, room, outlet)?,
                Inputs::StandardInput(_) => {
                    let path = self.journal.folder().spool_path(&source.name);
                    let (run, name) = (self.run.clone(), source.name.clone());
                    let spool = Spool::open(path, run, name, self.spool_bytes.clone())?;
                    read_standard_input(source, spool, &pieces, room, outlet)?
                }
            };
            accepted += end.index;
        }
        Ok(())
    }
}

/// How sources are cut.
struct Cutting {
    limits: ChunkLimits,
    stop_at: Option<u64>,
    bytes_read: BytesRead,
}

impl Cutting {
    fn pieces(&self, source: SourceReading, from: Mark) -> Pieces {
        let SourceReading { name, kind, inputs, on_reject, only, .. } = source;
        let streams = Streams::new(name, kind, inputs, from.position, self.bytes_read.clone());
        Pieces::new(Box::new(streams), self.limits, from, self.stop_at, on_reject, only)
    }
}

fn read_files(
    source: SourceReading,
    cutting: &Cutting,
    room: &Room,
    mut outlet: Outlet,
) -> Result<Mark, Failure> {
    let from = source.reached.mark;
    each_piece(cutting.pieces(source, from), |piece| outlet.send(room.make(piece)?))
}

/// Standard input is read from its beginning, whatever was confirmed: it cannot be read from elsewhere.
fn read_standard_input(
    source: SourceReading,
    spool: Spool,
    cutting: &Cutting,
    room: &Room,
    mut outlet: Outlet,
) -> Result<Mark, Failure> {
    let confirmed = source.reached.mark;
    if let Some(end) = spool.end() {
        spool.replay(&confirmed, room, &mut outlet)?;
        return Ok(end);
    }
    let pieces = cutting.pieces(source, Mark::start());
    let (to_spool, from_reader) = mpsc::channel(PIECES_WAITING);
    thread::scope(|scope| {
        let spooling = scope.spawn(|| spool.pass_on(&confirmed, from_reader, &mut outlet));
        let read = each_piece(pieces, |piece| {
            to_spool.blocking_send(room.make(piece)?).map_err(|_| Failure::Unwanted)
        });
        drop(to_spool);
        let spooled = spooling
            .join()
            .unwrap_or_else(|_| Err(ProducerError::Reader("the spooling thread panicked".to_owned()).into()));
        spooled.and(read)
    })
}

/// Sends every piece; the place at which the source ends.
fn each_piece(
    mut pieces: Pieces,
    mut send: impl FnMut(Piece) -> Result<(), Failure>,
) -> Result<Mark, Failure> {
    let mut end = Mark::start();
    while let Some(piece) = pieces.next()? {
        if let Piece::End(mark) = &piece {
            end = *mark;
        }
        send(piece)?;
    }
    Ok(end)
}
