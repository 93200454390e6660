//! What live consumers are working on, by what they say each second (law 4). Pure: the shell is [`crate::fleet`].

use std::collections::HashMap;
use std::time::{Duration, Instant};

use windrow_common::envelope::control::Working;
use windrow_common::ids::{ChunkId, ProcessId};
use windrow_common::ranges::Ranges;

/// For how long a consumer that has fallen silent is believed to go on: a broker needs up to two of its heartbeats, of 10 s,
/// to miss a consumer that was cut off and to deliver what it held to another.
const BELIEVED: Duration = Duration::from_secs(25);

/// The chunks that have been worked on for long, by who works on them.
#[derive(Debug, Default)]
pub(crate) struct LongWork(HashMap<ProcessId, Told>);

#[derive(Debug)]
struct Told {
    at: Instant,
    chunks: HashMap<ChunkId, Vec<(u32, Ranges)>>,
}

impl LongWork {
    /// Takes in what a consumer says at `now`, in place of what it said before.
    pub(crate) fn hear(&mut self, working: Working, now: Instant) {
        self.0.retain(|_, told| now.saturating_duration_since(told.at) < BELIEVED);
        if working.chunks.is_empty() {
            self.0.remove(&working.process);
            return;
        }
        let mut chunks: HashMap<ChunkId, Vec<(u32, Ranges)>> = HashMap::new();
        for chunk in working.chunks {
            chunks.entry(chunk.id).or_default().push((chunk.hop, chunk.items));
        }
        self.0.insert(working.process, Told { at: now, chunks });
    }

    /// Of `items`, those of a copy at `hop` that somebody is working on at `now`. Work at a lower hop is none of it: it
    /// has handed these items on.
    pub(crate) fn busy(&self, chunk: &ChunkId, hop: u32, items: &Ranges, now: Instant) -> Ranges {
        let live = self.0.values().filter(|told| now.saturating_duration_since(told.at) < BELIEVED);
        let work: Vec<&Ranges> = live
            .filter_map(|told| told.chunks.get(chunk))
            .flatten()
            .filter(|(at, _)| *at >= hop)
            .map(|(_, items)| items)
            .collect();
        items.filter(|index| work.iter().any(|items| items.contains(index)))
    }
}

#[cfg(test)]
mod tests {
    use windrow_common::envelope::control::WorkedOn;

    use super::*;

    fn chunk(ordinal: u64) -> ChunkId {
        ChunkId {
            run: "r1".parse().unwrap(),
            stage: "push".parse().unwrap(),
            source: "main".parse().unwrap(),
            ordinal,
        }
    }

    fn says(process: &str, chunks: &[(u64, u32, &str)]) -> Working {
        let worked_on = |(ordinal, hop, items): &(u64, u32, &str)| WorkedOn {
            id: chunk(*ordinal),
            hop: *hop,
            items: items.parse().unwrap(),
        };
        Working { process: process.parse().unwrap(), chunks: chunks.iter().map(worked_on).collect() }
    }

    #[test]
    fn a_copy_is_busy_as_long_as_somebody_says_so_and_is_heard() {
        let (mut work, start) = (LongWork::default(), Instant::now());
        let later = |secs| start + Duration::from_secs(secs);
        let busy = |work: &LongWork, ordinal, hop, now| {
            work.busy(&chunk(ordinal), hop, &"0-5".parse().unwrap(), now).to_string()
        };
        work.hear(says("a", &[(1, 2, "1-2"), (1, 3, "4"), (7, 0, "0-9")]), start);
        work.hear(says("b", &[(1, 2, "9")]), start);
        assert_eq!(busy(&work, 1, 2, start), "1-2,4");
        assert_eq!(busy(&work, 1, 3, start), "4", "what was handed on is another's");
        assert_eq!(busy(&work, 2, 0, start), "");
        assert_eq!(busy(&work, 7, 0, later(24)), "0-5");
        assert_eq!(busy(&work, 7, 0, later(25)), "", "it has fallen silent");
        work.hear(says("a", &[(1, 2, "2")]), later(20));
        assert_eq!((busy(&work, 1, 2, later(40)), busy(&work, 7, 0, later(20))), ("2".into(), String::new()));
        work.hear(says("a", &[]), later(41));
        assert_eq!(busy(&work, 1, 2, later(41)), "");
        assert!(work.0.is_empty(), "nothing is kept of those who are gone");
    }
}
