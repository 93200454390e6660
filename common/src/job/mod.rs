//! The job file: what a user asks for. `docs/job-file.md` is its reference.
//!
//! [`Job::load`] reads a file and reports every problem at once, each with its line ([`Problems`]). A
//! [`Job`] holds no secret: text with `${NAME}` stays as written until the part that needs it calls
//! [`EnvText::resolve`], so a producer needs no token of a stage, and nothing that prints a job leaks.

mod amount;
mod effect;
mod env_text;
pub mod hash;
pub mod jq;
mod notify;
mod parse;
mod problems;
mod set;
pub mod template;

pub use crate::resilience::adaptive::Bounds;
pub use crate::resilience::breaker::{BreakerSpec, FailureRate};
pub use crate::resilience::pause::ThrottleScope;
pub use crate::resilience::rate::Rate;
pub use amount::{format_bytes, format_duration, parse_bytes, parse_duration};
pub use effect::Effect;
pub use env_text::{EnvLookup, EnvText, MissingVariable, Redactor, Resolved};
pub use notify::{NotifyEvent, NotifySpec};
pub use problems::{Problem, Problems};
pub use set::{JobFolderError, JobSet};

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ids::{JobHash, JobName, SourceName, StageKey, StageName};

/// A checked job file.
#[derive(Debug, Clone, PartialEq)]
pub struct Job {
    /// `name`.
    pub name: JobName,
    /// The hash of the meaning of the stages ([`hash`]).
    pub hash: JobHash,
    /// The file, as given.
    pub path: PathBuf,
    /// `[source]`, or `[[source]]` in order.
    pub sources: Vec<SourceSpec>,
    /// `[chunk]`.
    pub chunk: ChunkSpec,
    /// `[[stage]]` in order. One, for now.
    pub stages: Vec<StageSpec>,
    /// `[destination.NAME]`.
    pub destinations: BTreeMap<String, DestinationSpec>,
    /// `[sink]`.
    pub sink: SinkSpec,
    /// `[tolerate]`.
    pub tolerate: Tolerance,
    /// `deadline`: a run that has not ended so long after its opening is stopped. Default: never.
    pub deadline: Option<Duration>,
    /// `[notify]`. Default: nobody is told of anything.
    pub notify: Option<NotifySpec>,
}

/// `[source]`.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceSpec {
    /// `name`; [`SourceName::only`] when there is one source and it has none.
    pub name: SourceName,
    /// `type` with its own keys.
    pub kind: SourceKind,
    /// `path`.
    pub path: SourcePath,
    /// `id`: the top-level field users call an item by.
    pub id: Option<String>,
    /// `on_reject`: whether a bad row stops the run. Default `continue`.
    pub on_reject: OnReject,
    /// `expires_after`: an item that has not begun so long after it was sent out, or waits for another attempt then,
    /// ends as expired. Default: never.
    pub expires_after: Option<Duration>,
}

/// `type` of a source.
#[derive(Debug, Clone, PartialEq)]
pub enum SourceKind {
    /// `csv`: a header line, then a row per item. Fields are text unless `types` says otherwise.
    Csv {
        /// `delimiter`, one byte. Default `,`.
        delimiter: u8,
        /// `types`: column to type.
        types: BTreeMap<String, FieldType>,
    },
    /// `jsonl`: a JSON value a line. Empty lines are passed over.
    Jsonl,
    /// `json`: one array, streamed element by element.
    Json,
}

/// What a CSV field is read as. A field that is not of its type makes its row a reject; an empty field of
/// a type other than text is null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldType {
    /// `string`.
    Text,
    /// `int`.
    Int,
    /// `float`.
    Float,
    /// `bool`: true/false, yes/no, 1/0 in any case.
    Bool,
    /// `json`: any JSON value.
    Json,
}

/// Where a source's bytes are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourcePath {
    /// `-`.
    StandardInput,
    /// A path or a glob, absolute or joined to the job file's folder. `.gz` and `.zst` files are
    /// decompressed. Several files are read in bytewise path order.
    Files(PathBuf),
}

/// Whether a bad row stops the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnReject {
    /// `continue`: it is recorded and the run goes on.
    Continue,
    /// `stop`: it is recorded and the run ends as failed.
    Stop,
}

