//! Which acknowledgements to send for the tags settled since the last time.

use std::collections::BTreeSet;

/// The tags of one consumer's channel: delivered as 1, 2, 3 and so on, settled in any order.
#[derive(Debug, Default)]
pub(super) struct Acks {
    /// Every tag up to this one is settled.
    settled_up_to: u64,
    /// Settled tags above it.
    above: BTreeSet<u64>,
}

/// An acknowledgement.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) tag: u64,
    /// Whether it speaks for all tags below as well.
    pub(super) multiple: bool,
}

impl Acks {
    /// Whether every tag up to `last` is settled.
    pub(super) fn all_settled(&self, last: u64) -> bool {
        self.settled_up_to >= last
    }

    /// The acknowledgements for newly settled tags: one for all that now have nothing unsettled below
    /// them, and one for each other. Drains `tags`.
    pub(super) fn plan(&mut self, tags: &mut Vec<u64>) -> Vec<Ack> {
        self.above.extend(tags.iter().copied());
        while self.above.first() == Some(&(self.settled_up_to + 1)) {
            self.above.pop_first();
            self.settled_up_to += 1;
        }
        // Of the tags below, the broker must still know the one named: it has to be a new one.
        let together = tags.iter().copied().filter(|tag| *tag <= self.settled_up_to).max();
        let single = tags.drain(..).filter(|tag| *tag > self.settled_up_to);
        let mut acks: Vec<Ack> = single.map(|tag| Ack { tag, multiple: false }).collect();
        acks.extend(together.map(|tag| Ack { tag, multiple: true }));
        acks
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn tags_with_nothing_unsettled_below_are_acknowledged_as_one() {
        let mut acks = Acks::default();
        assert_eq!(
            acks.plan(&mut vec![2, 3]),
            [Ack { tag: 2, multiple: false }, Ack { tag: 3, multiple: false }]
        );
        // 2 and 3 are known to the broker no more: 1 must be the tag named.
        assert_eq!(acks.plan(&mut vec![1]), [Ack { tag: 1, multiple: true }]);
        assert_eq!(
            acks.plan(&mut vec![5, 4, 7]),
            [Ack { tag: 7, multiple: false }, Ack { tag: 5, multiple: true }]
        );
        assert!(acks.all_settled(5));
        assert!(!acks.all_settled(6));
    }

    proptest! {
        #[test]
        fn every_tag_is_acknowledged_once_and_none_unsettled(
            order in Just((1..=40u64).collect::<Vec<_>>()).prop_shuffle(),
            sizes in prop::collection::vec(1..7usize, 40),
        ) {
            let mut acks = Acks::default();
            let mut unacked: BTreeSet<u64> = (1..=40).collect();
            let mut rest = order.as_slice();
            let mut settled = BTreeSet::new();
            for size in sizes {
                let (batch, later) = rest.split_at(size.min(rest.len()));
                rest = later;
                settled.extend(batch.iter().copied());
                for ack in acks.plan(&mut batch.to_vec()) {
                    // The broker closes the channel for a tag it does not know.
                    prop_assert!(unacked.contains(&ack.tag));
                    let gone: Vec<u64> = if ack.multiple {
                        unacked.range(..=ack.tag).copied().collect()
                    } else {
                        vec![ack.tag]
                    };
                    for tag in gone {
                        prop_assert!(settled.contains(&tag));
                        unacked.remove(&tag);
                    }
                }
            }
            prop_assert_eq!(unacked.len(), 40 - settled.len());
            prop_assert!(acks.all_settled(40) == unacked.is_empty());
        }
    }
}
