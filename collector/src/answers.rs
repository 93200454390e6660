//! What copies are told to run (law 4): by all that is in the ledger when they are told.

use std::sync::PoisonError;
use std::time::Instant;

use windrow_common::envelope::completion::Question;
use windrow_common::envelope::control::Answer;
use windrow_common::ids::{ProcessId, RunId};
use windrow_common::ranges::Ranges;

use crate::chunks::Chunks;
use crate::engine::Engine;
use crate::run::Run;

/// An answer on its way: the run it is about, and who asked.
pub(crate) type Asked = (RunId, ProcessId, Answer);

impl Engine {
    /// Answers what was asked in a group. What came behind a question counts too: it will be in the ledger before the
    /// answer is heard. What a live consumer is still working on is named apart.
    pub(crate) fn answers(&mut self, questions: Vec<Question>, chunks: &Chunks, now: Instant) -> Vec<Asked> {
        let long_work = self.long_work.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = |question: Question| {
            // One that is refused only now, since its run was sealed behind it, is asked again.
            let (items, claimed) = self.runs.get_mut(&question.id.run)?.answer(&question, chunks).ok()?;
            // Who claims is at work itself.
            let is_copy = question.claim.is_none();
            let busy = is_copy.then(|| long_work.busy(&question.id, question.hop, &items, now));
            let answer = Answer {
                token: question.token,
                run_items: items.to_string(),
                busy_items: busy.unwrap_or_default().to_string(),
                claimed: Some(claimed),
            };
            Some((question.id.run, question.reply_to, answer))
        };
        questions.into_iter().filter_map(answer).collect()
    }

    /// An answer as it goes out: of a run that this very step has ended or cut, nothing is to run any more.
    pub(crate) fn last_answer(&self, (run, process, answer): Asked) -> (ProcessId, Answer) {
        let is_over = |run: &Run| run.record.cut || run.record.state.is_ended();
        if self.runs.get(&run).is_some_and(is_over) {
            let (run_items, busy_items) = (String::new(), String::new());
            return (process, Answer { run_items, busy_items, claimed: Some(Ranges::new()), ..answer });
        }
        (process, answer)
    }
}
