//! In which order pieces of chunks come to a sink. Pure: what to take next, given what is there.

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::spool::Extent;

/// A place in the order of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Position {
    /// The source, as the run's record counts them.
    pub source: u32,
    /// The chunk.
    pub ordinal: u64,
    /// The item in the chunk.
    pub offset: u64,
}

impl Position {
    /// Before everything.
    pub const START: Self = Self { source: 0, ordinal: 0, offset: 0 };

    /// The beginning of the next source.
    #[must_use]
    pub fn next_source(self) -> Self {
        Self { source: self.source + 1, ordinal: 0, offset: 0 }
    }
}

/// Lines of consecutive items of one chunk, one after another in the spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// The first item's place.
    pub at: Position,
    /// The place of the item after the last.
    pub next: Position,
    /// The lines.
    pub extent: Extent,
}

/// Which piece may come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The one that begins where the last one ended.
    Gapless,
    /// The lowest there is: everything has settled, or the order does not matter.
    Lowest,
}

/// The pieces a sink may take from: those of this batch, and those that wait in the ledger, page by page.
#[derive(Debug, Default)]
pub struct Feed {
    fresh: BTreeMap<Position, Piece>,
    page: VecDeque<Piece>,
    /// Whether the ledger holds pieces after those of `page`.
    has_more: bool,
}

/// What a [`Feed`] has to give.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A piece of this batch.
    Fresh(Piece),
    /// A piece that had been waiting in the ledger.
    Waited(Piece),
    /// Nothing can be said before the next page is loaded, from the head on.
    Load,
    /// Nothing, for now.
    Nothing,
}

impl Feed {
    /// The pieces of a batch; `has_waiting` if the ledger holds any.
    pub fn new(fresh: impl IntoIterator<Item = Piece>, has_waiting: bool) -> Self {
        let fresh = fresh.into_iter().map(|piece| (piece.at, piece)).collect();
        Self { fresh, page: VecDeque::new(), has_more: has_waiting }
    }

    /// Takes a page of waiting pieces, in order; `has_more` if there are others behind it.
    pub fn load(&mut self, page: Vec<Piece>, has_more: bool) {
        self.page = page.into();
        self.has_more = has_more;
    }

    /// The next piece at `head`.
    pub fn next(&mut self, head: Position, rule: Rule) -> Next {
        if self.page.is_empty() && self.has_more {
            // A fresh piece that fits is right without looking further.
            if rule == Rule::Gapless
                && let Some(piece) = self.fresh.remove(&head)
            {
                return Next::Fresh(piece);
            }
            return Next::Load;
        }
        let fits = |at: &Position| rule == Rule::Lowest || *at == head;
        let waited = self.page.front().map(|piece| piece.at).filter(fits);
        let fresh = match rule {
            Rule::Lowest => self.fresh.first_key_value().map(|(at, _)| *at),
            Rule::Gapless => self.fresh.contains_key(&head).then_some(head),
        };
        if waited.is_some_and(|at| fresh.is_none_or(|other| at < other)) {
            return self.page.pop_front().map_or(Next::Nothing, Next::Waited);
        }
        fresh.and_then(|at| self.fresh.remove(&at)).map_or(Next::Nothing, Next::Fresh)
    }

    /// The pieces of the batch nobody took: they are to wait.
    pub fn into_left(self) -> impl Iterator<Item = Piece> {
        self.fresh.into_values()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Pieces of `counts.len()` chunks, each of that many items, cut into pieces of one or two items.
    fn pieces(counts: &[u64]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for (ordinal, count) in counts.iter().enumerate() {
            let ordinal = ordinal as u64;
            let mut offset = 0;
            while offset < *count {
                let end = (offset + 1 + ordinal % 2).min(*count);
                let at = Position { source: 0, ordinal, offset };
                let next = if end == *count {
                    Position { ordinal: ordinal + 1, offset: 0, ..at }
                } else {
                    Position { offset: end, ..at }
                };
                let extent = Extent { segment: 0, at: 0, bytes: end - offset };
                pieces.push(Piece { at, next, extent });
                offset = end;
            }
        }
        pieces
    }

    proptest! {
        #[test]
        fn pieces_in_any_order_come_out_in_the_order_of_the_input(
            counts in prop::collection::vec(1u64..5, 1..12),
            keys in prop::collection::vec(any::<u32>(), 60),
            batch in 1usize..7,
            page in 1usize..4,
        ) {
            let expected = pieces(&counts);
            let mut shuffled: Vec<_> = expected.iter().copied().zip(keys).collect();
            shuffled.sort_by_key(|(_, key)| *key);
            let mut ledger: BTreeMap<Position, Piece> = BTreeMap::new();
            let mut head = Position::START;
            let mut out = Vec::new();
            for arrived in shuffled.chunks(batch) {
                let mut feed = Feed::new(arrived.iter().map(|(piece, _)| *piece), !ledger.is_empty());
                loop {
                    match feed.next(head, Rule::Gapless) {
                        Next::Fresh(piece) | Next::Waited(piece) => {
                            ledger.remove(&piece.at);
                            head = piece.next;
                            out.push(piece);
                        }
                        Next::Load => {
                            let rest: Vec<_> = ledger.range(head..).map(|(_, piece)| *piece).collect();
                            feed.load(rest.iter().copied().take(page).collect(), rest.len() > page);
                        }
                        Next::Nothing => break,
                    }
                }
                ledger.extend(feed.into_left().map(|piece| (piece.at, piece)));
                prop_assert!(ledger.keys().all(|at| *at > head));
            }
            prop_assert_eq!(out, expected);
            prop_assert!(ledger.is_empty());
        }
    }

    #[test]
    fn the_lowest_is_taken_over_gaps_once_everything_has_settled() {
        let all = pieces(&[1, 1, 1, 1]);
        let mut feed = Feed::new([all[3], all[1]], true);
        assert_eq!(feed.next(Position::START, Rule::Lowest), Next::Load);
        feed.load(vec![all[2]], false);
        assert_eq!(feed.next(Position::START, Rule::Lowest), Next::Fresh(all[1]));
        assert_eq!(feed.next(Position::START, Rule::Lowest), Next::Waited(all[2]));
        assert_eq!(feed.next(Position::START, Rule::Lowest), Next::Fresh(all[3]));
        assert_eq!(feed.next(Position::START, Rule::Lowest), Next::Nothing);
    }
}
