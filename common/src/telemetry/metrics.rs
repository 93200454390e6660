//! Every metric Windrow has, by name. `docs/metrics.md` lists them for people; a test holds the two together.
//!
//! A room asks [`Metrics`] once for the handles of a job, stage or destination and keeps them: counting is
//! then one atomic addition. Labels are names out of job files and a few fixed words, never run ids, URLs
//! or anything an item holds, and past [`MAX_LABELED`] names the rest share [`OTHER`] (law 10).

use std::sync::Arc;
use std::time::SystemTime;

pub use prometheus::{Histogram, IntCounter, IntGauge};

pub use super::families::OutcomeCounters;
use super::families::{Families, Names};
use super::process;
use crate::broker::Health;
use crate::ids::{JobName, StageKey};

/// At most this many stages, jobs and destinations (each) are told apart.
pub const MAX_LABELED: usize = 500;

/// The label of those beyond [`MAX_LABELED`].
pub const OTHER: &str = "other";

const ATTEMPT_SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];
const CHUNK_SECONDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0];
const COMMIT_SECONDS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// The metrics of one process.
#[derive(Debug)]
pub struct Metrics {
    families: Families,
    stages: Names,
    jobs: Names,
    destinations: Names,
}

impl Metrics {
    /// The metrics of a process whose part is `role`: `producer`, `consumer`, `collector` or, with all of
    /// them in one, `run`. Made once a process and shared.
    pub fn new(role: &str) -> Arc<Self> {
        let families = Families::default();
        families
            .with([("version", env!("CARGO_PKG_VERSION")), ("role", role)])
            .gauge("windrow_build_info", "The build, and the part this process plays.")
            .set(1);
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        families
            .with([])
            .gauge("process_start_time_seconds", "When the process began, in Unix seconds.")
            .set(since_epoch.as_secs().cast_signed());
        Arc::new(Self {
            families,
            stages: Names::default(),
            jobs: Names::default(),
            destinations: Names::default(),
        })
    }

    /// A consumer's handles for a stage.
    pub fn stage(&self, key: &StageKey) -> StageMetrics {
        let (job, stage) = self.stage_labels(key);
        StageMetrics::new(&self.families, job, stage)
    }

    /// A collector's handles for a stage.
    pub fn settlements(&self, key: &StageKey) -> SettlementMetrics {
        let (job, stage) = self.stage_labels(key);
        SettlementMetrics::new(&self.families, job, stage)
    }

    /// A producer's handles for a job.
    pub fn producer(&self, job: &JobName) -> ProducerMetrics {
        ProducerMetrics::new(&self.families, self.jobs.bounded(job.as_str()))
    }

    /// A collector's handles for the sink of a job.
    pub fn sink(&self, job: &JobName) -> SinkMetrics {
        SinkMetrics::new(&self.families, self.jobs.bounded(job.as_str()))
    }

    /// The handles of the ledger and of what feeds it.
    pub fn ledger(&self) -> LedgerMetrics {
        LedgerMetrics::new(&self.families)
    }

    /// The handles of the broker connection.
    pub fn broker(&self) -> BrokerMetrics {
        BrokerMetrics::new(&self.families)
    }

    /// Calls in flight to a destination, by its name in the job file; see [`InFlight`].
    pub fn calls_in_flight(&self, destination: &str) -> IntGauge {
        self.families
            .with([("destination", self.destinations.bounded(destination))])
            .gauge("windrow_destination_calls_in_flight", "Calls to a destination that have not returned.")
    }

    /// Where the breaker of a destination stands, by its name in the job file: 0 closed, 1 half-open, 2 open.
    pub fn breaker_state(&self, destination: &str) -> IntGauge {
        self.families
            .with([("destination", self.destinations.bounded(destination))])
            .gauge("windrow_breaker_state", "A destination's breaker: 0 closed, 1 half-open, 2 open.")
    }

    /// Chunks a consumer has been working on for long, and names to the collector.
    pub fn long_chunks(&self) -> IntGauge {
        self.families.with([]).gauge(
            "windrow_long_chunks",
            "Chunks worked on for more than five seconds, as the collector is told.",
        )
    }

    /// How often a destination has asked to be left alone, by its name in the job file.
    pub fn destination_pauses(&self, destination: &str) -> IntCounter {
        self.families
            .with([("destination", self.destinations.bounded(destination))])
            .counter("windrow_destination_pauses_total", "Pauses a destination has asked for.")
    }

    /// Everything in the Prometheus text format.
    pub fn text(&self) -> String {
        self.families.text() + &process::text()
    }

    fn stage_labels<'a>(&self, key: &'a StageKey) -> (&'a str, &'a str) {
        if self.stages.bounded(&key.to_string()) == OTHER {
            (OTHER, OTHER)
        } else {
            (key.job.as_str(), key.stage.as_str())
        }
    }
}

