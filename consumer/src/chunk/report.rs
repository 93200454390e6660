//! From what became of a chunk's items to the messages that say so.

use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use windrow_common::broker::delay::{self, Step};
use windrow_common::broker::{Outgoing, Queue, Target};
use windrow_common::clock;
use windrow_common::envelope::chunk::{ChunkHeader, id_of};
use windrow_common::envelope::completion::{Completion, Latencies, MAX_COMPLETION_BYTES, Outcomes};
use windrow_common::ids::{Claimant, StageKey};
use windrow_common::ranges::{Ranges, Runs};

use crate::verdict::{Counts, End};

/// Items in one message, at most: their ranges and counters travel in headers, which RabbitMQ takes only up to a
/// frame of 128 KiB, and each scattered item may need 40 bytes of them.
pub(crate) const MAX_ITEMS_PER_MESSAGE: usize = 2_500;

/// An item that ended, to be reported.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    /// Its index.
    pub(crate) index: u64,
    /// The item itself, for its id.
    pub(crate) raw: Bytes,
    /// How often it was tried.
    pub(crate) counts: Counts,
    /// How it ended.
    pub(crate) end: End,
}

/// An item to be sent on.
#[derive(Debug, Clone)]
pub(crate) struct SentOn {
    /// Its index.
    pub(crate) index: u64,
    /// The item itself.
    pub(crate) raw: Bytes,
    /// How often it was tried so far.
    pub(crate) counts: Counts,
    /// When to try again; None for at once.
    pub(crate) due: Option<Instant>,
}

/// What a delivery says beside how its items ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Besides {
    /// Items that remainders carry on.
    pub(crate) handed_over: Ranges,
    /// Who claimed the items, where the effect must not repeat.
    pub(crate) claimant: Option<Claimant>,
    /// Claimed items for which nothing was sent.
    pub(crate) released: Ranges,
    /// How long attempts took.
    pub(crate) latencies: Latencies,
    /// Whether the chunk was run without an answer to its question.
    pub(crate) unasked: bool,
}

/// The completions for these items, ascending by index; several when their bodies exceed
/// [`MAX_COMPLETION_BYTES`] together. None when there is nothing to say.
pub(crate) fn completions(header: &ChunkHeader, ended: &[Ended], besides: &Besides) -> Vec<Completion> {
    let mut messages = Vec::new();
    let body_bytes: usize = ended.iter().map(|item| item.end.line.len() + 1).sum();
    let builder = |body_bytes| Builder::new(header, besides.claimant.clone(), body_bytes);
    let mut current = builder(body_bytes.min(MAX_COMPLETION_BYTES));
    for item in ended {
        if !current.fits(item) {
            messages.push(std::mem::replace(&mut current, builder(0)).finish());
        }
        current.push(item);
    }
    for index in besides.handed_over.iter() {
        if current.count >= MAX_ITEMS_PER_MESSAGE {
            messages.push(std::mem::replace(&mut current, builder(0)).finish());
        }
        current.hand_over(index);
    }
    for index in besides.released.iter() {
        if current.count >= MAX_ITEMS_PER_MESSAGE {
            messages.push(std::mem::replace(&mut current, builder(0)).finish());
        }
        current.release(index);
    }
    if current.count > 0 || !besides.latencies.is_empty() {
        let (latencies, unasked) = (besides.latencies.clone(), besides.unasked);
        messages.push(Outcomes { latencies, unasked, ..current.finish() });
    }
    messages.into_iter().map(Completion::Outcomes).collect()
}

/// Completions that end every item of a chunk the same way, without an attempt.
pub(crate) fn all_ended(header: &ChunkHeader, lines: &[Bytes], end: &End) -> Vec<Outgoing> {
    let ended: Vec<Ended> = carried(header, lines)
        .map(|(index, raw, counts)| Ended { index, raw, counts, end: end.clone() })
        .collect();
    let completions = completions(header, &ended, &Besides::default());
    completions.iter().map(|completion| to_collector(completion, false)).collect()
}

