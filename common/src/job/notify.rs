//! `[notify]`: whom the collector tells of what.

use serde::Serialize;

use super::EnvText;

/// `[notify]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotifySpec {
    /// `on`: what is told. In order, each once.
    pub on: Vec<NotifyEvent>,
    /// `url`: the event is sent there by `POST`, as JSON.
    pub url: Option<EnvText>,
    /// `command`: a program and its arguments; it gets the event on standard input.
    pub command: Option<Vec<EnvText>>,
}

/// Something people are told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum NotifyEvent {
    /// `run_completed`: with or without failures.
    RunCompleted,
    /// `run_failed`: beyond what the job tolerates, or its source could not be read.
    RunFailed,
    /// `dead_letter`: a chunk of a run was parked, because nobody could handle it.
    DeadLetter,
}

impl NotifyEvent {
    /// The event as the job file and the notification write it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::RunCompleted => "run_completed",
            Self::RunFailed => "run_failed",
            Self::DeadLetter => "dead_letter",
        }
    }
}
