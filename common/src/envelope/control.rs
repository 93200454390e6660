//! What goes to processes: answers to their questions, and what the collector tells everybody. Both may be
//! lost; nothing is right or wrong by them alone.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::completion::{from_json, json_message};
use super::{DecodeError, Message};
use crate::ids::{ChunkId, ProcessId, RunId};
use crate::ranges::Ranges;
use crate::resilience::rate::Rate;

/// The states of a run. `windrow-collector` moves between them by one pure function.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// Items are settled as they come.
    Running,
    /// Nothing new is started until someone resumes it.
    Paused,
    /// Nothing new is started; what is open will be cancelled.
    Cancelling,
    /// Ended: every item succeeded or was skipped.
    Completed,
    /// Ended: some items did not succeed, within what the job tolerates.
    CompletedWithFailures,
    /// Ended: beyond what the job tolerates, past its deadline, or its sources could not be read.
    Failed,
    /// Ended: somebody cancelled it.
    Cancelled,
}

impl RunState {
    /// Whether the run has ended.
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::CompletedWithFailures | Self::Failed | Self::Cancelled)
    }

    /// Whether items of the run may be started.
    pub fn may_start_items(self) -> bool {
        self == Self::Running
    }

    /// The state's word, as reports write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Cancelling => "cancelling",
            Self::Completed => "completed",
            Self::CompletedWithFailures => "completed_with_failures",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What the collector broadcasts of one run: at each change (at most every 50 ms), and every 5 s.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunNews {
    /// The run.
    pub run: RunId,
    /// Its state in the ledger.
    pub state: RunState,
    /// Whether the run is being stopped: what is still open will be cancelled, whatever the state will be.
    pub stopping: bool,
    /// Chunks of the first stage with every item settled.
    pub settled_chunks: u64,
    /// Items settled.
    pub settled_items: u64,
    /// Items failed, for progress bars.
    pub failed_items: u64,
    /// Items that wait in delay levels for their next attempt.
    pub waiting_items: u64,
}

/// The collector's answer to a [`super::completion::Question`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The question's token.
    pub token: String,
    /// The items to run, as ranges: neither settled, nor handed to a higher hop, nor claimed by somebody else.
    pub run_items: String,
    /// Those of them that a live consumer is still working on, as ranges: they are to wait.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub busy_items: String,
    /// Items that are open and not to be run for now, since somebody else has claimed them. None from a collector that
    /// knows nothing of claims.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claimed: Option<Ranges>,
}

impl Answer {
    /// The items to run.
    pub fn items(&self) -> Result<Ranges, DecodeError> {
        read_ranges("run_items", &self.run_items)
    }

    /// Those of them that are to wait.
    pub fn busy(&self) -> Result<Ranges, DecodeError> {
        read_ranges("busy_items", &self.busy_items)
    }
}

fn read_ranges(field: &'static str, text: &str) -> Result<Ranges, DecodeError> {
    let read = text.parse();
    read.map_err(|error: crate::ranges::RangesError| DecodeError::Invalid(field, error.to_string()))
}

/// How long a [`Lease`] lasts: for a consumer from when it sent its demand, for the collector, later, from when it
/// received it.
pub const LEASE: Duration = Duration::from_secs(3);

/// What the active collector broadcasts every second: where it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Beat {
    /// Its process.
    pub collector: ProcessId,
    /// Whether it lends connections. Where it does not, each consumer keeps their number by itself.
    #[serde(default)]
    pub lends_connections: bool,
}

/// What permits of a destination are for.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Its rates: each permit makes one call in a window.
    #[default]
    Rates,
    /// Calls in flight, which are a window of no length.
    Connections,
}

impl Scope {
    /// Whether it is that of the rates, which messages need not name.
    fn is_rates(&self) -> bool {
        *self == Self::Rates
    }
}

/// What a consumer asks the active collector for: permits of a destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Demand {
    /// Who asks.
    pub process: ProcessId,
    /// The destination.
    pub destination: String,
    /// What for.
    #[serde(default, skip_serializing_if = "Scope::is_rates")]
    pub scope: Scope,
    /// Grows with each demand of this process for this destination and scope.
    pub sequence: u64,
    /// The rates in the consumer's job files, for a collector whose job files have none.
    pub rates: Vec<Rate>,
    /// What the consumer has now, by window.
    pub has: Vec<Has>,
    /// How many calls it could begin in the near future.
    pub need: u32,
}

/// What a consumer has of one window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Has {
    /// The window, in seconds.
    pub window: u64,
    /// All its permits.
    pub held: u32,
    /// Those of them in calls or cooling.
    pub busy: u32,
}

/// The collector's answer to a [`Demand`]. It holds only for the consumer's latest demand: an older one told of other
/// permits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The destination.
    pub destination: String,
    /// What for.
    #[serde(default, skip_serializing_if = "Scope::is_rates")]
    pub scope: Scope,
    /// The demand's.
    pub sequence: u64,
    /// For each of the destination's rates.
    pub lent: Vec<Lent>,
}

