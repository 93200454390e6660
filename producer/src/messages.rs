//! What a producer says on the wire.

use std::collections::BTreeMap;
use std::time::Duration;

use windrow_common::broker::{Outgoing, Queue, Target};
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::{
    Completion, Opened, Progress, Reject, Rejects, Sealed, SourceProgress,
};
use windrow_common::ids::{ChunkId, ProcessId, SourceName, StageKey};
use windrow_common::job::Job;
use windrow_common::ranges::Runs;

use crate::chunker::Cut;
use crate::journal::Seal;
use crate::manifest::Manifest;

/// Makes a run's messages.
#[derive(Debug)]
pub(crate) struct Messages {
    manifest: Manifest,
    producer: ProcessId,
    stage: StageKey,
    /// By source, in order.
    id_fields: Vec<Option<String>>,
    /// `expires_after`, by source.
    lifetimes: Vec<Option<Duration>>,
    compress: bool,
    hop: u32,
}

impl Messages {
    /// The messages of a run of `job`, its chunks at `hop`. None when the job has no stage.
    pub(crate) fn new(manifest: Manifest, producer: ProcessId, job: &Job, hop: u32) -> Option<Self> {
        let stage = job.stage_key(job.stages.first()?);
        let specs = manifest.sources.iter();
        let specs = specs.map(|source| job.sources.iter().find(|spec| spec.name == source.name));
        let (id_fields, lifetimes) =
            specs.map(|spec| spec.map_or((None, None), |spec| (spec.id.clone(), spec.expires_after))).unzip();
        Some(Self { manifest, producer, stage, id_fields, lifetimes, compress: job.chunk.compress, hop })
    }

    /// The queue of the first stage.
    pub(crate) fn work_queue(&self) -> Queue {
        Queue::Work(self.stage.clone())
    }

    /// A chunk of the source at `place`, sent out at `now_ms` (Unix milliseconds).
    pub(crate) fn chunk(&self, place: usize, cut: Cut, resent: bool, now_ms: u64) -> Outgoing {
        let manifest = &self.manifest;
        let lifetime_ms = |lifetime: Duration| u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let header = ChunkHeader {
            id: ChunkId {
                run: manifest.run.clone(),
                stage: self.stage.stage.clone(),
                source: manifest.sources[place].name.clone(),
                ordinal: cut.ordinal,
            },
            root_run: manifest.root_run.clone(),
            job: manifest.job.clone(),
            hash: manifest.hash.clone(),
            span: cut.span,
            items: cut.span.to_ranges(),
            attempts: Runs::repeat(0, cut.span.count),
            throttles: Runs::repeat(0, cut.span.count),
            holds: Runs::repeat(0, cut.span.count),
            hop: self.hop,
            held_ms: 0,
            not_before: None,
            expires: self.lifetimes[place].map(|lifetime| now_ms.saturating_add(lifetime_ms(lifetime))),
            resent,
            alone: false,
            returns: 0,
            id_field: self.id_fields[place].clone(),
            traceparent: None,
        };
        Outgoing {
            target: Target::Queue(self.work_queue()),
            message: header.to_message(cut.body, self.compress),
        }
    }

    /// Rows that are no items.
    pub(crate) fn rejects(&self, rejects: Vec<Reject>) -> Outgoing {
        completion(&Completion::Rejects(Rejects { run: self.manifest.run.clone(), rejects }))
    }

    /// The run begins, or its producer begins again.
    pub(crate) fn opened(&self) -> Outgoing {
        let manifest = &self.manifest;
        completion(&Completion::Opened(Opened {
            run: manifest.run.clone(),
            root_run: manifest.root_run.clone(),
            job: manifest.job.clone(),
            hash: manifest.hash.clone(),
            sources: manifest.sources.iter().map(|source| source.name.clone()).collect(),
            fingerprint: manifest.fingerprint.clone(),
            started_at: manifest.started_at,
            producer: self.producer.clone(),
        }))
    }

    /// How far the producer has come.
    pub(crate) fn progress(&self, sources: BTreeMap<SourceName, SourceProgress>) -> Outgoing {
        let (run, producer) = (self.manifest.run.clone(), self.producer.clone());
        completion(&Completion::Progress(Progress { run, producer, sources }))
    }

    /// These are the totals.
    pub(crate) fn sealed(&self, seal: &Seal) -> Outgoing {
        let (sources, error) = (seal.sources.clone(), seal.error.clone());
        completion(&Completion::Sealed(Sealed { run: self.manifest.run.clone(), sources, error }))
    }
}

fn completion(completion: &Completion) -> Outgoing {
    Outgoing { target: Target::Queue(Queue::Completion), message: completion.to_message(false) }
}
