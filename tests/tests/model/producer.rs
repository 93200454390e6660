//! A producer as the broker and the collector see it: it opens the run, publishes chunks and moves its position after
//! their confirms, marks what it may have sent before, and seals.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use windrow_common::broker::{Broker, BrokerError, Outgoing, Queue, Subscription, Target};
use windrow_common::clock;
use windrow_common::envelope::chunk::{ChunkHeader, Span};
use windrow_common::envelope::completion::{Completion, Opened, Progress, Sealed, SourceProgress};
use windrow_common::envelope::control::Control;
use windrow_common::ids::{ChunkId, ProcessId, SourceName};
use windrow_common::ranges::Runs;
use windrow_tests::model_broker::ModelClient;

use super::world::{World, run_id};

/// Chunks whose confirms are waited for at once, and the intent horizon's step.
const AT_ONCE: u64 = 3;

/// How often it says how far it has come.
const BEAT: Duration = Duration::from_secs(1);

/// What a producer has on its disk.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Journal {
    /// Chunks below may have been published.
    horizon: u64,
    /// Chunks below are confirmed.
    confirmed: u64,
    /// The sealing, with so many chunks, is begun: it says the same for ever.
    seals: Option<u64>,
    /// It is confirmed.
    is_sealed: bool,
}

/// One life of the producer.
pub(crate) struct Producer {
    pub(crate) world: Arc<World>,
    pub(crate) process: ProcessId,
    pub(crate) client: Arc<ModelClient>,
}

impl Producer {
    /// Goes on from the journal until the run is sealed.
    pub(crate) async fn produce(self) -> Result<(), BrokerError> {
        let journal = &self.world.journal;
        if journal.lock().unwrap().is_sealed {
            return Ok(());
        }
        let news = self.client.subscribe(vec![Queue::Process(self.process.clone())], 100).await?;
        self.client.ensure(&Queue::Work(self.world.stage())).await?;
        self.client.ensure(&Queue::Completion).await?;
        self.tell(&Completion::Opened(self.opened())).await?;
        if journal.lock().unwrap().seals.is_none() {
            self.publish_all(news).await?;
        }
        let chunks = journal.lock().unwrap().seals.unwrap_or(0);
        let sources = self.progress(chunks);
        self.tell(&Completion::Sealed(Sealed { run: run_id(), sources, error: None })).await?;
        journal.lock().unwrap().is_sealed = true;
        Ok(())
    }

    /// Publishes what is not confirmed, until all is or the run is stopped.
    async fn publish_all(&self, mut news: Subscription) -> Result<(), BrokerError> {
        let journal: &Mutex<Journal> = &self.world.journal;
        let Journal { confirmed, horizon: resent_below, .. } = *journal.lock().unwrap();
        let (mut next, mut is_stopped) = (confirmed, false);
        let mut beat = tokio::time::interval(BEAT);
        let mut under_way = FuturesUnordered::new();
        let mut out_of_turn = Vec::new();
        loop {
            while !is_stopped && next < self.world.plan.chunks() && under_way.len() < 3 {
                let mut journal = journal.lock().unwrap();
                journal.horizon = journal.horizon.max((next / AT_ONCE + 1) * AT_ONCE);
                let chunk = self.chunk(next, next < resent_below);
                let (client, ordinal) = (Arc::clone(&self.client), next);
                under_way.push(async move { client.publish(chunk).await.map(|()| ordinal) });
                next += 1;
            }
            if under_way.is_empty() {
                break;
            }
            tokio::select! {
                biased;
                Some(ordinal) = under_way.next() => {
                    out_of_turn.push(ordinal?);
                    let mut journal = journal.lock().unwrap();
                    while out_of_turn.contains(&journal.confirmed) {
                        journal.confirmed += 1;
                    }
                }
                Some(heard) = news.next(), if !is_stopped => {
                    if let Ok(Control::RunNews(news)) = Control::from_message(&heard.message) {
                        is_stopped = news.stopping || news.state.is_ended();
                    }
                }
                _ = beat.tick() => {
                    let sources = self.progress(journal.lock().unwrap().confirmed);
                    let progress = Progress { run: run_id(), producer: self.process.clone(), sources };
                    self.tell(&Completion::Progress(progress)).await?;
                }
            }
        }
        let mut journal = journal.lock().unwrap();
        journal.seals = Some(journal.confirmed);
        Ok(())
    }

    async fn tell(&self, completion: &Completion) -> Result<(), BrokerError> {
        let message = completion.to_message(false);
        self.client.publish(Outgoing { target: Target::Queue(Queue::Completion), message }).await
    }

    fn opened(&self) -> Opened {
        let job = &self.world.job;
        Opened {
            run: run_id(),
            root_run: run_id(),
            job: job.name.clone(),
            hash: job.hash.clone(),
            sources: vec![SourceName::only()],
            fingerprint: "f".to_owned(),
            started_at: clock::unix_ms(),
            producer: self.process.clone(),
        }
    }

    fn progress(&self, chunks: u64) -> BTreeMap<SourceName, SourceProgress> {
        let accepted = (chunks * self.world.plan.chunk_items).min(self.world.plan.scripts.len() as u64);
        BTreeMap::from([(SourceName::only(), SourceProgress { accepted, chunks, rejected: 0 })])
    }

    fn chunk(&self, ordinal: u64, resent: bool) -> Outgoing {
        let (first, count) = self.world.plan.span(ordinal);
        let (span, stage) = (Span { first, count }, self.world.stage());
        let job = &self.world.job;
        let lifetime = job.sources[0].expires_after.map(|time| u64::try_from(time.as_millis()).unwrap());
        let header = ChunkHeader {
            id: ChunkId { run: run_id(), stage: stage.stage.clone(), source: SourceName::only(), ordinal },
            root_run: run_id(),
            job: job.name.clone(),
            hash: job.hash.clone(),
            span,
            items: span.to_ranges(),
            attempts: Runs::repeat(0, count),
            throttles: Runs::repeat(0, count),
            holds: Runs::repeat(0, count),
            hop: 0,
            alone: false,
            returns: 0,
            held_ms: 0,
            not_before: None,
            expires: lifetime.map(|lifetime| clock::unix_ms() + lifetime),
            resent,
            id_field: None,
            traceparent: None,
        };
        let lines: Vec<String> = (first..first + count).map(|index| index.to_string()).collect();
        let body = lines.join("\n") + "\n";
        Outgoing {
            target: Target::Queue(Queue::Work(stage)),
            message: header.to_message(Bytes::from(body), false),
        }
    }
}
