//! A run from its opening to its sealing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval};
use windrow_common::broker::Queue;
use windrow_common::clock;
use windrow_common::crash;
use windrow_common::envelope::completion::SourceProgress;
use windrow_common::ids::{RunId, SourceName};
use windrow_common::job::Job;

use crate::error::ProducerError;
use crate::in_flight::{Confirmed, InFlight};
use crate::journal::{Journal, Reached, Seal};
use crate::manifest::Manifest;
use crate::messages::Messages;
use crate::news::stops;
use crate::patience::{PAUSE, Trouble};
use crate::pieces::{Failure, Piece};
use crate::plan::Plan;
use crate::reading::{self, Reading, Received, Roomed, SourceReading};
use crate::source::{BytesRead, Inputs};
use crate::standing::{Advance, Standing};
use crate::window::{Gate, Published, gate};
use crate::wiring::{ProducerProgress, Wiring};

/// How often progress is reported.
const BEAT: Duration = Duration::from_secs(1);

/// After this long without news, a full window is worth a warning.
const QUIET: Duration = Duration::from_secs(10);

/// How long an interrupted producer waits for confirms. What is confirmed later is sent again, marked.
const CONFIRM_GRACE: Duration = Duration::from_secs(10);

/// How a producer ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Produced {
    /// The run.
    pub run: RunId,
    /// What brought the end about.
    pub end: End,
    /// What was published and confirmed, by source.
    pub sources: BTreeMap<SourceName, SourceProgress>,
}

/// What brought a producer's end about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The sources were read to their end; the run is sealed.
    Sealed,
    /// The sources could not be read on, for this reason; the run is sealed as failed.
    Failed(String),
    /// The run was stopped or cancelled; it is sealed at what was published.
    Stopped,
    /// Shutdown was asked for; the run is not sealed and can be resumed.
    Interrupted,
}

/// Publishes a planned run: its opening, its chunks and rejects, its progress each second, its sealing.
///
/// # Errors
/// The broker refuses, the producer's state cannot be kept, or standard input is not what it was. The run
/// is not sealed then, and can be resumed.
pub async fn produce(plan: Plan, job: Arc<Job>, wiring: Wiring) -> Result<Produced, ProducerError> {
    let total_bytes = plan.total_bytes();
    let Plan { story, folder, inputs, producer, resend } = plan;
    let run = story.manifest.run.clone();
    let Some(messages) = Messages::new(story.manifest.clone(), producer, &job, resend.unwrap_or(0)) else {
        return Err(ProducerError::NoStage(job.name.clone()));
    };
    let journal = Arc::new(Journal::open(folder, &story)?);
    let reached: Vec<(SourceName, Reached)> = (story.manifest.sources.iter())
        .map(|source| {
            let reached = story.reached(&source.name);
            (source.name.clone(), if resend.is_some() { reached.started_over() } else { reached })
        })
        .collect();
    let bytes_read = BytesRead::default();
    let mut producer = Producer {
        run,
        messages,
        in_flight: InFlight::new(Arc::clone(&wiring.broker)),
        wiring,
        published: published(&reached),
        horizons: reached.iter().map(|(_, reached)| reached.horizon).collect(),
        ends_received: reached.iter().filter(|(_, reached)| reached.ended).count(),
        standing: Standing::new(reached.iter().cloned(), std::time::Instant::now()),
        journal: Arc::clone(&journal),
        heard_at: Instant::now(),
        has_warned: false,
        is_reporting: false,
        bytes_read: Arc::clone(&bytes_read),
        total_bytes,
        outstanding: job.chunk.outstanding,
        trouble: Trouble::default(),
    };
    if !producer.open(story.has_begun()).await? {
        return Ok(producer.produced(End::Interrupted));
    }
    if let Some(seal) = story.seal.filter(|_| resend.is_none()) {
        return producer.seal_again(seal).await;
    }
    let sources = sources(&job, inputs, &reached, &story.manifest);
    let (limits, first) = (story.manifest.chunk, story.manifest.first);
    let spool_bytes = producer.wiring.metrics.spool_bytes.clone();
    let run = producer.run.clone();
    let reading = Reading { run, sources, limits, first, journal, bytes_read, spool_bytes };
    let (pieces, reader) = reading::start(reading)?;
    let end = producer.publish_all(pieces).await;
    let outcome = producer.finish(end).await;
    reader.ended().await;
    outcome
}

fn sources(
    job: &Job,
    inputs: Vec<Inputs>,
    reached: &[(SourceName, Reached)],
    manifest: &Manifest,
) -> Vec<SourceReading> {
    let specs = job.sources.iter().zip(inputs).zip(reached);
    specs
        .map(|((spec, inputs), (name, reached))| SourceReading {
            name: name.clone(),
            kind: spec.kind.clone(),
            inputs,
            on_reject: spec.on_reject,
            only: manifest.only_of(name),
            reached: *reached,
        })
        .collect()
}

