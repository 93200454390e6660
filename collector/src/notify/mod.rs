//! Telling people how a run ended, and of its dead letters: `[notify]` of its job file.
//!
//! That somebody is still to be told of an end is part of the run's record, so a collector that dies tells them after it is
//! started again: at least once, each time with the same `Idempotency-Key`. [`send`] does the telling, beside
//! everything else; this file decides when.

mod send;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;
use tokio::task::JoinSet;
use windrow_common::envelope::control::RunState;
use windrow_common::ids::RunId;
use windrow_common::job::{EnvText, Job, NotifyEvent, NotifySpec};

use crate::report::Report;

/// Pauses before each further try; after the last one it is given up, and said so.
const PAUSES: [Duration; 5] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(120),
    Duration::from_secs(600),
];

/// Of one run's dead letters people are told at most this often: what kills one chunk may kill many.
const DEATHS_APART: Duration = Duration::from_secs(600);

/// Notifications leave at least this far apart, however many runs end at once.
const SPACING: Duration = Duration::from_secs(1);

/// At a shutdown notifications under way get this long; what is not sent by then is sent at the next start.
const LAST_NOTIFICATIONS: Duration = Duration::from_secs(10);

/// What somebody is told.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Notice {
    /// What happened.
    pub(crate) event: NotifyEvent,
    /// Why, where the account does not say it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reason: Option<String>,
    /// The run's account.
    #[serde(flatten)]
    pub(crate) report: Report,
    /// Who is told, and how.
    #[serde(skip)]
    pub(crate) spec: NotifySpec,
}

impl Notice {
    /// The same for each try, and after a crash.
    fn key(&self) -> String {
        let key = format!("{}/{}", self.report.run, self.event.as_str());
        match self.event {
            // A run may have several, told apart by what had failed by then.
            NotifyEvent::DeadLetter => format!("{key}/{}", self.report.outcomes.failed),
            _ => key,
        }
    }
}

/// The event that a run's end is; None for a run that goes on, or that somebody cancelled, who knows.
pub(crate) fn event_of(state: RunState) -> Option<NotifyEvent> {
    match state {
        RunState::Completed | RunState::CompletedWithFailures => Some(NotifyEvent::RunCompleted),
        RunState::Failed => Some(NotifyEvent::RunFailed),
        _ => None,
    }
}

/// Who wants to hear of it.
pub(crate) fn wanted(
    job: Option<&Arc<Job>>,
    event: Option<NotifyEvent>,
) -> Option<(NotifyEvent, &NotifySpec)> {
    let spec = job?.notify.as_ref()?;
    event.filter(|event| spec.on.contains(event)).map(|event| (event, spec))
}

/// Whether people may be told of a run's dead letter now. Pure.
pub(crate) fn is_death_due(told_at: Option<Instant>, now: Instant) -> bool {
    told_at.is_none_or(|at| now.duration_since(at) >= DEATHS_APART)
}

/// Says at once what would keep a notification from being sent when it is due.
pub(crate) fn complain_of_missing_variables(job: &Job) {
    let texts = job.notify.iter().flat_map(|spec| spec.url.iter().chain(spec.command.iter().flatten()));
    for name in texts.flat_map(EnvText::names).filter(|name| std::env::var(name).is_err()) {
        tracing::error!(job = %job.name, "[notify] names {name}, which is not set: nobody will be told");
    }
}

/// Notifications under way.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    under_way: JoinSet<Option<RunId>>,
    next: Option<Instant>,
}

impl Notifier {
    /// Sends a notice, not before its turn.
    pub(crate) fn send(&mut self, notice: Notice, now: Instant) {
        let turn = turn(self.next, now);
        self.next = Some(turn + SPACING);
        self.under_way.spawn(async move {
            tokio::time::sleep_until(turn.into()).await;
            send::until_told(&notice, &PAUSES).await;
            (notice.event != NotifyEvent::DeadLetter).then_some(notice.report.run)
        });
    }

    /// The next run of whose end people were told, or given up. Never returns while none is under way.
    pub(crate) async fn told(&mut self) -> RunId {
        loop {
            match self.under_way.join_next().await {
                Some(Ok(Some(run))) => return run,
                Some(Ok(None)) => {}
                Some(Err(error)) => tracing::error!(%error, "a notification broke off"),
                None => std::future::pending().await,
            }
        }
    }

    /// The runs of whose end people are still told before the collector leaves.
    pub(crate) async fn finish(mut self) -> Vec<RunId> {
        let mut told = Vec::new();
        let last = async {
            while let Some(ended) = self.under_way.join_next().await {
                told.extend(ended.ok().flatten());
            }
        };
        if tokio::time::timeout(LAST_NOTIFICATIONS, last).await.is_err() {
            tracing::warn!("notifications are left to be sent at the next start");
        }
        told
    }
}

/// When a notice may leave that is ready `now`. Pure.
fn turn(next: Option<Instant>, now: Instant) -> Instant {
    next.map_or(now, |next| next.max(now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_notices_at_once_leave_one_a_second() {
        let now = Instant::now();
        let (mut next, mut turns) = (None, Vec::new());
        for ready in [now, now, now, now + Duration::from_secs(9)] {
            let turn = turn(next, ready);
            next = Some(turn + SPACING);
            turns.push((turn - now).as_secs());
        }
        assert_eq!(turns, [0, 1, 2, 9]);
    }

    #[test]
    fn of_many_dead_letters_of_a_run_one_in_ten_minutes_is_told() {
        let now = Instant::now();
        assert!(is_death_due(None, now));
        assert!(!is_death_due(Some(now), now + Duration::from_secs(599)));
        assert!(is_death_due(Some(now), now + Duration::from_secs(600)));
    }

    #[test]
    fn a_run_that_somebody_cancelled_is_no_news() {
        assert_eq!(event_of(RunState::Failed), Some(NotifyEvent::RunFailed));
        assert_eq!(event_of(RunState::CompletedWithFailures), Some(NotifyEvent::RunCompleted));
        for state in [RunState::Running, RunState::Paused, RunState::Cancelling, RunState::Cancelled] {
            assert_eq!(event_of(state), None);
        }
    }
}