/// `[chunk]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkSpec {
    /// `items`: at most this many. Default 100, at most 100,000.
    pub items: u64,
    /// `bytes`: at most this many, whichever comes first; a larger item travels alone. Default 256 KiB.
    pub bytes: u64,
    /// `budget`: after this long in a consumer no attempt starts, and what is left is handed over.
    /// Default PT5M.
    pub budget: Duration,
    /// `outstanding`: chunks published and not settled, at most. Default 2,000.
    pub outstanding: u64,
    /// `compress`: whether bodies travel zstd-compressed. Default false.
    pub compress: bool,
}

/// `[[stage]]`.
#[derive(Debug, Clone, PartialEq)]
pub struct StageSpec {
    /// `name`; the type when it has none.
    pub name: StageName,
    /// `type` with its own keys.
    pub processor: ProcessorSpec,
    /// `destination`.
    pub destination: Option<String>,
    /// `concurrency`: items at once in one consumer. Default 4.
    pub concurrency: Concurrency,
    /// `timeout`, per attempt. Default PT10M.
    pub timeout: Duration,
    /// `retry`.
    pub retry: RetrySpec,
    /// `when`: jq; an item for which it is false or null passes this stage by (succeeds with itself as output).
    pub when: Option<String>,
    /// `skip_when`: jq; an item for which it is true ends as skipped.
    pub skip_when: Option<String>,
    /// `effect`: what becomes of an item whose call may or may not have been made.
    pub effect: Effect,
}

/// `concurrency` of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concurrency {
    /// So many.
    Fixed(u32),
    /// `auto`: as many as what is called takes, within bounds.
    Auto(Bounds),
}

impl Concurrency {
    /// Never more at once.
    pub fn most(self) -> u32 {
        match self {
            Self::Fixed(number) => number,
            Self::Auto(bounds) => bounds.most,
        }
    }
}

impl fmt::Display for Concurrency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(number) => write!(f, "{number}"),
            Self::Auto(Bounds { least, most }) => write!(f, "{least} to {most}"),
        }
    }
}

/// `type` of a stage.
#[derive(Debug, Clone, PartialEq)]
pub enum ProcessorSpec {
    /// `echo`: gives the item back.
    Echo,
    /// `jq`: the filter's one output. No output or several fail the item.
    Jq {
        /// `filter`.
        filter: String,
    },
    /// `http`.
    Http(Box<HttpSpec>),
    /// `command`.
    Command(CommandSpec),
}

/// `type = "http"`.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpSpec {
    /// `method`. Default `POST` with a body, `GET` without.
    pub method: String,
    /// `url`, a template.
    pub url: EnvText,
    /// `headers`, templates.
    pub headers: BTreeMap<String, EnvText>,
    /// `body`, a template.
    pub body: Option<EnvText>,
    /// `retry_statuses`: answers that are tried again. Default 408, 425, 429, 500, 502, 503, 504.
    pub retry_statuses: Vec<u16>,
    /// `max_response_bytes`: a longer body fails the item. Default 1 MiB, at most 1 MiB.
    pub max_response_bytes: u64,
}

/// `type = "command"`.
#[derive(Debug, Clone, PartialEq)]
pub struct CommandSpec {
    /// `argv`, templates; the item comes on standard input.
    pub argv: Vec<EnvText>,
    /// `output`: how standard output becomes the item's output.
    pub output: CommandOutput,
    /// `max_output_bytes`: more fails the item. Default 1 MiB, at most 1 MiB.
    pub max_output_bytes: u64,
    /// `retry_exit_codes`: exit codes that are tried again; all others but 0 fail at once.
    /// Default none listed: every code but 0 is tried again.
    pub retry_exit_codes: Option<Vec<i32>>,
}

/// How a command's standard output becomes an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandOutput {
    /// `text` (default): a JSON string, without one line break at its end.
    Text,
    /// `json`: one JSON value; anything else fails the item. No output is null.
    Json,
}

/// `retry`.
#[derive(Debug, Clone, PartialEq)]
pub struct RetrySpec {
    /// `count`: retries after the first call. Default 3.
    pub count: u32,
    /// `interval`. Default PT30S.
    pub interval: Duration,
    /// `type`. Default `exponential`.
    pub schedule: Schedule,
    /// `max_interval`. Default PT15M, or `interval` when that is longer.
    pub max_interval: Duration,
    /// `in_place_below`: shorter pauses stay in the process. Default 2 s.
    pub in_place_below: Duration,
}

