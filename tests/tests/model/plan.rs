//! What happens in a seed: the job, the items, and who is hit by what, when.

use std::time::Duration;

use windrow_collector::RunCommand;
use windrow_tests::model_broker::{Mischief, Whims};

/// Retries after the first call.
const RETRIES: u64 = 3;

/// A seed, unfolded.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) job: String,
    pub(crate) chunk_items: u64,
    pub(crate) scripts: Vec<Script>,
    pub(crate) mischief: Mischief,
    pub(crate) producer: Vec<Life>,
    pub(crate) consumers: Vec<Vec<Life>>,
    pub(crate) collectors: Vec<Life>,
    pub(crate) commands: Vec<(Duration, RunCommand)>,
    /// When the outside system takes no connections.
    pub(crate) outage: Option<(Duration, Duration)>,
    pub(crate) may_expire: bool,
}

/// What the outside system does with an item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Script {
    /// It takes so many milliseconds.
    Succeeds(u64),
    /// It works after so many failures.
    SucceedsAfter(u64),
    /// So many calls are refused by a limit before it works.
    SucceedsUnthrottled(u64),
    /// It is wrong, and trying again does not help.
    IsWrong,
    /// It fails however often it is tried.
    Fails,
}

/// A process, from its start to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Life {
    pub(crate) end: End,
    /// Until the next one starts.
    pub(crate) away: Duration,
}

/// How a process ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    /// It is killed after this time.
    Killed(Duration),
    /// It is told to stop after this time.
    Drained(Duration),
    /// It dies before (false) or after (true) its ledger has so many transactions about chunks.
    AtCommit(u64, bool),
}

impl Plan {
    pub(crate) fn of(seed: u64) -> Self {
        let whims = Whims::new(seed);
        let items = 1 + whims.below(24, "items");
        let chunk_items = 1 + whims.below(4, "chunk");
        let may_expire = whims.one_in(8, "expires");
        let consumers = 1 + whims.below(3, "consumers");
        let lives = |who: &str, most| lives(whims, who, most);
        Self {
            job: job(whims, chunk_items, may_expire),
            chunk_items,
            scripts: (0..items).map(|index| script(whims, index)).collect(),
            mischief: Mischief {
                whims,
                latency: ms(whims.pick(&[0, 3, 20, 150], "latency")),
                cuts_one_in: whims.pick(&[0, 200, 60, 20], "cuts"),
                cuts_end_in: Duration::from_secs(15),
                doubles_one_in: whims.pick(&[0, 12], "doubles"),
            },
            producer: lives("producer", 2),
            consumers: (0..consumers).map(|number| lives(&format!("consumer {number}"), 3)).collect(),
            collectors: collectors(whims),
            commands: commands(whims),
            outage: whims.one_in(4, "outage").then(|| {
                let from = ms(whims.below(6_000, "outage from"));
                (from, from + ms(500 + whims.below(15_000, "outage for")))
            }),
            may_expire,
        }
    }

    /// The items of a chunk: its first, and how many.
    pub(crate) fn span(&self, ordinal: u64) -> (u64, u64) {
        let first = ordinal * self.chunk_items;
        (first, self.chunk_items.min(self.scripts.len() as u64 - first))
    }

    pub(crate) fn chunks(&self) -> u64 {
        (self.scripts.len() as u64).div_ceil(self.chunk_items)
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.commands.iter().any(|(_, command)| *command == RunCommand::Cancel)
    }
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn job(whims: Whims, chunk_items: u64, may_expire: bool) -> String {
    let pick = |choices: &[&'static str], question: &str| whims.pick(choices, question);
    format!(
        "name = 'model'\n\
         [source]\ntype = 'jsonl'\npath = 'items.jsonl'\n{expires}\
         [chunk]\nitems = {chunk_items}\nbudget = '{budget}'\n\
         [[stage]]\nname = 'work'\ntype = 'command'\nargv = ['true']\ndestination = 'outside'\n\
         concurrency = {concurrency}\ntimeout = '5s'\n\
         retry = {{ count = {RETRIES}, interval = '{interval}', type = '{schedule}', max_interval = '7s' }}\n\
         [destination.outside]\nmax_connections = {connections}\n\
         breaker = {{ failures = 2, open = '6s', probe_interval = '3s' }}\n\
         [sink]\ntype = 'jsonl'\npath = 'out.jsonl'\norder = '{order}'\n",
        expires = if may_expire { "expires_after = '6s'\n" } else { "" },
        budget = pick(&["1s", "60s"], "budget"),
        concurrency = 1 + whims.below(4, "concurrency"),
        interval = pick(&["300ms", "1s", "3s"], "interval"),
        schedule = pick(&["exponential", "linear", "fixed"], "schedule"),
        connections = 1 + whims.below(3, "connections"),
        order = pick(&["input", "arrival"], "order"),
    )
}

fn script(whims: Whims, index: u64) -> Script {
    let times = 1 + whims.below(RETRIES, ("times", index));
    match whims.below(10, ("script", index)) {
        0..4 => Script::Succeeds(0),
        4..6 => Script::Succeeds(whims.pick(&[5, 60, 260, 1_200, 3_000], ("takes", index))),
        6 => Script::SucceedsAfter(times),
        7 => Script::SucceedsUnthrottled(times),
        8 => Script::IsWrong,
        _ => Script::Fails,
    }
}

/// Most processes live for good; some end up to `most` times before that.
fn lives(whims: Whims, who: &str, most: u64) -> Vec<Life> {
    let deaths = whims.below(most + 1, (who, "deaths")).saturating_sub(whims.below(2, (who, "spared")));
    let life = |number| {
        let lasts = ms(whims.pick(&[200, 2_000, 8_000], (who, "long", number)));
        let lasts = lasts.mul_f64(whims.below(1_000, (who, "lasts", number)) as f64 / 1_000.0);
        let end =
            if whims.one_in(3, (who, "how", number)) { End::Drained(lasts) } else { End::Killed(lasts) };
        Life { end, away: ms(whims.below(3_000, (who, "away", number))) }
    };
    (0..deaths).map(life).collect()
}

fn collectors(whims: Whims) -> Vec<Life> {
    let at_commit = |number| {
        let commit = 1 + whims.below(6, ("commit", number));
        Life {
            end: End::AtCommit(commit, whims.one_in(2, ("after", number))),
            away: ms(whims.pick(&[0, 300, 4_000, 12_000], ("collector away", number))),
        }
    };
    let mut all = lives(whims, "collector", 2);
    all.extend((0..whims.below(3, "commits")).map(at_commit));
    all
}

fn commands(whims: Whims) -> Vec<(Duration, RunCommand)> {
    let mut commands = Vec::new();
    if whims.one_in(3, "pauses") {
        let at =
            ms(whims.pick(&[300, 3_000], "pause soon")).mul_f64(whims.below(1_000, "pause") as f64 / 1_000.0);
        commands.push((at, RunCommand::Pause));
        commands.push((at + ms(whims.below(9_000, "resume")), RunCommand::Resume));
    }
    if whims.one_in(6, "cancels") {
        commands.push((ms(whims.below(7_000, "cancel")), RunCommand::Cancel));
    }
    commands.sort_by_key(|(at, _)| *at);
    commands
}