fn published(reached: &[(SourceName, Reached)]) -> Published {
    let mut published = Published::default();
    for (_, Reached { mark, .. }) in reached {
        published.add(mark.ordinal, mark.accepted());
    }
    published
}

struct Producer {
    run: RunId,
    messages: Messages,
    wiring: Wiring,
    in_flight: InFlight,
    published: Published,
    /// By source: chunks under this ordinal may have been published by a process before this one.
    horizons: Vec<u64>,
    ends_received: usize,
    standing: Standing,
    journal: Arc<Journal>,
    heard_at: Instant,
    has_warned: bool,
    /// Whether a report of progress is under way.
    is_reporting: bool,
    bytes_read: BytesRead,
    total_bytes: Option<u64>,
    outstanding: u64,
    trouble: Trouble,
}

impl Producer {
    /// Opens the run. False when shutdown came first.
    async fn open(&mut self, is_resumed: bool) -> Result<bool, ProducerError> {
        let opening = async {
            self.wiring.broker.ensure(&self.messages.work_queue()).await?;
            self.wiring.broker.ensure(&Queue::Completion).await?;
            self.wiring.broker.publish(self.messages.opened()).await
        };
        tokio::select! {
            biased;
            () = self.wiring.shutdown.cancelled() => return Ok(false),
            opened = opening => opened?,
        }
        tracing::info!(run = %self.run, resumed = is_resumed, "run opened");
        Ok(true)
    }