/// A completion on its way.
pub(crate) fn to_collector(completion: &Completion, compress: bool) -> Outgoing {
    Outgoing { target: Target::Queue(Queue::Completion), message: completion.to_message(compress) }
}

/// The items a chunk carries: index, item, and counters so far.
pub(crate) fn carried<'a>(
    header: &'a ChunkHeader,
    lines: &'a [Bytes],
) -> impl Iterator<Item = (u64, Bytes, Counts)> + 'a {
    let counts = header.attempts.iter().zip(header.throttles.iter()).zip(header.holds.iter());
    header.items.iter().zip(lines).zip(counts).map(|((index, raw), ((attempts, throttles), holds))| {
        (index, raw.clone(), Counts { attempts, throttles, holds })
    })
}

/// The items as remainders that run with nothing else in their process, at most `each` in one, then the completions
/// that name them.
pub(crate) fn isolated(
    header: &ChunkHeader,
    stage: &StageKey,
    items: &[SentOn],
    each: u64,
    compress: bool,
) -> Vec<Outgoing> {
    let each = usize::try_from(each).unwrap_or(MAX_ITEMS_PER_MESSAGE).clamp(1, MAX_ITEMS_PER_MESSAGE);
    let header = ChunkHeader { alone: true, ..header.clone() };
    let mut outgoing = Vec::new();
    for part in items.chunks(each) {
        let part: Vec<&SentOn> = part.iter().collect();
        let target = Target::Queue(Queue::Alone(stage.clone()));
        outgoing.push(Outgoing { target, message: remainder_of(&header, &part, None, compress) });
    }
    let handed_over = Ranges::from_ascending(items.iter().map(|item| item.index));
    let completions = completions(&header, &[], &Besides { handed_over, ..Besides::default() });
    outgoing.extend(completions.iter().map(|completion| to_collector(completion, compress)));
    outgoing
}

/// Remainders for the items sent on: one for those due at once, straight to the due queue, and one for each
/// step into a delay level. Items of a chunk that runs alone go on doing so if they have not been tried: what waits for
/// its next attempt has shown that it ends no process.
pub(crate) fn remainders(
    header: &ChunkHeader,
    stage: &StageKey,
    sent_on: &[SentOn],
    now: Instant,
    compress: bool,
) -> Vec<Outgoing> {
    // Nothing waits beyond its time.
    let expires =
        header.expires.map(|expires| now + Duration::from_millis(expires.saturating_sub(clock::unix_ms())));
    let due = |item: &SentOn| item.due.map(|due| expires.map_or(due, |expires| due.min(expires)));
    let step = |item: &SentOn| due(item).map(|due| delay::step(due.saturating_duration_since(now)));
    let mut steps: Vec<Option<Step>> = sent_on.iter().map(step).collect();
    steps.sort_unstable();
    steps.dedup();
    let mut remainders = Vec::new();
    for wanted in steps {
        let items: Vec<&SentOn> = sent_on.iter().filter(|item| step(item) == wanted).collect();
        for items in items.chunks(MAX_ITEMS_PER_MESSAGE) {
            let last = items.iter().filter_map(|item| due(item)).max();
            let header = ChunkHeader { alone: header.alone && wanted.is_none(), ..header.clone() };
            let message = remainder_of(&header, items, not_before(last, wanted, now), compress);
            let target = match wanted {
                None if header.alone => Target::Queue(Queue::Alone(stage.clone())),
                None => Target::Queue(Queue::Due(stage.clone())),
                Some(step) => Target::Delay { delay: step.level, stage: stage.clone() },
            };
            remainders.push(Outgoing { target, message });
        }
    }
    remainders
}

/// When to run items that are not due yet after this step.
fn not_before(last: Option<Instant>, step: Option<Step>, now: Instant) -> Option<u64> {
    let last = last?;
    (!step?.is_last).then(|| unix_ms(last, now))
}

