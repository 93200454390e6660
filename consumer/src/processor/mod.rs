//! What a stage does to an item: the seam between the engine and echo, jq, http, command, and whatever
//! users write themselves.
//!
//! The engine takes a [`Stage`] and, for each attempt at an item, asks it in this order:
//!
//! 1. [`Stage::decide`]: does the item end here without a call (`when`, `skip_when`)?
//! 2. [`Stage::permit`]: wait for one of the destination's connections. This wait is no part of the attempt:
//!    it is not timed and counts nothing. While the destination's breaker is open, and as long as the destination
//!    has asked to be left alone, there is no permit.
//! 3. [`Processor::process`], under the stage's timeout, with panics caught, the permit held.

mod availability;
mod command;
mod conditions;
mod destination;
mod echo;
mod gate;
mod http;
mod jq;
mod output;
mod rendering;

pub(crate) use destination::{Destination, seen};
pub use destination::{Destinations, Outage, Permit};
pub(crate) use gate::LimitGate;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use windrow_common::envelope::completion::ItemError;
use windrow_common::ids::{JobName, RunId, SourceName, StageName, idempotency_key};
use windrow_common::job::jq::JqError;
use windrow_common::job::template::TemplateError;
use windrow_common::job::{EnvLookup, ProcessorSpec, Redactor, StageSpec};

use conditions::Conditions;

/// One attempt at one item.
///
/// A processor sees one item, its context, and its own configuration, and nothing of other items: `process`
/// is called for many items at once and must give the same answer as if each were alone.
///
/// The future may be dropped at any await (timeout, shutdown, cancelled run): whatever it began must end with it.
/// A processor that only computes should answer at its first poll, which then costs the engine no scheduling.
/// It keeps no count of attempts and does not retry by itself: it says with [`Retry`] whether that is worth trying.
///
/// ```
/// use futures::FutureExt;
/// use futures::future::BoxFuture;
/// use windrow_consumer::processor::{Attempt, Item, Processor};
///
/// /// Counts an item's bytes.
/// #[derive(Debug)]
/// struct Length;
///
/// impl Processor for Length {
///     fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt> {
///         async move { Attempt::Succeeded(item.raw.len().to_string().into()) }.boxed()
///     }
/// }
/// ```
pub trait Processor: Send + Sync + fmt::Debug {
    /// Does the work for `item` once.
    fn process<'a>(&'a self, item: &'a Item) -> BoxFuture<'a, Attempt>;

    /// What `process` would do for `item`, for a person to judge before a run: some lines of text. Does nothing
    /// outside this process. Errors with what would fail the item.
    fn describe(&self, item: &Item) -> Result<String, ItemError> {
        Ok(format!("run {self:?} on {}", String::from_utf8_lossy(&item.raw)))
    }
}

/// An item as a processor sees it.
#[derive(Debug, Clone)]
pub struct Item {
    /// The item: one JSON value in one line, without its line break.
    pub raw: Bytes,
    /// Its place in its source, counted from 0.
    pub index: u64,
    /// Which attempt this is, counted from 1.
    pub attempt: u32,
    /// Where the item is from, shared by the items of a chunk.
    pub context: Arc<StageContext>,
}

/// What the items of a chunk have in common.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StageContext {
    /// The run.
    pub run: RunId,
    /// The root of the run's chain of retries; the run itself otherwise.
    pub root_run: RunId,
    /// The job.
    pub job: JobName,
    /// The stage.
    pub stage: StageName,
    /// The source.
    pub source: SourceName,
}

