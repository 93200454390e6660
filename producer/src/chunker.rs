//! Where a source is cut into chunks. Pure: the same items give the same chunks, from the beginning or
//! from the end of any chunk on.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use windrow_common::envelope::chunk::Span;

use crate::source::Position;

/// How large chunks may become.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ChunkLimits {
    /// Items, at most.
    pub(crate) items: u64,
    /// Bytes with line breaks, at most; a larger item travels alone.
    pub(crate) bytes: u64,
}

/// A place between two chunks: everything needed to go on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    /// The ordinal of the chunk after it: how many chunks are before it.
    pub(crate) ordinal: u64,
    /// The index of the item after it: how many items are before it.
    pub(crate) index: u64,
    /// How many rejects are before it.
    pub(crate) rejected: u64,
    /// How many of the items before it are not part of the run, which is a retry of some.
    #[serde(default)]
    pub(crate) left_out: u64,
    /// Where the source goes on.
    pub(crate) position: Position,
}

impl Mark {
    /// The beginning of a source.
    pub(crate) fn start() -> Self {
        Self { ordinal: 0, index: 0, rejected: 0, left_out: 0, position: Position::start_of(0) }
    }

    /// How many items of the run are before it.
    pub(crate) fn accepted(&self) -> u64 {
        self.index - self.left_out
    }
}

/// A chunk as it was cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Cut {
    /// Its ordinal.
    pub(crate) ordinal: u64,
    /// The items it covers.
    pub(crate) span: Span,
    /// A line per item, each with its break.
    pub(crate) body: Bytes,
    /// The place after it.
    pub(crate) end: Mark,
}

/// Gathers items into chunks.
#[derive(Debug)]
pub(crate) struct Chunker {
    limits: ChunkLimits,
    /// The items of the chunk being gathered, then the one that was appended and not yet accepted.
    body: Vec<u8>,
    /// How much of `body` is accepted.
    accepted_bytes: usize,
    /// The place before the chunk being gathered.
    start: Mark,
    /// The place after the last item accepted, but for `ordinal`, which is still `start`'s.
    end: Mark,
}

impl Chunker {
    /// Cuts what comes after `from`.
    pub(crate) fn new(limits: ChunkLimits, from: Mark) -> Self {
        Self { limits, body: Vec::new(), accepted_bytes: 0, start: from, end: from }
    }

    /// Where the next item is to be appended, without a line break.
    pub(crate) fn body(&mut self) -> &mut Vec<u8> {
        &mut self.body
    }

    /// The index of the next item.
    pub(crate) fn next_index(&self) -> u64 {
        self.end.index
    }

    /// The place after the last chunk cut.
    pub(crate) fn start(&self) -> Mark {
        self.start
    }

    /// Accepts the item that was appended. The source goes on at `position`, with `rejected` rejects so
    /// far. Gives a chunk when one is full: with this item, or before it when it does not fit.
    pub(crate) fn accept(&mut self, position: Position, rejected: u64) -> Option<Cut> {
        self.body.push(b'\n');
        let full_before = self.count() > 0 && self.body.len() as u64 > self.limits.bytes;
        let cut_before = full_before.then(|| self.cut());
        self.accepted_bytes = self.body.len();
        self.end = Mark { index: self.end.index + 1, rejected, position, ..self.end };
        // Both at once cannot be: a chunk of one item is cut at once when one is the limit.
        cut_before.or_else(|| (self.count() >= self.limits.items).then(|| self.cut()))
    }

    /// Leaves out the item that was appended; it keeps its index. Since a chunk covers items one after another, this
    /// gives the one being gathered.
    pub(crate) fn leave_out(&mut self, position: Position, rejected: u64) -> Option<Cut> {
        self.body.truncate(self.accepted_bytes);
        let cut = self.finish();
        let Mark { index, left_out, .. } = self.end;
        self.end = Mark { index: index + 1, left_out: left_out + 1, rejected, position, ..self.end };
        self.start = self.end;
        cut
    }

    /// The items left, at the end of the source.
    pub(crate) fn finish(&mut self) -> Option<Cut> {
        (self.count() > 0).then(|| self.cut())
    }

    fn count(&self) -> u64 {
        self.end.index - self.start.index
    }