fn remainder_of(
    header: &ChunkHeader,
    items: &[&SentOn],
    not_before: Option<u64>,
    compress: bool,
) -> windrow_common::envelope::Message {
    let mut body = BytesMut::with_capacity(items.iter().map(|item| item.raw.len() + 1).sum());
    for item in items {
        body.put_slice(&item.raw);
        body.put_u8(b'\n');
    }
    let remainder = ChunkHeader {
        items: Ranges::from_ascending(items.iter().map(|item| item.index)),
        attempts: items.iter().map(|item| item.counts.attempts).collect(),
        throttles: items.iter().map(|item| item.counts.throttles).collect(),
        holds: items.iter().map(|item| item.counts.holds).collect(),
        hop: header.hop.saturating_add(1),
        held_ms: 0,
        resent: false,
        returns: 0,
        not_before,
        ..header.clone()
    };
    remainder.to_message(body.freeze(), compress)
}

fn unix_ms(due: Instant, now: Instant) -> u64 {
    let wait = u64::try_from(due.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX);
    clock::unix_ms().saturating_add(wait)
}

/// One completion in the making.
struct Builder {
    outcomes: Outcomes,
    count: usize,
    body: BytesMut,
    id_field: Option<String>,
}

impl Builder {
    fn new(header: &ChunkHeader, claimant: Option<Claimant>, body_bytes: usize) -> Self {
        let outcomes = Outcomes {
            id: header.id.clone(),
            span: header.span,
            hop: header.hop,
            items: Ranges::new(),
            outcomes: Runs::default(),
            attempts: Runs::default(),
            throttles: Runs::default(),
            holds: Runs::default(),
            handed_over: Ranges::new(),
            claimant,
            released: Ranges::new(),
            latencies: Latencies::default(),
            unasked: false,
            ids: header.id_field.is_some(),
            body: Bytes::new(),
        };
        Self {
            outcomes,
            count: 0,
            body: BytesMut::with_capacity(body_bytes),
            id_field: header.id_field.clone(),
        }
    }

    fn fits(&self, item: &Ended) -> bool {
        let fits = self.body.len() + item.end.line.len() < MAX_COMPLETION_BYTES;
        self.body.is_empty() || fits && self.count < MAX_ITEMS_PER_MESSAGE
    }

    fn push(&mut self, item: &Ended) {
        self.count += 1;
        let outcomes = &mut self.outcomes;
        outcomes.items.push(item.index);
        outcomes.outcomes.push(item.end.outcome);
        outcomes.attempts.push(item.counts.attempts);
        outcomes.throttles.push(item.counts.throttles);
        outcomes.holds.push(item.counts.holds);
        if let Some(field) = &self.id_field {
            self.body.put_slice(id_of(&item.raw, field).as_bytes());
            self.body.put_u8(b'\t');
        }
        self.body.put_slice(&item.end.line);
        self.body.put_u8(b'\n');
    }

    fn hand_over(&mut self, index: u64) {
        self.count += 1;
        self.outcomes.handed_over.push(index);
    }

    fn release(&mut self, index: u64) {
        self.count += 1;
        self.outcomes.released.push(index);
    }

    fn finish(self) -> Outcomes {
        Outcomes { body: self.body.freeze(), ..self.outcomes }
    }
}

#[cfg(test)]
mod tests {
    use windrow_common::envelope::HeaderValue;
    use windrow_common::outcome::Outcome;

    use super::super::triage::tests::header;
    use super::*;

    fn ended(index: u64, line: &str) -> Ended {
        let end = End { outcome: Outcome::Succeeded, line: Bytes::copy_from_slice(line.as_bytes()) };
        let raw = Bytes::from_static(b"{\"email\":\"a\\tb@x\",\"n\":7}");
        Ended { index, raw, counts: Counts { attempts: 1, throttles: 0, holds: 0 }, end }
    }

    /// These items, claimed and released as well.
    fn handing_over(items: Ranges) -> Besides {
        let claimant = Some(Claimant::generate());
        Besides { handed_over: items.clone(), released: items, claimant, ..Besides::default() }
    }

