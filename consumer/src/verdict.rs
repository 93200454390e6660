//! What an attempt means for its item: the one place that decides between an end and another attempt.

use std::time::Duration;

use bytes::Bytes;
use windrow_common::envelope::completion::{ItemError, MAX_OUTPUT_BYTES};
use windrow_common::job::RetrySpec;
use windrow_common::outcome::Outcome;
use windrow_common::resilience::retry::pause_before_next;

use crate::processor::{Attempt, Done, Retry};

/// Calls of one item that limits may refuse before it fails: throttles cost no attempt, but not for ever.
pub(crate) const MAX_THROTTLES: u32 = 1_000;

/// How often an item was tried, refused by a limit, and put aside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Calls that counted.
    pub(crate) attempts: u32,
    /// Calls refused by a limit.
    pub(crate) throttles: u32,
    /// Waits without a call.
    pub(crate) holds: u32,
}

impl Counts {
    /// After another wait without a call.
    pub(crate) fn held(self) -> Self {
        Self { holds: self.holds.saturating_add(1), ..self }
    }
}

/// How an item ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The outcome.
    pub(crate) outcome: Outcome,
    /// The output of a success, an [`ItemError`] otherwise; one line of JSON.
    pub(crate) line: Bytes,
}

/// What follows from an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The item has ended.
    End(End),
    /// The item is to be tried again, not before this pause.
    Again(Duration),
}

impl End {
    /// An end other than success.
    pub(crate) fn without_success(outcome: Outcome, error: &ItemError) -> Self {
        // Text and a number: writing them cannot fail.
        let line = serde_json::to_vec(error).unwrap_or_default();
        Self { outcome, line: Bytes::from(line) }
    }

    /// A failure.
    pub(crate) fn failure(class: &str, message: impl Into<String>) -> Self {
        let error = ItemError { class: class.to_owned(), message: message.into(), status: None };
        Self::without_success(Outcome::Failed, &error)
    }
}

/// How an item ends whose effect must not repeat, if `attempt` may have done its work without a success to show for it:
/// it is not tried again, and has no end that anybody knows.
pub(crate) fn in_doubt(attempt: &Attempt) -> Option<End> {
    let error = match attempt {
        Attempt::Failed { error, done: Done::Maybe, .. } => error.clone(),
        Attempt::Succeeded(output) if output.len() > MAX_OUTPUT_BYTES => ItemError {
            class: "output_too_large".to_owned(),
            message: format!("the output has {} bytes; at most {MAX_OUTPUT_BYTES} are kept", output.len()),
            status: None,
        },
        _ => return None,
    };
    Some(doubtful(error))
}

/// How an item ends whose call was dropped before it came back.
pub(crate) fn dropped_call() -> End {
    let message = "the call was ended with its consumer before it came back".to_owned();
    doubtful(ItemError { class: "aborted".to_owned(), message, status: None })
}

fn doubtful(error: ItemError) -> End {
    let message = format!("{}; it may have been done, and is not done again", error.message);
    End::without_success(Outcome::Unknown, &ItemError { message, ..error })
}

/// Decides what follows from `attempt`. `counts` already has it counted; `chance` draws evenly from 0 to 1, and is
/// asked only when there is a pause to spread.
pub(crate) fn decide(
    retry: &RetrySpec,
    attempt: Attempt,
    counts: Counts,
    chance: impl FnOnce() -> f64,
) -> Verdict {
    match attempt {
        Attempt::Succeeded(output) if output.len() > MAX_OUTPUT_BYTES => Verdict::End(End::failure(
            "output_too_large",
            format!("the output has {} bytes; at most {MAX_OUTPUT_BYTES} are kept", output.len()),
        )),
        Attempt::Succeeded(output) => Verdict::End(End { outcome: Outcome::Succeeded, line: output }),
        Attempt::Skipped(error) => Verdict::End(End::without_success(Outcome::Skipped, &error)),
        Attempt::Failed { error, retry: Retry::Never, .. } => {
            Verdict::End(End::without_success(Outcome::Failed, &error))
        }
        Attempt::Failed { error, retry: wanted, .. } => {
            match pause_before_next(retry, counts.attempts, chance()) {
                None => Verdict::End(End::without_success(Outcome::Failed, &error)),
                Some(pause) => Verdict::Again(match wanted {
                    Retry::After(asked) => pause.max(asked),
                    _ => pause,
                }),
            }
        }
        Attempt::Throttled { error, .. } if counts.throttles > MAX_THROTTLES => {
            Verdict::End(End::without_success(Outcome::Failed, &error))
        }
        Attempt::Throttled { after, .. } => Verdict::Again(after.unwrap_or_else(|| {
            // The schedule without its end: a throttle may come more often than a retry.
            let endless = RetrySpec { count: u32::MAX, ..retry.clone() };
            pause_before_next(&endless, counts.throttles.max(1), chance()).unwrap_or(retry.max_interval)
        })),
    }
}