/// A consumer's handles for one stage.
#[derive(Debug, Clone)]
pub struct StageMetrics {
    /// Items whose outcome was sent to the collector.
    pub outcomes_sent: OutcomeCounters,
    /// Calls that counted, also failed ones.
    pub attempts: IntCounter,
    /// Attempts after an item's first.
    pub retries: IntCounter,
    /// Calls refused by a limit of the destination.
    pub throttles: IntCounter,
    /// Waits without a call.
    pub holds: IntCounter,
    /// Seconds an attempt took.
    pub attempt_seconds: Histogram,
    /// Items whose attempt is under way; see [`InFlight`].
    pub items_in_flight: IntGauge,
    /// Items that may be worked on at once.
    pub concurrency: IntGauge,
    /// Chunks, remainders and copies delivered.
    pub chunks_received: IntCounter,
    /// Deliveries settled, also those with a remainder.
    pub chunks_settled: IntCounter,
    /// Deliveries settled with a remainder.
    pub chunks_handed_over: IntCounter,
    /// Deliveries that were no longer ours before we could settle them.
    pub chunks_lost: IntCounter,
    /// Deliveries the broker marked as delivered before.
    pub deliveries_redelivered: IntCounter,
    /// Seconds from a delivery to its settlement.
    pub chunk_seconds: Histogram,
    /// Questions sent about copies (law 4).
    pub questions_asked: IntCounter,
    /// Answers that came in time.
    pub questions_answered: IntCounter,
    /// Copies put aside since a live consumer was still working on their items.
    pub copies_held: IntCounter,
    /// Copies run without an answer, after the longest wait.
    pub chunks_unasked: IntCounter,
    /// Chunks that came back without an answer too often: their items run alone.
    pub chunks_isolated: IntCounter,
    /// Items that ended as failed since their process died each time they ran alone.
    pub items_poisonous: IntCounter,
}

impl StageMetrics {
    fn new(families: &Families, job: &str, stage: &str) -> Self {
        let of = families.with([("job", job), ("stage", stage)]);
        Self {
            outcomes_sent: of
                .by_outcome("windrow_outcomes_sent_total", "Items whose outcome was sent to the collector."),
            attempts: of.counter("windrow_attempts_total", "Calls that counted, also failed ones."),
            retries: of.counter("windrow_retries_total", "Attempts after an item's first."),
            throttles: of.counter("windrow_throttles_total", "Calls refused by a limit of the destination."),
            holds: of.counter("windrow_holds_total", "Waits of an item without a call."),
            attempt_seconds: of.histogram(
                "windrow_attempt_seconds",
                "Seconds an attempt took.",
                ATTEMPT_SECONDS,
            ),
            items_in_flight: of.gauge("windrow_items_in_flight", "Items whose attempt is under way."),
            concurrency: of.gauge("windrow_concurrency", "Items that may be worked on at once."),
            chunks_received: of.counter("windrow_chunks_received_total", "Chunks delivered."),
            chunks_settled: of.counter("windrow_chunks_settled_total", "Chunk deliveries settled."),
            chunks_handed_over: of
                .counter("windrow_chunks_handed_over_total", "Chunk deliveries settled with a remainder."),
            chunks_lost: of
                .counter("windrow_chunks_lost_total", "Chunk deliveries lost before they were settled."),
            deliveries_redelivered: of.counter(
                "windrow_deliveries_redelivered_total",
                "Chunk deliveries the broker marked as delivered before.",
            ),
            chunk_seconds: of.histogram(
                "windrow_chunk_seconds",
                "Seconds from a chunk's delivery to its settlement.",
                CHUNK_SECONDS,
            ),
            questions_asked: of.counter("windrow_questions_asked_total", "Questions sent about copies."),
            questions_answered: of
                .counter("windrow_questions_answered_total", "Answers about copies that came in time."),
            copies_held: of.counter(
                "windrow_copies_held_total",
                "Copies put aside since a live consumer was still working on their items.",
            ),
            chunks_unasked: of.counter("windrow_chunks_unasked_total", "Copies run without an answer."),
            chunks_isolated: of.counter(
                "windrow_chunks_isolated_total",
                "Chunks that came back without an answer too often: their items run alone.",
            ),
            items_poisonous: of.counter(
                "windrow_items_poisonous_total",
                "Items that ended as failed since their process died each time they ran alone.",
            ),
        }
    }
}

/// Counts something as in flight while it lives, so also an attempt that is cancelled is counted out.
#[derive(Debug)]
pub struct InFlight(IntGauge);