    #[test]
    fn outcomes_are_split_at_four_mebibytes_and_each_item_is_in_one() {
        let line = format!("\"{}\"", "x".repeat(900_000));
        let items: Vec<Ended> = (0..10).map(|index| ended(index, &line)).collect();
        let all = completions(&header(10), &items, &handing_over("9".parse().unwrap()));
        assert_eq!(all.len(), 3);
        let mut seen = Vec::new();
        for completion in &all {
            let Completion::Outcomes(outcomes) = completion else { panic!() };
            assert!(outcomes.body.len() <= MAX_COMPLETION_BYTES);
            seen.extend(outcomes.items.iter());
        }
        assert_eq!(seen, (0..10).collect::<Vec<_>>());
        let Completion::Outcomes(last) = &all[2] else { panic!() };
        assert_eq!(last.handed_over.to_string(), "9");
    }

    #[test]
    fn headers_of_however_many_scattered_items_stay_within_a_frame() {
        let scattered = |index: u64| 1_000_000_000 + index * 2;
        let counts =
            |index: u64| Counts { attempts: u32::try_from(index % 7).unwrap(), throttles: 999, holds: 75 };
        let items: Vec<Ended> = (0..50_000)
            .map(|index| Ended { counts: counts(index), ..ended(scattered(index), "1") })
            .collect();
        let sent: Vec<SentOn> = (0..50_000)
            .map(|index| SentOn {
                index: scattered(index),
                raw: Bytes::new(),
                counts: counts(index),
                due: None,
            })
            .collect();
        let header = header(100_000);
        let handed_over = Ranges::from_ascending(sent.iter().map(|item| item.index));
        let all = completions(&header, &items, &handing_over(handed_over));
        let messages = all.iter().map(|completion| completion.to_message(false));
        let remainders = remainders(&header, &header.stage_key(), &sent, Instant::now(), false);
        for message in messages.chain(remainders.into_iter().map(|outgoing| outgoing.message)) {
            let bytes =
                |value: &HeaderValue| if let HeaderValue::Text(text) = value { text.len() } else { 8 };
            let size: usize = message.headers.iter().map(|(name, value)| name.len() + bytes(value)).sum();
            assert!(size < 120 * 1024, "{size} bytes of headers");
        }
    }

    #[test]
    fn a_line_begins_with_its_items_id_where_the_source_names_one() {
        for (field, expected) in [("email", "\"a\\tb@x\"\t1\n"), ("n", "\"7\"\t1\n"), ("none", "\"\"\t1\n")] {
            let header = ChunkHeader { id_field: Some(field.into()), ..header(1) };
            let all = completions(&header, &[ended(0, "1")], &Besides::default());
            let Completion::Outcomes(outcomes) = &all[0] else { panic!() };
            assert_eq!(outcomes.body, expected);
        }
    }

    #[test]
    fn remainders_carry_just_the_items_sent_on_one_for_each_level() {
        let now = Instant::now();
        let sent = |index, wait: Option<u64>| SentOn {
            index,
            raw: Bytes::from(format!("{index}")),
            counts: Counts { attempts: 2, throttles: 1, holds: 0 },
            due: wait.map(|wait| now + Duration::from_secs(wait)),
        };
        let all =
            [sent(1, Some(30)), sent(4, None), sent(5, Some(31)), sent(6, Some(5_000)), sent(7, Some(300))];
        let stage = header(10).stage_key();
        let outgoing = remainders(&header(10), &stage, &all, now, false);
        let read: Vec<_> = outgoing
            .iter()
            .map(|outgoing| {
                let (header, lines) = ChunkHeader::from_message(&outgoing.message).unwrap();
                assert_eq!(header.hop, 1);
                assert_eq!(lines.len() as u64, header.items.len());
                assert_eq!(header.attempts.iter().next(), Some(2));
                (header.items.to_string(), outgoing.target.clone(), header.not_before.is_some())
            })
            .collect();
        let level = |secs| Target::Delay { delay: Duration::from_secs(secs), stage: stage.clone() };
        assert_eq!(
            read,
            [
                ("4".to_owned(), Target::Queue(Queue::Due(stage.clone())), false),
                ("1,5".to_owned(), level(32), false),
                ("7".to_owned(), level(256), true),
                ("6".to_owned(), level(1024), true),
            ]
        );
    }
}