#[cfg(test)]
mod tests {
    use windrow_common::job::Schedule;

    use super::*;

    fn retry() -> RetrySpec {
        RetrySpec {
            count: 2,
            interval: Duration::from_secs(30),
            schedule: Schedule::Exponential,
            max_interval: Duration::from_secs(900),
            in_place_below: Duration::from_secs(2),
        }
    }

    fn error() -> ItemError {
        ItemError { class: "http_status".into(), message: "503".into(), status: Some(503) }
    }

    fn after(attempts: u32, throttles: u32, attempt: Attempt) -> Verdict {
        decide(&retry(), attempt, Counts { attempts, throttles, holds: 0 }, || 0.0)
    }

    #[test]
    fn a_failure_is_tried_again_until_its_retries_are_used_up() {
        let failed = || Attempt::Failed { error: error(), retry: Retry::Later, done: Done::Maybe };
        assert_eq!(after(1, 0, failed()), Verdict::Again(Duration::from_secs(30)));
        assert_eq!(after(2, 0, failed()), Verdict::Again(Duration::from_secs(60)));
        assert!(matches!(after(3, 0, failed()), Verdict::End(End { outcome: Outcome::Failed, .. })));
    }

    #[test]
    fn a_failure_not_worth_retrying_ends_at_once() {
        let failed = Attempt::Failed { error: error(), retry: Retry::Never, done: Done::Maybe };
        assert!(matches!(after(1, 0, failed), Verdict::End(End { outcome: Outcome::Failed, .. })));
    }

    #[test]
    fn retry_after_is_a_floor_and_never_shortens_the_schedule() {
        let retry = |secs| Retry::After(Duration::from_secs(secs));
        let asked = |secs| Attempt::Failed { error: error(), retry: retry(secs), done: Done::Maybe };
        assert_eq!(after(1, 0, asked(100)), Verdict::Again(Duration::from_secs(100)));
        assert_eq!(after(1, 0, asked(1)), Verdict::Again(Duration::from_secs(30)));
    }

    #[test]
    fn throttles_use_no_attempt_and_are_bounded() {
        let throttled = |after| Attempt::Throttled { error: error(), after };
        assert_eq!(
            after(0, 900, throttled(Some(Duration::from_secs(7)))),
            Verdict::Again(Duration::from_secs(7))
        );
        assert_eq!(after(0, 1, throttled(None)), Verdict::Again(Duration::from_secs(30)));
        assert!(matches!(after(0, MAX_THROTTLES + 1, throttled(None)), Verdict::End(_)));
    }

    #[test]
    fn what_may_have_been_done_is_in_doubt_and_what_was_not_is_not() {
        let failed = |retry| Attempt::Failed { error: error(), retry, done: Done::Maybe };
        let too_large = Attempt::Succeeded(Bytes::from(vec![b' '; MAX_OUTPUT_BYTES + 1]));
        for attempt in [failed(Retry::Later), failed(Retry::Never), too_large] {
            let end = in_doubt(&attempt).unwrap();
            assert_eq!(end.outcome, Outcome::Unknown);
            assert!(String::from_utf8_lossy(&end.line).contains("it may have been done"), "{end:?}");
        }
        let throttled = Attempt::Throttled { error: error(), after: None };
        let done = Attempt::Succeeded(Bytes::from_static(b"1"));
        for attempt in [failed(Retry::Later).nothing_done(), throttled, done, Attempt::Skipped(error())] {
            assert_eq!(in_doubt(&attempt), None);
        }
    }

    #[test]
    fn an_output_over_the_limit_fails_its_item() {
        let output = Bytes::from(vec![b' '; MAX_OUTPUT_BYTES + 1]);
        let Verdict::End(end) = after(1, 0, Attempt::Succeeded(output)) else { panic!() };
        assert_eq!(end.outcome, Outcome::Failed);
    }
}