/// How the pauses between attempts grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    /// Doubled each time.
    Exponential,
    /// The interval longer each time.
    Linear,
    /// The same each time.
    Fixed,
}

/// `[destination.NAME]`.
#[derive(Debug, Clone, PartialEq)]
pub struct DestinationSpec {
    /// `max_connections`: calls in flight, of the whole fleet. Default 10.
    pub max_connections: u32,
    /// `rate`: calls of the whole fleet, one for each window, by window. Default none.
    pub rates: Vec<Rate>,
    /// `rate_floor`: what a consumer without a lease may use. Default none: without a lease it makes no call.
    pub rate_floor: Option<Rate>,
    /// `throttle`: whom a call refused by a limit concerns. Default `destination`.
    pub throttle: ThrottleScope,
    /// `breaker`; none when it is `false`.
    pub breaker: Option<BreakerSpec>,
}

/// `[sink]`.
#[derive(Debug, Clone, PartialEq)]
pub enum SinkSpec {
    /// `jsonl`.
    Jsonl(FileSink),
    /// `none`, or no `[sink]`.
    None,
}

/// A sink that is a file.
#[derive(Debug, Clone, PartialEq)]
pub struct FileSink {
    /// `path`, as written. [`Job::sink_path`] says where it is.
    pub path: PathBuf,
    /// `order`. Default `input`.
    pub order: SinkOrder,
    /// `if_exists`. Default `error`.
    pub if_exists: IfExists,
}

/// The order of lines in a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkOrder {
    /// `input`: as the source has them.
    Input,
    /// `arrival`: as they settle.
    Arrival,
}

/// What to do about a file that is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfExists {
    /// `error`: refuse to start.
    Error,
    /// `replace`: cut it to nothing at the start of the run.
    Replace,
    /// `append`: write behind what is there.
    Append,
}

/// `[tolerate]`: how many failed items a run may have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tolerance {
    /// Any number (the default).
    All,
    /// `failed = 10`: at most this many.
    Count(u64),
    /// `failed = "5%"`: at most this share (0 to 1) of those settled, judged from 1,000 on, and of the
    /// total when the run closes.
    Share(f64),
}

impl DestinationSpec {
    /// The more careful of two, for a destination that two job files describe.
    pub fn stricter(&mut self, other: &Self) {
        self.max_connections = self.max_connections.min(other.max_connections);
        self.breaker = match (self.breaker, other.breaker) {
            (Some(one), Some(other)) => Some(one.stricter(other)),
            (one, other) => one.or(other),
        };
        self.throttle = self.throttle.max(other.throttle);
        self.rate_floor = if self.rates.is_empty() { other.rate_floor } else { self.rate_floor };
        self.rates.extend(&other.rates);
        // By window, and the fewest calls first.
        self.rates.sort_unstable();
        self.rates.dedup_by_key(|rate| rate.window);
    }
}

impl Job {
    /// Reads and checks a job file. Opens no connection and no source.
    pub fn load(path: &Path) -> Result<Self, Problems> {
        parse::load(path)
    }

    /// Checks a job file's text; `path` is what relative source paths are relative to and what problems name.
    pub fn parse(path: &Path, text: &str) -> Result<Self, Problems> {
        parse::parse(path, text)
    }

    /// The stage of this name.
    pub fn stage(&self, name: &StageName) -> Option<&StageSpec> {
        self.stages.iter().find(|stage| &stage.name == name)
    }

    /// The queue family of a stage.
    pub fn stage_key(&self, stage: &StageSpec) -> StageKey {
        StageKey { job: self.name.clone(), stage: stage.name.clone() }
    }

    /// The folder of the job file.
    pub fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// Where the sink's file is: its path, or that path below `base` when it is relative (the job file's
    /// folder under `windrow run`, DATA_DIR in a fleet's collector).
    pub fn sink_path(&self, base: &Path) -> Option<PathBuf> {
        match &self.sink {
            SinkSpec::Jsonl(file) => Some(base.join(&file.path)),
            SinkSpec::None => None,
        }
    }
}