impl Item {
    /// The key under which an outside system may recognise this item: the same for each attempt, copy and
    /// `windrow retry` of it.
    pub fn idempotency_key(&self) -> String {
        idempotency_key(&self.context.root_run, &self.context.stage, &self.context.source, self.index)
    }
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attempt {
    /// The work is done. The output is one JSON value in one line.
    Succeeded(Bytes),
    /// The item is not meant for this stage and ends as skipped.
    Skipped(ItemError),
    /// The work was not done, or not known to be done.
    Failed {
        /// Why.
        error: ItemError,
        /// Whether another attempt may help.
        retry: Retry,
        /// Whether the work may have been done all the same.
        done: Done,
    },
    /// The destination refused the call because of a limit of its own: the item is as good as new.
    Throttled {
        /// What it said.
        error: ItemError,
        /// How long it asked to be left alone, if it said.
        after: Option<Duration>,
    },
}

/// Whether another attempt may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// No: the same would happen again.
    Never,
    /// Yes, by the stage's schedule.
    Later,
    /// Yes, by the stage's schedule but not before this has passed.
    After(Duration),
}

/// Whether the work of an attempt that failed may have been done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Done {
    /// No: nothing was sent, or it was refused.
    Nothing,
    /// Nobody knows. Where an effect must not repeat the item then ends as unknown.
    Maybe,
}

impl Attempt {
    /// Why the item did not succeed, as far as it is known.
    fn into_error(self) -> ItemError {
        match self {
            Self::Succeeded(_) => ItemError::default(),
            Self::Skipped(error) | Self::Failed { error, .. } | Self::Throttled { error, .. } => error,
        }
    }

    /// A failure of a class (a short, bounded word to group by) with a message for a person. The work may have been done.
    pub fn failed(class: &str, message: impl Into<String>, retry: Retry) -> Self {
        let error = ItemError { class: class.to_owned(), message: message.into(), status: None };
        Self::Failed { error, retry, done: Done::Maybe }
    }

    /// The same failure, known to have done nothing.
    #[must_use]
    pub fn nothing_done(mut self) -> Self {
        if let Self::Failed { done, .. } = &mut self {
            *done = Done::Nothing;
        }
        self
    }

    /// The same, with no environment value in the message.
    fn redacted(mut self, redactor: &Redactor) -> Self {
        if let Self::Skipped(error) | Self::Failed { error, .. } | Self::Throttled { error, .. } = &mut self {
            error.message = redactor.redact(&error.message).into_owned();
        }
        self
    }
}

/// A stage, ready for items.
#[derive(Debug)]
pub struct Stage {
    processor: Arc<dyn Processor>,
    conditions: Conditions,
    destination: Option<Arc<Destination>>,
}

/// A stage that cannot be made ready for items.
#[derive(Debug, thiserror::Error)]
#[error("stage `{stage}`: {fault}")]
pub struct BuildError {
    /// The stage.
    pub stage: StageName,
    /// What is wrong and what to do.
    pub fault: BuildFault,
}

/// Why a stage cannot be made ready for items.
#[derive(Debug, thiserror::Error)]
pub enum BuildFault {
    /// The stage names a destination that no job file of this process describes.
    #[error("there is no [destination.{0}] in any job file of this process; add it")]
    Destination(String),
    /// A template does not compile, or names an environment variable that is not set.
    #[error("`{key}`: {error}")]
    Template {
        /// The key in the job file.
        key: String,
        /// What is wrong with it.
        error: TemplateError,
    },
    /// A jq filter does not compile.
    #[error("`{key}`: {error}")]
    Filter {
        /// The key in the job file.
        key: &'static str,
        /// What is wrong with it.
        error: JqError,
    },
    /// A header that is none, or that follows from the request.
    #[error("header `{0}` cannot be set; remove it from `headers`")]
    Header(String),
    /// A method that is none.
    #[error("`method`: `{0}` is no HTTP method")]
    Method(String),
    /// `argv` is empty.
    #[error("`argv` must name a program")]
    NoProgram,
    /// TLS cannot be set up.
    #[error("no HTTP client: {0}; see that the system's CA certificates are installed")]
    Client(reqwest::Error),
}

