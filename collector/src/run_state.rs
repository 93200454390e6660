//! How a run moves between its states: one pure function.

use serde::{Deserialize, Serialize};
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::job::Tolerance;
use windrow_common::outcome::OutcomeCounts;

/// A share of failed items is judged from this many settled items on.
const SHARE_JUDGED_FROM: u64 = 1_000;

/// What somebody can ask of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunCommand {
    /// Start nothing new until it is resumed.
    Pause,
    /// Go on.
    Resume,
    /// Start nothing more, and end what is open as cancelled.
    Cancel,
}

/// What can move a run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Event {
    /// Somebody asks for it.
    Asked(RunCommand),
    /// Every item of a sealed run has settled, and what they left is in the sink.
    Closed(Ending),
}

/// What decides how a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// Whether it was stopped by what the job tolerates, by its deadline, by its sink, or by its sources.
    pub stopped: bool,
    /// Whether every item succeeded or was skipped, and no row was rejected.
    pub spotless: bool,
}

/// The state after `event`. An event that means nothing in a state changes nothing.
pub fn transition(state: RunState, event: Event) -> RunState {
    match (state, event) {
        (RunState::Running, Event::Asked(RunCommand::Pause)) => RunState::Paused,
        (RunState::Paused, Event::Asked(RunCommand::Resume)) => RunState::Running,
        (RunState::Running | RunState::Paused, Event::Asked(RunCommand::Cancel)) => RunState::Cancelling,
        (RunState::Cancelling, Event::Closed(_)) => RunState::Cancelled,
        (RunState::Running | RunState::Paused, Event::Closed(ending)) => match ending {
            Ending { stopped: true, .. } => RunState::Failed,
            Ending { spotless: true, .. } => RunState::Completed,
            Ending { .. } => RunState::CompletedWithFailures,
        },
        (unchanged, _) => unchanged,
    }
}

/// Why a command changes nothing. Its own word and its fields are what a control socket answers with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(tag = "error", rename_all = "snake_case")]
pub enum CommandError {
    /// The ledger has no such run.
    #[error("there is no run `{run}`; `windrow status` lists the runs there are")]
    NoSuchRun {
        /// The run asked for.
        run: RunId,
    },
    /// The run is over, and never moves again.
    #[error("run `{run}` has ended already: {}", .state.as_str())]
    Ended {
        /// The run.
        run: RunId,
        /// How it ended.
        state: RunState,
    },
    /// The run is being cancelled: it can neither be paused nor resumed.
    #[error("run `{run}` is being cancelled")]
    Cancelling {
        /// The run.
        run: RunId,
    },
    /// No job file of the collector gives the destination a rate, so consumers do not ask for one.
    #[error(
        "no job file of this collector has a `rate` in [destination.{destination}]; add one, such as \"1000/s\", and start \
         collector and consumers again: it can be changed from then on"
    )]
    NoRate {
        /// The destination.
        destination: String,
    },
    /// The collector has stopped, or was about to: whether the command was obeyed is not known.
    #[error("the collector stopped before it answered; `windrow status` says what the run's state is")]
    NoCollector,
    /// What was sent is no command.
    #[error("the request cannot be understood: {reason}")]
    Unreadable {
        /// Why.
        reason: String,
    },
}

/// The state a command leads to. One that asks for what is so already is obeyed: it may be a second try.
pub fn obey(run: &RunId, state: RunState, command: RunCommand) -> Result<RunState, CommandError> {
    if state.is_ended() {
        return Err(CommandError::Ended { run: run.clone(), state });
    }
    if state == RunState::Cancelling && command != RunCommand::Cancel {
        return Err(CommandError::Cancelling { run: run.clone() });
    }
    Ok(transition(state, Event::Asked(command)))
}

/// What the job tolerates, as the ledger keeps it from the opening of the run.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tolerated {
    /// Any number of failed items.
    #[default]
    All,
    /// At most this many.
    Count(u64),
    /// At most this share, 0 to 1.
    Share(f64),
}

impl From<Tolerance> for Tolerated {
    fn from(tolerance: Tolerance) -> Self {
        match tolerance {
            Tolerance::All => Self::All,
            Tolerance::Count(count) => Self::Count(count),
            Tolerance::Share(share) => Self::Share(share),
        }
    }
}

