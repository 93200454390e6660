//! Watches everything that happens in a seed, keeps it as a trace, and says which law was broken.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use windrow_collector::chunk_state::ChunkState;
use windrow_collector::ledger::Changes;
use windrow_common::envelope::Message;
use windrow_common::envelope::chunk::{ChunkHeader, KIND};
use windrow_common::envelope::completion::Question;
use windrow_common::ids::ProcessId;
use windrow_common::ranges::Ranges;
use windrow_tests::model_broker::{Observer, Seen};

/// After this long in holds a copy nobody answers may run.
const HOLD_LIMIT_MS: u64 = 600_000;

/// What was seen, and what was wrong with it.
#[derive(Debug)]
pub(crate) struct Judge(Mutex<Seeing>);

#[derive(Debug)]
struct Seeing {
    began: Instant,
    trace: Vec<String>,
    wrongs: Vec<String>,
    hands: BTreeMap<u64, Hand>,
    answers: Vec<Answered>,
    settled: BTreeSet<u64>,
    has_ended: bool,
    figures: Figures,
}

/// A chunk in the hands of a consumer.
#[derive(Debug)]
struct Hand {
    process: String,
    header: ChunkHeader,
    is_copy: bool,
}

/// A copy that was told what to run.
#[derive(Debug)]
struct Answered {
    process: ProcessId,
    ordinal: u64,
    hop: u32,
    run: Ranges,
}

/// How much happened.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Figures {
    pub(crate) calls: u64,
    pub(crate) cuts: u64,
    pub(crate) copies: u64,
    pub(crate) questions: u64,
    pub(crate) items_refused: u64,
    pub(crate) deaths: u64,
}

impl Figures {
    pub(crate) fn add(&mut self, more: Self) {
        self.calls += more.calls;
        self.cuts += more.cuts;
        self.copies += more.copies;
        self.questions += more.questions;
        self.items_refused += more.items_refused;
        self.deaths += more.deaths;
    }
}