impl Stage {
    /// Makes a stage of a job file ready. `destinations` are those of all jobs of this process. `env` looks up
    /// environment variables; their values stay inside the processor and never appear in an [`ItemError`].
    pub fn build(
        spec: &StageSpec,
        destinations: &Destinations,
        env: &EnvLookup<'_>,
    ) -> Result<Self, BuildError> {
        Self::ready(spec, destinations, env).map_err(|fault| BuildError { stage: spec.name.clone(), fault })
    }

    fn ready(spec: &StageSpec, destinations: &Destinations, env: &EnvLookup<'_>) -> Result<Self, BuildFault> {
        let named =
            |name: &String| destinations.get(name).ok_or_else(|| BuildFault::Destination(name.clone()));
        let processor: Arc<dyn Processor> = match &spec.processor {
            ProcessorSpec::Echo => Arc::new(echo::Echo),
            ProcessorSpec::Jq { filter } => Arc::new(jq::Jq::new(filter, spec.timeout)?),
            ProcessorSpec::Http(http) => Arc::new(http::Http::new(http, destinations.http_client()?, env)?),
            ProcessorSpec::Command(command) => Arc::new(command::Command::new(command, env)?),
        };
        Ok(Self {
            processor,
            conditions: Conditions::new(spec)?,
            destination: spec.destination.as_ref().map(named).transpose()?,
        })
    }

    /// The same, with another processor.
    pub(crate) fn doing(self, processor: Arc<dyn Processor>) -> Self {
        Self { processor, ..self }
    }

    /// The same, calling a destination.
    #[cfg(test)]
    pub(crate) fn calling(self, destination: &str, destinations: &Destinations) -> Self {
        Self { destination: destinations.get(destination), ..self }
    }

    /// A stage of a processor written in Rust, without conditions and destination.
    pub fn of(processor: Arc<dyn Processor>) -> Self {
        Self { processor, conditions: Conditions::default(), destination: None }
    }

    /// Whether the item ends here without a call, and how: it passes the stage by (succeeded with itself as
    /// output), or is skipped, or its condition cannot be judged. Pure; at once when the stage has no conditions.
    pub fn decide(&self, item: &Item) -> Option<Attempt> {
        self.conditions.decide(item)
    }

    /// Waits for one of the destination's connections; at once when the stage has no destination. Cancel-safe.
    /// Hold the permit while the attempt runs, tell it how that ended, and drop it before any pause. An error when
    /// the destination's breaker is open: make no call.
    pub async fn permit(&self) -> Result<Option<Permit>, Outage> {
        match &self.destination {
            None => Ok(None),
            Some(destination) => destination.permit().await.map(Some),
        }
    }

    /// The destination, if the stage has one.
    pub(crate) fn destination(&self) -> Option<&Arc<Destination>> {
        self.destination.as_ref()
    }

    /// Until when no call is made, if the destination's breaker is open now, or it is left alone for a while.
    pub(crate) fn outage_now(&self) -> Option<Outage> {
        self.destination.as_ref()?.availability().outage_now()
    }

    /// Waits until that is so; for ever when the stage has no destination.
    pub(crate) async fn outage(&self) -> Outage {
        match &self.destination {
            None => std::future::pending().await,
            Some(destination) => destination.availability().outage().await,
        }
    }

    /// What the stage would do for `item`, for a person to judge before a run. Sends nothing.
    pub fn describe(&self, item: &Item) -> Result<String, ItemError> {
        match self.decide(item) {
            None => self.processor.describe(item),
            Some(Attempt::Succeeded(_)) => Ok("pass it by: `when` does not hold".to_owned()),
            Some(Attempt::Skipped(_)) => Ok("skip it: `skip_when` holds".to_owned()),
            Some(Attempt::Failed { error, .. } | Attempt::Throttled { error, .. }) => Err(error),
        }
    }

    /// The processor.
    pub fn processor(&self) -> &dyn Processor {
        &*self.processor
    }
}

#[cfg(test)]
mod tests;
