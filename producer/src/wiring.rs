//! What a producer is connected to.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use windrow_common::broker::Broker;
use windrow_common::envelope::completion::SourceProgress;
use windrow_common::envelope::control::RunNews;
use windrow_common::ids::SourceName;
use windrow_common::telemetry::metrics::ProducerMetrics;

/// What a producer is connected to.
#[derive(Debug)]
pub struct Wiring {
    /// Where it publishes.
    pub broker: Arc<dyn Broker>,
    /// What the collector says of the run (see [`crate::follow_news`]); without any, publishing stops at
    /// `chunk.outstanding`.
    pub news: watch::Receiver<Option<RunNews>>,
    /// Where it shows how far it has come, several times a second.
    pub progress: watch::Sender<ProducerProgress>,
    /// What it counts.
    pub metrics: ProducerMetrics,
    /// Once this is cancelled nothing more is read, and what is under way gets a few seconds to be
    /// confirmed.
    pub shutdown: CancellationToken,
}

/// How far a producer has come, for progress bars.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProducerProgress {
    /// What was published and confirmed, by source.
    pub sources: BTreeMap<SourceName, SourceProgress>,
    /// Bytes read of the source files, as they are on disk; those of a resumed run among them.
    pub read_bytes: u64,
    /// Bytes of all source files. None when standard input is among the sources.
    pub total_bytes: Option<u64>,
    /// Whether the sources were read to their end.
    pub is_read: bool,
}