impl Tolerated {
    /// Why these counts are more than is tolerated, if they are. `sealed_total` once it is known and
    /// every item has settled.
    pub fn exceeded(self, counts: &OutcomeCounts, sealed_total: Option<u64>) -> Option<String> {
        let failed = counts.failed;
        match self {
            Self::All => None,
            Self::Count(most) => {
                (failed > most).then(|| format!("{failed} items failed; the job tolerates {most}"))
            }
            Self::Share(share) => {
                let judged = sealed_total.unwrap_or_else(|| counts.settled());
                let may_judge = sealed_total.is_some() || judged >= SHARE_JUDGED_FROM;
                (may_judge && failed as f64 > share * judged as f64).then(|| {
                    format!("{failed} of {judged} items failed; the job tolerates {} %", share * 100.0)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::RunCommand::{Cancel, Pause, Resume};
    use super::*;

    fn run() -> RunId {
        "r1".parse().unwrap()
    }

    fn asked(state: RunState, command: RunCommand) -> Result<RunState, CommandError> {
        obey(&run(), state, command)
    }

    const ENDING: Ending = Ending { stopped: false, spotless: true };

    #[test]
    fn a_run_ends_as_its_items_and_its_stopping_say() {
        let close = |state, stopped, spotless| transition(state, Event::Closed(Ending { stopped, spotless }));
        assert_eq!(close(RunState::Running, false, true), RunState::Completed);
        assert_eq!(close(RunState::Paused, false, true), RunState::Completed);
        assert_eq!(close(RunState::Running, false, false), RunState::CompletedWithFailures);
        assert_eq!(close(RunState::Running, true, false), RunState::Failed);
        assert_eq!(close(RunState::Running, true, true), RunState::Failed);
        assert_eq!(close(RunState::Cancelling, true, false), RunState::Cancelled);
    }

    #[test]
    fn an_ended_run_never_moves_again() {
        for ended in
            [RunState::Completed, RunState::CompletedWithFailures, RunState::Failed, RunState::Cancelled]
        {
            for command in [Pause, Resume, Cancel] {
                assert_eq!(transition(ended, Event::Asked(command)), ended);
                assert_eq!(asked(ended, command), Err(CommandError::Ended { run: run(), state: ended }));
            }
            assert_eq!(transition(ended, Event::Closed(ENDING)), ended);
        }
    }

    #[test]
    fn pausing_and_cancelling_mean_something_only_where_they_can() {
        assert_eq!(asked(RunState::Running, Pause), Ok(RunState::Paused));
        assert_eq!(asked(RunState::Paused, Pause), Ok(RunState::Paused), "a second try");
        assert_eq!(asked(RunState::Paused, Resume), Ok(RunState::Running));
        assert_eq!(asked(RunState::Running, Resume), Ok(RunState::Running));
        assert_eq!(asked(RunState::Paused, Cancel), Ok(RunState::Cancelling));
        assert_eq!(asked(RunState::Cancelling, Cancel), Ok(RunState::Cancelling));
        for command in [Pause, Resume] {
            assert_eq!(asked(RunState::Cancelling, command), Err(CommandError::Cancelling { run: run() }));
        }
    }

    #[test]
    fn a_count_is_judged_at_once_and_a_share_from_a_thousand_on() {
        let counts = |succeeded, failed| OutcomeCounts { succeeded, failed, ..OutcomeCounts::default() };
        assert!(Tolerated::Count(2).exceeded(&counts(0, 2), None).is_none());
        assert!(Tolerated::Count(2).exceeded(&counts(0, 3), None).is_some());
        assert!(Tolerated::Share(0.05).exceeded(&counts(0, 999), None).is_none());
        assert!(Tolerated::Share(0.05).exceeded(&counts(950, 50), None).is_none());
        assert!(Tolerated::Share(0.05).exceeded(&counts(949, 51), None).is_some());
        assert!(Tolerated::Share(0.05).exceeded(&counts(8, 2), Some(10)).is_some());
        assert!(Tolerated::All.exceeded(&counts(0, 5000), Some(5000)).is_none());
    }

    fn event() -> impl Strategy<Value = Event> {
        let command = prop::sample::select(vec![Pause, Resume, Cancel]).prop_map(Event::Asked);
        let ending = (any::<bool>(), any::<bool>());
        let closed = ending.prop_map(|(stopped, spotless)| Event::Closed(Ending { stopped, spotless }));
        prop_oneof![4 => command, 1 => closed]
    }

    proptest! {
        /// Whatever is asked in whatever order: the first close ends the run and nothing moves it after that, a cancelled
        /// run ends as cancelled and as nothing else, and a command that is refused would change nothing.
        #[test]
        fn no_order_of_events_leads_astray(events in prop::collection::vec(event(), 0..30)) {
            let (mut state, mut was_cancelled) = (RunState::Running, false);
            for event in events {
                let next = transition(state, event);
                if let Event::Asked(command) = event {
                    prop_assert_eq!(asked(state, command).unwrap_or(state), next);
                    was_cancelled |= command == Cancel && !state.is_ended();
                }
                prop_assert!(!state.is_ended() || next == state);
                prop_assert_eq!(next.is_ended(), state.is_ended() || matches!(event, Event::Closed(_)));
                prop_assert_eq!(was_cancelled, matches!(next, RunState::Cancelling | RunState::Cancelled));
                state = next;
            }
        }
    }
}