impl Judge {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Seeing {
            began: Instant::now(),
            trace: Vec::new(),
            wrongs: Vec::new(),
            hands: BTreeMap::new(),
            answers: Vec::new(),
            settled: BTreeSet::new(),
            has_ended: false,
            figures: Figures::default(),
        })))
    }

    /// For the broker.
    pub(crate) fn observer(self: &Arc<Self>) -> Observer {
        let judge = Arc::clone(self);
        Arc::new(move |seen| judge.see(seen))
    }

    /// Something for the trace.
    pub(crate) fn note(&self, what: impl Display) {
        self.lock().note(what);
    }

    /// A process has died, or has left.
    pub(crate) fn note_end(&self, who: &str, how: impl Display) {
        let mut seeing = self.lock();
        seeing.figures.deaths += 1;
        seeing.note(format_args!("{who} ends: {how}"));
    }

    /// A law was broken.
    pub(crate) fn object(&self, what: impl Display) {
        self.lock().object(what);
    }

    /// The ledger has these.
    pub(crate) fn commit(&self, changes: &Changes) {
        let mut seeing = self.lock();
        for (key, chunk) in &changes.chunks {
            let settled = settled(chunk);
            seeing.settled.extend(settled.iter());
            seeing.note(format_args!("ledger: of chunk {} settled are {settled}", key.ordinal));
        }
        for run in &changes.runs {
            seeing.note(format_args!("ledger: run {}, {} open", run.state.as_str(), run.open()));
            seeing.has_ended |= run.state.is_ended();
        }
    }

    /// The collector answers a question.
    pub(crate) fn answer(&self, question: &Question, run: &Ranges) {
        let mut seeing = self.lock();
        let (ordinal, hop) = (question.id.ordinal, question.hop);
        let asked = &question.items;
        seeing.note(format_args!(
            "answer to {}: of chunk {ordinal}/{hop} {asked} run {run}",
            question.reply_to
        ));
        let again: Vec<u64> = run.iter().filter(|index| seeing.settled.contains(index)).collect();
        if !again.is_empty() {
            seeing.object(format_args!("the answer lets settled items {again:?} run again"));
        }
        seeing.figures.questions += 1;
        seeing.figures.items_refused += question.items.len() - run.len();
        let process = question.reply_to.clone();
        seeing.answers.push(Answered { process, ordinal, hop, run: run.clone() });
    }

    /// A consumer calls for an item: it must have a chunk with it, and, if that may be a copy, an answer for it.
    pub(crate) fn call(&self, process: &str, index: u64, attempt: u32) {
        let mut seeing = self.lock();
        seeing.figures.calls += 1;
        let has_settled = seeing.settled.contains(&index);
        let again = if has_settled { ", which has settled" } else { "" };
        seeing.note(format_args!("{process} calls for item {index}{again}, attempt {attempt}"));
        let may = seeing.hands.values().any(|hand| {
            let header = &hand.header;
            let is_told = || {
                seeing.answers.iter().any(|answer| {
                    answer.process.as_str() == process
                        && (answer.ordinal, answer.hop) == (header.id.ordinal, header.hop)
                        && answer.run.contains(index)
                })
            };
            let needs_no_answer = !hand.is_copy || header.held_ms >= HOLD_LIMIT_MS;
            hand.process == process && header.items.contains(index) && (needs_no_answer || is_told())
        });
        if !may {
            seeing.object(format_args!("{process} may not call for item {index} now"));
        }
    }

    /// Whether the ledger has the end of the run.
    pub(crate) fn has_ended(&self) -> bool {
        self.lock().has_ended
    }

    pub(crate) fn figures(&self) -> Figures {
        self.lock().figures
    }

    /// All that happened.
    pub(crate) fn trace(&self) -> String {
        self.lock().trace.join("\n")
    }

    /// What was wrong, if anything, with the whole trace.
    pub(crate) fn sentence(&self) -> Option<String> {
        let seeing = self.lock();
        (!seeing.wrongs.is_empty())
            .then(|| format!("{}\n\n{}", seeing.trace.join("\n"), seeing.wrongs.join("\n")))
    }

    fn see(&self, seen: &Seen<'_>) {
        let mut seeing = self.lock();
        match seen {
            Seen::Arrived { queue, message } => {
                let resent = if message.headers.get("resent").is_some() { ", resent" } else { "" };
                let (kind, id) = (&message.kind, id_of(message));
                let outcomes = message.headers.text("outcomes").unwrap_or_default();
                let over = message.headers.text("handed_over").unwrap_or_default();
                seeing.note(format_args!("to {}: {kind} {id} {outcomes} ({over}){resent}", queue.kind()));
            }
            Seen::Delivered { to, tag, queue, message, redelivered } => {
                let again = if *redelivered { ", redelivered" } else { "" };
                seeing.note(format_args!("{to} gets #{tag} of {}: {}{again}", queue.kind(), id_of(message)));
                if message.kind == KIND
                    && let Ok(header) = ChunkHeader::read(&message.headers)
                {
                    let is_copy = *redelivered || header.may_be_copy();
                    seeing.figures.copies += u64::from(is_copy);
                    seeing.hands.insert(*tag, Hand { process: (*to).to_owned(), header, is_copy });
                }
            }
            Seen::LetGo { by, tag } => {
                seeing.note(format_args!("{by} lets go of #{tag}"));
                seeing.hands.remove(tag);
            }
            Seen::Lost { by, tag } => {
                seeing.note(format_args!("{by} loses #{tag}"));
                seeing.hands.remove(tag);
            }
            Seen::Cut { client } => {
                seeing.figures.cuts += 1;
                seeing.note(format_args!("the connection of {client} is cut"));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Seeing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seeing {
    fn note(&mut self, what: impl Display) {
        let at = self.began.elapsed().as_secs_f64();
        self.trace.push(format!("{at:9.3} {what}"));
    }

    fn object(&mut self, what: impl Display) {
        self.note(format_args!("WRONG: {what}"));
        self.wrongs.push(what.to_string());
    }
}

/// A message's id without what is drawn for it, so that a seed has the same trace each time.
fn id_of(message: &Message) -> &str {
    let id = message.message_id.as_str();
    if message.kind == "question" { id.rsplit_once('/').map_or(id, |(name, _)| name) } else { id }
}

/// The items of a chunk that have an outcome.
fn settled(chunk: &ChunkState) -> Ranges {
    chunk.span.to_ranges().filter(|index| {
        let at = usize::try_from(index - chunk.span.first).unwrap();
        chunk.settled.as_ref().is_none_or(|bits| bits[at / 8] & (1 << (at % 8)) != 0)
    })
}