    fn cut(&mut self) -> Cut {
        let rest = self.body[self.accepted_bytes..].to_vec();
        let mut body = std::mem::replace(&mut self.body, rest);
        body.truncate(self.accepted_bytes);
        // The next chunk is likely to be about as large, unless this was one large item.
        self.body.reserve(self.accepted_bytes.min(usize::try_from(self.limits.bytes).unwrap_or(0)));
        self.accepted_bytes = 0;
        let span = Span { first: self.start.index, count: self.count() };
        let ordinal = self.start.ordinal;
        self.end.ordinal += 1;
        self.start = self.end;
        Cut { ordinal, span, body: Bytes::from(body), end: self.end }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn position(item: usize) -> Position {
        Position { file: 0, offset: item as u64, line: 1 }
    }

    /// Cuts `items` from `from` on; the item at `from.index` is the first.
    fn cut_all(limits: ChunkLimits, items: &[Vec<u8>], from: Mark) -> Vec<Cut> {
        let mut chunker = Chunker::new(limits, from);
        let mut cuts = Vec::new();
        for (at, item) in items.iter().enumerate().skip(usize::try_from(from.index).unwrap()) {
            chunker.body().extend_from_slice(item);
            cuts.extend(chunker.accept(position(at + 1), at as u64 / 3));
        }
        cuts.extend(chunker.finish());
        cuts
    }

    fn cut_sizes(items: u64, bytes: u64, lengths: &[usize]) -> Vec<u64> {
        let items_of: Vec<Vec<u8>> = lengths.iter().map(|length| vec![b'1'; *length]).collect();
        let cuts = cut_all(ChunkLimits { items, bytes }, &items_of, Mark::start());
        cuts.iter().map(|cut| cut.span.count).collect()
    }

    #[test]
    fn chunks_end_at_the_item_count_or_before_the_item_that_does_not_fit() {
        assert_eq!(cut_sizes(3, 1000, &[1; 7]), [3, 3, 1]);
        assert_eq!(cut_sizes(10, 20, &[9, 9, 9, 9, 9]), [2, 2, 1]);
        assert_eq!(cut_sizes(10, 20, &[9, 10, 9]), [1, 1, 1]);
        assert_eq!(cut_sizes(1, 20, &[9, 9]), [1, 1]);
        assert_eq!(cut_sizes(10, 20, &[]), [0; 0]);
    }

    #[test]
    fn an_item_larger_than_a_chunk_travels_alone() {
        assert_eq!(cut_sizes(10, 20, &[1, 1, 500, 1, 1]), [2, 1, 2]);
        assert_eq!(cut_sizes(10, 20, &[500, 500]), [1, 1]);
    }

    #[test]
    fn items_left_out_keep_their_index_and_end_the_chunk_before_them() {
        let mut chunker = Chunker::new(ChunkLimits { items: 3, bytes: 1000 }, Mark::start());
        let mut cuts = Vec::new();
        for index in 0..12 {
            chunker.body().extend_from_slice(index.to_string().as_bytes());
            let next = position(index + 1);
            let is_wanted = [1, 2, 5, 6, 7, 8, 10].contains(&index);
            cuts.extend(if is_wanted { chunker.accept(next, 0) } else { chunker.leave_out(next, 0) });
        }
        cuts.extend(chunker.finish());
        let shown: Vec<_> = cuts.iter().map(|cut| (cut.ordinal, cut.span.first, cut.span.count)).collect();
        assert_eq!(shown, [(0, 1, 2), (1, 5, 3), (2, 8, 1), (3, 10, 1)]);
        let body: Vec<u8> = cuts.iter().flat_map(|cut| cut.body.to_vec()).collect();
        assert_eq!(body, b"1\n2\n5\n6\n7\n8\n10\n");
        assert_eq!(cuts.iter().map(|cut| cut.end.accepted()).collect::<Vec<_>>(), [2, 5, 6, 7]);
    }

    proptest! {
        #[test]
        fn chunks_hold_every_item_once_and_any_mark_gives_the_same_rest(
            lengths in prop::collection::vec(1usize..40, 0..120),
            items in 1u64..12,
            bytes in 1u64..200,
        ) {
            let all: Vec<Vec<u8>> = lengths.iter().map(|length| vec![b'a'; *length]).collect();
            let limits = ChunkLimits { items, bytes };
            let cuts = cut_all(limits, &all, Mark::start());
            let joined: Vec<u8> = cuts.iter().flat_map(|cut| cut.body.to_vec()).collect();
            let expected: Vec<u8> = all.iter().flat_map(|item| [item.as_slice(), b"\n"].concat()).collect();
            prop_assert_eq!(joined, expected);
            let mut next = 0;
            for (ordinal, cut) in cuts.iter().enumerate() {
                prop_assert_eq!(cut.ordinal, ordinal as u64);
                prop_assert_eq!(cut.span.first, next);
                next += cut.span.count;
                prop_assert!(cut.span.count <= items);
                prop_assert!(cut.span.count == 1 || cut.body.len() as u64 <= bytes);
                prop_assert_eq!(cut.end.position, position(usize::try_from(next).unwrap()));
                prop_assert_eq!(&cut_all(limits, &all, cut.end)[..], &cuts[ordinal + 1..]);
            }
        }
    }
}