/// The permits of one rate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lent {
    /// The whole fleet's rate.
    pub rate: Rate,
    /// How many permits this consumer is to have.
    pub permits: u32,
    /// Whether it would have been lent more if there were more. Otherwise what comes free where it is used is not all
    /// there is to wait for.
    #[serde(default)]
    pub is_all: bool,
}

/// What a consumer tells the active collector every second, as long as there is some, and once when there is none any
/// more: the chunks it has been working on for long. What was told before is void.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Working {
    /// Who is working.
    pub process: ProcessId,
    /// Those it has been working on for longest, of too many.
    pub chunks: Vec<WorkedOn>,
}

/// A chunk that is being worked on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkedOn {
    /// Which.
    #[serde(flatten)]
    pub id: ChunkId,
    /// The delivery's.
    pub hop: u32,
    /// The items that had not ended when the work began; of too many scattered ones all from the first to the last.
    pub items: Ranges,
}

/// What a consumer tells the active collector of a destination: by its own calls it is down, or works again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// Who found it.
    pub process: ProcessId,
    /// The destination.
    pub destination: String,
    /// For how long no call is to be made, in milliseconds; none: it works again.
    pub down_ms: Option<u64>,
}

/// What the active collector tells everybody of a destination, at each change, and every 5 s while it is down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outage {
    /// The destination.
    pub destination: String,
    /// For how long no call is to be made, in milliseconds; none: it works again.
    pub down_ms: Option<u64>,
    /// Who probes then; none: everybody.
    pub prober: Option<ProcessId>,
}

/// That a destination refused a call because of a limit, and is to be left alone: first to the active collector, which
/// then tells everybody, again each second while it lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Throttle {
    /// The destination.
    pub destination: String,
    /// For how long no call is to be made, in milliseconds.
    pub pause_ms: u64,
}

/// A message to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Control {
    /// To everybody.
    RunNews(RunNews),
    /// To the asker.
    Answer(Answer),
    /// To everybody.
    Beat(Beat),
    /// To the active collector.
    Demand(Demand),
    /// To whoever demanded.
    Lease(Lease),
    /// To the active collector.
    Working(Working),
    /// To the active collector.
    Found(Found),
    /// To everybody.
    Outage(Outage),
    /// To the active collector.
    Throttled(Throttle),
    /// To everybody.
    Paused(Throttle),
}

impl Control {
    /// The message.
    pub fn to_message(&self) -> Message {
        match self {
            Self::RunNews(news) => json_message("run_news", format!("{}/news", news.run), news),
            Self::Answer(answer) => json_message("answer", answer.token.clone(), answer),
            Self::Beat(beat) => json_message("beat", format!("{}/beat", beat.collector), beat),
            Self::Demand(demand) => {
                let id = format!("{}/demand/{}/{}", demand.process, demand.destination, demand.sequence);
                let kind = if demand.scope.is_rates() { "demand" } else { "scoped_demand" };
                json_message(kind, id, demand)
            }
            Self::Working(working) => {
                json_message("working", format!("{}/working", working.process), working)
            }
            Self::Found(found) => {
                json_message("found", format!("{}/found/{}", found.process, found.destination), found)
            }
            Self::Outage(outage) => json_message("outage", format!("outage/{}", outage.destination), outage),
            Self::Throttled(throttle) => {
                json_message("throttled", format!("throttled/{}", throttle.destination), throttle)
            }
            Self::Paused(throttle) => {
                json_message("paused", format!("paused/{}", throttle.destination), throttle)
            }
            Self::Lease(lease) => {
                let kind = if lease.scope.is_rates() { "lease" } else { "scoped_lease" };
                json_message(kind, format!("lease/{}/{}", lease.destination, lease.sequence), lease)
            }
        }
    }

    /// Reads a message of a process's own queue.
    pub fn from_message(message: &Message) -> Result<Self, DecodeError> {
        message.headers.check_version()?;
        match message.kind.as_str() {
            "run_news" => from_json(message).map(Self::RunNews),
            "answer" => from_json(message).map(Self::Answer),
            "beat" => from_json(message).map(Self::Beat),
            // A reader that knows no scopes must not take one for a demand of rates.
            "demand" | "scoped_demand" => from_json(message).map(Self::Demand),
            "lease" | "scoped_lease" => from_json(message).map(Self::Lease),
            "working" => from_json(message).map(Self::Working),
            "found" => from_json(message).map(Self::Found),
            "outage" => from_json(message).map(Self::Outage),
            "throttled" => from_json(message).map(Self::Throttled),
            "paused" => from_json(message).map(Self::Paused),
            other => Err(DecodeError::Kind(other.to_owned())),
        }
    }
}
