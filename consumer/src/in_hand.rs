//! What this process is working on: the collector is told of what takes long, so that a copy of it waits (law 4).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::control::WorkedOn;
use windrow_common::ranges::Ranges;

/// Chunks worked on for longer than this are named.
pub(crate) const LONG: Duration = Duration::from_secs(5);

/// At most so many chunks are named, those begun first.
const MAX_NAMED: usize = 200;

/// Items are named as at most so many ranges.
const MAX_RANGES: usize = 100;

/// The chunks this process is working on.
#[derive(Debug, Default)]
pub(crate) struct InHand(Mutex<Begun>);

#[derive(Debug, Default)]
struct Begun {
    count: u64,
    chunks: BTreeMap<u64, (Instant, WorkedOn)>,
}

/// Work on a chunk, until dropped.
#[derive(Debug)]
pub(crate) struct Work {
    in_hand: Arc<InHand>,
    number: u64,
}

impl InHand {
    /// Work on `items` of a chunk begins at `now`.
    pub(crate) fn begin(self: &Arc<Self>, header: &ChunkHeader, items: &Ranges, now: Instant) -> Work {
        let items = match (items.first(), items.last()) {
            (Some(first), Some(last)) if items.as_ranges().count() > MAX_RANGES => {
                Ranges::span(first, last - first + 1)
            }
            _ => items.clone(),
        };
        let worked_on = WorkedOn { id: header.id.clone(), hop: header.hop, items };
        let mut begun = self.lock();
        begun.count += 1;
        let number = begun.count;
        begun.chunks.insert(number, (now, worked_on));
        Work { in_hand: Arc::clone(self), number }
    }

    /// What has been worked on for long.
    pub(crate) fn long(&self, now: Instant) -> Vec<WorkedOn> {
        let begun = self.lock();
        let long = begun.chunks.values().filter(|(since, _)| now.saturating_duration_since(*since) >= LONG);
        long.take(MAX_NAMED).map(|(_, chunk)| chunk.clone()).collect()
    }

    /// The table behind this lock is whole after every statement, so a panic elsewhere spoils nothing.
    fn lock(&self) -> MutexGuard<'_, Begun> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.in_hand.lock().chunks.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chunk::triage::tests::header;

    #[test]
    fn what_takes_long_is_named_until_it_has_ended_the_oldest_first_and_not_too_much_of_it() {
        let (in_hand, start) = (Arc::new(InHand::default()), Instant::now());
        let scattered = Ranges::from_ascending((0..500).map(|index| index * 2));
        let first = in_hand.begin(&ChunkHeader { hop: 3, ..header(1_000) }, &scattered, start);
        let others: Vec<Work> = (0..300)
            .map(|ordinal| {
                let mut header = header(4);
                header.id.ordinal = ordinal;
                in_hand.begin(&header, &"1,3".parse().unwrap(), start + Duration::from_secs(1))
            })
            .collect();
        assert_eq!(in_hand.long(start + Duration::from_secs(4)), []);
        let named = in_hand.long(start + LONG);
        assert_eq!((named.len(), named[0].hop, named[0].items.to_string().as_str()), (1, 3, "0-998"));
        let named = in_hand.long(start + Duration::from_secs(60));
        assert_eq!((named.len(), named[1].items.to_string().as_str()), (MAX_NAMED, "1,3"));
        drop(first);
        assert_eq!(in_hand.long(start + Duration::from_secs(60))[0].id.ordinal, 0);
        drop(others);
        assert_eq!(in_hand.long(start + Duration::from_secs(60)), []);
    }
}