impl InFlight {
    /// Adds one to `gauge` until the guard is dropped.
    pub fn enter(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A producer's handles for one job.
#[derive(Debug, Clone)]
pub struct ProducerMetrics {
    /// Records that became items.
    pub items_accepted: IntCounter,
    /// Rows that became none.
    pub rows_rejected: IntCounter,
    /// Chunks given to the broker.
    pub chunks_published: IntCounter,
    /// Chunks the broker has safe.
    pub chunks_confirmed: IntCounter,
    /// Chunks published and not settled, as the collector reports.
    pub chunks_outstanding: IntGauge,
    /// Bytes of the spool for sources that cannot be read twice.
    pub spool_bytes: IntGauge,
}

impl ProducerMetrics {
    fn new(families: &Families, job: &str) -> Self {
        let of = families.with([("job", job)]);
        Self {
            items_accepted: of.counter("windrow_items_accepted_total", "Records that became items."),
            rows_rejected: of.counter("windrow_rows_rejected_total", "Rows that became no items."),
            chunks_published: of.counter("windrow_chunks_published_total", "Chunks given to the broker."),
            chunks_confirmed: of.counter("windrow_chunks_confirmed_total", "Chunks the broker has safe."),
            chunks_outstanding: of.gauge("windrow_chunks_outstanding", "Chunks published and not settled."),
            spool_bytes: spool_bytes(families, job, "producer"),
        }
    }
}

/// A collector's handles for one stage.
#[derive(Debug, Clone)]
pub struct SettlementMetrics {
    /// Items whose outcome is durable in the ledger.
    pub items_settled: OutcomeCounters,
    /// Outcomes of items settled before, which were dropped.
    pub duplicates: IntCounter,
    /// Duplicates that said something else than the first.
    pub conflicts: IntCounter,
    /// Outcomes that came after their run had ended.
    pub late: IntCounter,
}

impl SettlementMetrics {
    fn new(families: &Families, job: &str, stage: &str) -> Self {
        let of = families.with([("job", job), ("stage", stage)]);
        Self {
            items_settled: of
                .by_outcome("windrow_items_settled_total", "Items whose outcome is durable in the ledger."),
            duplicates: of.counter("windrow_outcomes_duplicate_total", "Outcomes of items settled before."),
            conflicts: of
                .counter("windrow_outcomes_conflicting_total", "Duplicates that differ from the first."),
            late: of.counter("windrow_outcomes_late_total", "Outcomes that came after their run had ended."),
        }
    }
}

/// A collector's handles for the sink of one job.
#[derive(Debug, Clone)]
pub struct SinkMetrics {
    /// Bytes written to the sink.
    pub written_bytes: IntCounter,
    /// Bytes of the spool that puts items in the order of their sources.
    pub spool_bytes: IntGauge,
}

impl SinkMetrics {
    fn new(families: &Families, job: &str) -> Self {
        let of = families.with([("job", job)]);
        Self {
            written_bytes: of.counter("windrow_sink_written_bytes_total", "Bytes written to the sink."),
            spool_bytes: spool_bytes(families, job, "collector"),
        }
    }
}

fn spool_bytes(families: &Families, job: &str, role: &str) -> IntGauge {
    families.with([("job", job), ("role", role)]).gauge("windrow_spool_bytes", "Bytes a spool holds on disk.")
}

/// The handles of the ledger and of what feeds it.
#[derive(Debug, Clone)]
pub struct LedgerMetrics {
    /// Transactions with completions in them.
    pub batches: IntCounter,
    /// Completions in those transactions.
    pub completions: IntCounter,
    /// Seconds a transaction took, until it was on disk.
    pub commit_seconds: Histogram,
    /// Messages that were parked: completions that could not be understood, and dead chunks.
    pub completions_parked: IntCounter,
    /// Answers sent to questions about copies (law 4).
    pub answers_sent: IntCounter,
}

impl LedgerMetrics {
    fn new(families: &Families) -> Self {
        let of = families.with([]);
        Self {
            batches: of.counter("windrow_ledger_batches_total", "Ledger transactions with completions."),
            completions: of.counter("windrow_completions_total", "Completions committed to the ledger."),
            commit_seconds: of.histogram(
                "windrow_ledger_commit_seconds",
                "Seconds a ledger transaction took, until it was on disk.",
                COMMIT_SECONDS,
            ),
            completions_parked: of
                .counter("windrow_completions_parked_total", "Messages the collector parked."),
            answers_sent: of.counter("windrow_answers_sent_total", "Answers to questions about copies."),
        }
    }
}

/// The handles of the broker connection.
#[derive(Debug, Clone)]
pub struct BrokerMetrics {
    /// 1 while connected.
    pub connected: IntGauge,
    /// 1 while the broker takes no publishes.
    pub blocked: IntGauge,
    /// Messages sent again because the fate of the first copy was unknown.
    pub publishes_resent: IntCounter,
}

impl BrokerMetrics {
    fn new(families: &Families) -> Self {
        let of = families.with([]);
        Self {
            connected: of.gauge("windrow_broker_connected", "1 while the broker is connected."),
            blocked: of.gauge("windrow_broker_blocked", "1 while the broker takes no publishes."),
            publishes_resent: of.counter(
                "windrow_publishes_resent_total",
                "Messages sent again because the fate of the first copy was unknown.",
            ),
        }
    }

    /// Sets both gauges by what the broker seam says.
    pub fn set_health(&self, health: &Health) {
        let blocked = matches!(health, Health::Blocked(_));
        self.connected.set(i64::from(blocked || *health == Health::Connected));
        self.blocked.set(i64::from(blocked));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::outcome::Outcome;

    fn key(job: &str) -> StageKey {
        StageKey { job: job.parse().unwrap(), stage: "push".parse().unwrap() }
    }

    /// The metrics of a process that has counted something of everything.
    fn all() -> Arc<Metrics> {
        let metrics = Metrics::new("run");
        metrics.stage(&key("sync"));
        metrics.settlements(&key("sync"));
        metrics.producer(&key("sync").job);
        metrics.sink(&key("sync").job);
        metrics.ledger();
        metrics.broker();
        metrics.calls_in_flight("crm");
        metrics.breaker_state("crm");
        metrics.long_chunks();
        metrics.destination_pauses("crm");
        metrics
    }

    #[test]
    fn counting_through_any_handle_of_a_stage_counts_as_one() {
        let metrics = Metrics::new("consumer");
        metrics.stage(&key("sync")).outcomes_sent.of(Outcome::Failed).inc_by(2);
        metrics.stage(&key("sync")).outcomes_sent.of(Outcome::Failed).inc();
        metrics.stage(&key("other-job")).attempt_seconds.observe(0.3);
        let text = metrics.text();
        for line in [
            r#"windrow_outcomes_sent_total{job="sync",outcome="failed",stage="push"} 3"#,
            r#"windrow_outcomes_sent_total{job="sync",outcome="succeeded",stage="push"} 0"#,
            r#"windrow_attempt_seconds_bucket{job="other-job",stage="push",le="0.5"} 1"#,
            r#"windrow_attempt_seconds_bucket{job="other-job",stage="push",le="0.25"} 0"#,
        ] {
            assert!(text.lines().any(|said| said == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_outcome_has_its_own_counter() {
        let metrics = Metrics::new("collector");
        let settled = metrics.settlements(&key("sync")).items_settled;
        for (count, outcome) in (1..).zip(Outcome::ALL) {
            settled.of(outcome).inc_by(count);
        }
        let text = metrics.text();
        for (count, outcome) in (1..).zip(Outcome::ALL) {
            assert!(text.contains(&format!(r#"outcome="{outcome}",stage="push"}} {count}"#)), "{outcome}");
        }
    }

    #[test]
    fn what_is_in_flight_is_counted_out_when_it_is_dropped() {
        let stage = Metrics::new("consumer").stage(&key("sync"));
        let first = InFlight::enter(&stage.items_in_flight);
        let second = InFlight::enter(&stage.items_in_flight);
        assert_eq!(stage.items_in_flight.get(), 2);
        drop((first, second));
        assert_eq!(stage.items_in_flight.get(), 0);
    }

    #[test]
    fn too_many_jobs_share_one_label() {
        let metrics = Metrics::new("collector");
        for job in 0..MAX_LABELED + 20 {
            metrics.settlements(&key(&format!("job{job}"))).late.inc();
        }
        let text = metrics.text();
        let told_apart = text.lines().filter(|line| line.starts_with("windrow_outcomes_late_total{")).count();
        assert_eq!(told_apart, MAX_LABELED + 1);
        assert!(text.contains(r#"windrow_outcomes_late_total{job="other",stage="other"} 20"#));
    }

    #[test]
    fn a_blocked_broker_is_connected_and_blocked() {
        let broker = Metrics::new("producer").broker();
        for (health, connected, blocked) in [
            (Health::Connected, 1, 0),
            (Health::Blocked("disk".into()), 1, 1),
            (Health::Disconnected("refused".into()), 0, 0),
        ] {
            broker.set_health(&health);
            assert_eq!((broker.connected.get(), broker.blocked.get()), (connected, blocked), "{health:?}");
        }
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_manual_lists_every_metric_with_its_type_and_no_other() {
        let manual = include_str!("../../../docs/metrics.md");
        let listed: BTreeSet<String> = manual
            .lines()
            .filter_map(|line| line.strip_prefix("| `"))
            .map(|row| row.split('|').take(2).map(|cell| cell.trim().trim_matches('`')).collect::<Vec<_>>())
            .map(|cells| cells.join(" "))
            .collect();
        let text = all().text();
        let registered: BTreeSet<String> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).map(str::to_owned).collect();
        assert_eq!(listed, registered);
    }
}