    /// Publishes pieces until there are no more, or no more are wanted.
    async fn publish_all(&mut self, mut pieces: mpsc::Receiver<Received>) -> Result<End, ProducerError> {
        let mut beat = interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let shutdown = self.wiring.shutdown.clone();
        let mut has_news = true;
        if self.is_stopped() {
            return Ok(End::Stopped);
        }
        loop {
            let gate = self.gate();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(End::Interrupted),
                changed = self.wiring.news.changed(), if has_news => {
                    has_news = changed.is_ok();
                    self.heard_at = Instant::now();
                    if self.is_stopped() {
                        return Ok(End::Stopped);
                    }
                }
                _ = beat.tick() => self.report(gate),
                Some(confirmed) = self.in_flight.next() => self.confirm(confirmed?)?,
                received = pieces.recv(), if gate == Gate::Open => match received {
                    Some(Ok((place, roomed))) => self.publish(place, roomed),
                    Some(Err(Failure::Seal(reason))) => return Ok(End::Failed(reason)),
                    Some(Err(Failure::Stop(error))) => return Err(error),
                    Some(Err(Failure::Unwanted)) | None if self.has_read_all() => return Ok(End::Sealed),
                    Some(Err(Failure::Unwanted)) | None => {
                        return Err(ProducerError::Reader("it ended before its sources did".to_owned()));
                    }
                },
            }
        }
    }

    fn gate(&self) -> Gate {
        gate(self.in_flight.len(), self.published, self.outstanding, self.wiring.news.borrow().as_ref())
    }

    fn is_stopped(&mut self) -> bool {
        self.wiring.news.borrow_and_update().as_ref().is_some_and(stops)
    }

    fn has_read_all(&self) -> bool {
        self.ends_received == self.horizons.len()
    }

    fn publish(&mut self, place: usize, Roomed { piece, room }: Roomed) {
        let (outgoing, advance) = match piece {
            Piece::Chunk(cut) => {
                let (end, resent) = (cut.end, cut.ordinal < self.horizons[place]);
                self.published.add(1, cut.span.count);
                self.wiring.metrics.chunks_published.inc();
                (Some(self.messages.chunk(place, cut, resent, clock::unix_ms())), Advance::Chunk(end))
            }
            Piece::Rejects { rejects, total } => {
                (Some(self.messages.rejects(rejects)), Advance::Rejects(total))
            }
            Piece::End(mark) => {
                self.ends_received += 1;
                (None, Advance::End(mark))
            }
        };
        crash::point("producer.before_publish");
        self.in_flight.push(outgoing, Confirmed::Piece(place, advance), room);
    }

    fn confirm(&mut self, confirmed: Confirmed) -> Result<(), ProducerError> {
        let Confirmed::Piece(place, advance) = confirmed else {
            self.is_reporting = false;
            return Ok(());
        };
        crash::point("producer.after_confirm");
        let gained = self.standing.advance(place, advance);
        let metrics = &self.wiring.metrics;
        metrics.items_accepted.inc_by(gained.accepted);
        metrics.rows_rejected.inc_by(gained.rejected);
        metrics.chunks_confirmed.inc_by(gained.chunks);
        let now = std::time::Instant::now();
        if self.standing.is_due(now) {
            self.note_standing()?;
            self.show_progress();
        }
        Ok(())
    }

    /// Tells the journal what is confirmed. A full disk does not stop the run: what it does not know costs copies.
    fn note_standing(&mut self) -> Result<(), ProducerError> {
        let written = self.standing.write(&self.journal, std::time::Instant::now());
        self.trouble.sift(written).unwrap_or(Ok(()))
    }

    /// Tells the collector and the progress bar how far the run has come.
    fn report(&mut self, gate: Gate) {
        self.show_progress();
        if !self.is_reporting {
            self.is_reporting = true;
            let progress = self.messages.progress(self.standing.progress());
            self.in_flight.push(Some(progress), Confirmed::Progress, ());
        }
        if gate == Gate::Outstanding && !self.has_warned && self.heard_at.elapsed() >= QUIET {
            self.has_warned = true;
            tracing::warn!(
                run = %self.run,
                published_chunks = self.published.chunks,
                "waiting: chunk.outstanding chunks are published and no collector says that any has settled; \
                 is a collector of this group running?"
            );
        }
    }

    fn show_progress(&self) {
        let settled_chunks = self.wiring.news.borrow().as_ref().map_or(0, |news| news.settled_chunks);
        let outstanding = self.published.chunks.saturating_sub(settled_chunks);
        self.wiring.metrics.chunks_outstanding.set(i64::try_from(outstanding).unwrap_or(i64::MAX));
        self.wiring.progress.send_replace(ProducerProgress {
            sources: self.standing.progress(),
            read_bytes: self.bytes_read.load(Ordering::Relaxed),
            total_bytes: self.total_bytes,
            is_read: self.has_read_all(),
        });
    }

    /// Waits for what is under way, brings the journal up to date, and seals the run unless it is to be
    /// resumed.
    async fn finish(mut self, end: Result<End, ProducerError>) -> Result<Produced, ProducerError> {
        let mut end = match end {
            Ok(end) => end,
            Err(error) => {
                // What is confirmed need not be sent again; the error at hand matters more than another.
                let _ = self.note_standing();
                return Err(error);
            }
        };
        let shutdown = self.wiring.shutdown.clone();
        if end != End::Interrupted {
            tokio::select! {
                drained = self.drain() => drained?,
                () = shutdown.cancelled() => end = End::Interrupted,
            }
        }
        if end == End::Interrupted
            && let Ok(drained) = tokio::time::timeout(CONFIRM_GRACE, self.drain()).await
        {
            drained?;
        }
        self.note_standing()?;
        if end != End::Interrupted {
            end = self.seal(end).await?;
        }
        Ok(self.produced(end))
    }

    async fn drain(&mut self) -> Result<(), ProducerError> {
        while let Some(confirmed) = self.in_flight.next().await {
            self.confirm(confirmed?)?;
        }
        Ok(())
    }

    async fn seal(&mut self, end: End) -> Result<End, ProducerError> {
        let error = if let End::Failed(reason) = &end { Some(reason.clone()) } else { None };
        let seal = Seal { sources: self.standing.progress(), error };
        crash::point("producer.before_sealed");
        if !self.publish_seal(&seal).await? {
            return Ok(End::Interrupted);
        }
        crash::point("producer.after_sealed");
        while self.trouble.sift(self.journal.seal(&seal)).transpose()?.is_none() {
            tokio::select! {
                () = tokio::time::sleep(PAUSE) => {}
                // The sealing is published again then, which changes nothing.
                () = self.wiring.shutdown.cancelled() => return Ok(End::Interrupted),
            }
        }
        self.wiring.metrics.spool_bytes.set(0);
        tracing::info!(run = %self.run, ?end, "run sealed");
        Ok(end)
    }

    /// False when shutdown came first. A run that has ended is sealed already.
    async fn publish_seal(&mut self, seal: &Seal) -> Result<bool, ProducerError> {
        if self.wiring.news.borrow().as_ref().is_some_and(|news| news.state.is_ended()) {
            return Ok(true);
        }
        tokio::select! {
            biased;
            published = self.wiring.broker.publish(self.messages.sealed(seal)) => published?,
            () = self.wiring.shutdown.cancelled() => return Ok(false),
        }
        Ok(true)
    }

    /// There is nothing left to publish but the sealing, which changes nothing if it was seen before.
    async fn seal_again(&mut self, seal: Seal) -> Result<Produced, ProducerError> {
        let end = match (self.publish_seal(&seal).await?, seal.error) {
            (false, _) => End::Interrupted,
            (true, Some(reason)) => End::Failed(reason),
            (true, None) => End::Sealed,
        };
        Ok(Produced { run: self.run.clone(), end, sources: seal.sources })
    }

    fn produced(&self, end: End) -> Produced {
        self.show_progress();
        Produced { run: self.run.clone(), end, sources: self.standing.progress() }
    }
}
