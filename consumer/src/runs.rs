//! What the collector says of runs, as far as this process has heard: which are paused, and which are over.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use windrow_common::clock;
use windrow_common::envelope::control::{RunNews, RunState};
use windrow_common::ids::RunId;

/// News of at most this many runs are kept; then all are forgotten, and told again within 5 s. Forgetting costs calls
/// of runs that are stopped, whose outcomes will be counted as late, and of runs that are paused; nothing else.
const MAX_RUNS: usize = 10_000;

/// Every run that has not ended is told of each 5 s. One that was not for this long, while others were, has ended.
const TELLING: Duration = Duration::from_secs(12);

/// What was said of a run last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// Its items may be started.
    Go,
    /// Nothing is to be started until it is resumed.
    Pause,
    /// It is being stopped or has ended: what is open is cancelled.
    Stop,
}

impl Word {
    fn of(news: &RunNews) -> Self {
        if news.stopping || news.state == RunState::Cancelling || news.state.is_ended() {
            Self::Stop
        } else if news.state == RunState::Paused {
            Self::Pause
        } else {
            Self::Go
        }
    }
}

#[derive(Debug, Default)]
struct Heard {
    words: HashMap<RunId, Word>,
    /// When the first of them came.
    since: Option<Instant>,
}

/// The runs this process has heard of.
#[derive(Debug, Default)]
pub(crate) struct RunWords {
    heard: watch::Sender<Heard>,
    released: watch::Sender<()>,
}

impl RunWords {
    /// Takes news of a run.
    pub(crate) fn hear(&self, news: &RunNews) {
        let word = Word::of(news);
        let mut releases = false;
        self.heard.send_if_modified(|heard| {
            if heard.words.len() >= MAX_RUNS && !heard.words.contains_key(&news.run) {
                *heard = Heard::default();
            }
            let since = *heard.since.get_or_insert_with(clock::now);
            let before = heard.words.insert(news.run.clone(), word);
            let was_paused = match before {
                Some(before) => before == Word::Pause,
                // It may have been, and resumed while this process was not there.
                None => clock::now().saturating_duration_since(since) < TELLING,
            };
            releases = was_paused && word != Word::Pause;
            before != Some(word)
        });
        if releases {
            self.released.send_replace(());
        }
    }

    /// What was said of the run last. None when nothing was.
    pub(crate) fn word(&self, run: &RunId) -> Option<Word> {
        self.heard.borrow().words.get(run).copied()
    }

    /// Whether no item of the run is to be started.
    pub(crate) fn is_halted(&self, run: &RunId) -> bool {
        matches!(self.word(run), Some(Word::Pause | Word::Stop))
    }

    /// Waits until items of the run are not to be started any more.
    pub(crate) async fn halted(&self, run: &RunId) {
        let halts = |heard: &Heard| matches!(heard.words.get(run), Some(Word::Pause | Word::Stop));
        // The sender lives as long as we do.
        drop(self.heard.subscribe().wait_for(halts).await);
    }

    /// Changes whenever held chunks of some run may go on.
    pub(crate) fn released(&self) -> watch::Receiver<()> {
        self.released.subscribe()
    }

    /// A chunk of the run was put into the held queue. When it was resumed meanwhile, nobody would look there again.
    pub(crate) fn was_held(&self, run: &RunId) {
        if self.word(run) != Some(Word::Pause) {
            self.released.send_replace(());
        }
    }

    /// Whether there may be held chunks that can go on: not while every run heard of is paused.
    pub(crate) fn may_release(&self) -> bool {
        self.heard.borrow().words.values().any(|word| *word != Word::Pause)
    }

    /// Whether a held chunk of this run is to stay held: it is paused, or nothing is known of it yet.
    pub(crate) fn keeps(&self, run: &RunId) -> bool {
        let heard = self.heard.borrow();
        match heard.words.get(run) {
            Some(word) => *word == Word::Pause,
            None => heard.since.is_none_or(|since| clock::now().saturating_duration_since(since) < TELLING),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// News of a run in this state.
    pub(crate) fn news(run: &str, state: RunState) -> RunNews {
        RunNews {
            run: run.parse().unwrap(),
            state,
            stopping: false,
            settled_chunks: 0,
            settled_items: 0,
            failed_items: 0,
            waiting_items: 0,
        }
    }

    #[test]
    fn news_halt_a_run_and_release_it_and_saying_them_again_changes_nothing() {
        let runs = RunWords::default();
        let (run, mut released) = ("r1".parse().unwrap(), runs.released());
        assert_eq!((runs.word(&run), runs.keeps(&run), runs.may_release()), (None, true, false));
        runs.hear(&news("r1", RunState::Paused));
        assert_eq!((runs.word(&run), runs.keeps(&run), runs.may_release()), (Some(Word::Pause), true, false));
        assert!(!released.has_changed().unwrap(), "a pause releases nothing");
        for _ in 0..2 {
            runs.hear(&news("r1", RunState::Running));
        }
        assert_eq!((runs.word(&run), runs.keeps(&run), runs.may_release()), (Some(Word::Go), false, true));
        assert!(released.has_changed().unwrap());
        released.mark_unchanged();
        runs.hear(&news("r1", RunState::Running));
        runs.hear(&RunNews { stopping: true, ..news("r1", RunState::Paused) });
        assert_eq!(runs.word(&run), Some(Word::Stop), "stopping comes first");
        assert!(!released.has_changed().unwrap(), "nothing of it was held");
    }

    #[tokio::test]
    async fn whoever_waits_for_a_halt_hears_of_it() {
        let runs = RunWords::default();
        let run = "r1".parse().unwrap();
        runs.hear(&news("r2", RunState::Paused));
        let halted = runs.halted(&run);
        tokio::pin!(halted);
        assert!(futures::poll!(halted.as_mut()).is_pending());
        runs.hear(&news("r1", RunState::Cancelling));
        halted.await;
    }
}
