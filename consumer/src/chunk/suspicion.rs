//! What to do with a chunk that comes back again and again without an answer. Pure.
//!
//! An item that ends the process it runs in never gets an outcome: its chunk comes back, and ends the next process. So
//! does every chunk that was there with it, so coming back proves nothing by itself. A chunk that came back too often
//! is therefore run with nothing else in its process; when that dies as well, its items are run so one by one; and an item
//! whose process dies again and again while nothing but that item runs ends as failed.

use windrow_common::broker::Queue;
use windrow_common::envelope::chunk::ChunkHeader;
use windrow_common::envelope::completion::ItemError;

/// After so many deliveries without an answer a chunk runs alone.
const RETURNS_IN_COMPANY: u32 = 3;

/// After so many deliveries without an answer a single item that runs alone is the one to blame.
const RETURNS_ALONE: u32 = 3;

/// A chunk that ended its process alone is taken apart into at most so many messages; large ones more than once.
const MAX_PARTS: u64 = 256;

/// The most items of a message, as for all remainders.
const MAX_ITEMS: u64 = super::report::MAX_ITEMS_PER_MESSAGE as u64;

/// What follows from how often a chunk came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Treatment {
    /// Nothing: it is run like any other.
    Run,
    /// Its open items are sent on to run alone, at most so many in one message.
    Isolate(u64),
    /// Its only item ends as failed.
    Convict(ItemError),
}

/// The header with the returns of this delivery in it. Of a chunk that is to run alone only those count that ended a
/// process in which it did.
pub(crate) fn counted(header: ChunkHeader, queue: &Queue, returns: u32) -> ChunkHeader {
    let counts = !header.alone || matches!(queue, Queue::Alone(_));
    let returns = header.returns.saturating_add(if counts { returns } else { 0 });
    ChunkHeader { returns, ..header }
}

/// What to do with the `open` items of a chunk.
pub(crate) fn treatment(header: &ChunkHeader, open: u64) -> Treatment {
    match (header.alone, header.returns) {
        _ if open == 0 => Treatment::Run,
        (false, RETURNS_IN_COMPANY..) => Treatment::Isolate(open.min(MAX_ITEMS)),
        (true, 1..) if header.items.len() > 1 => Treatment::Isolate(open.div_ceil(MAX_PARTS)),
        (true, RETURNS_ALONE..) => Treatment::Convict(poison(header.returns)),
        _ => Treatment::Run,
    }
}

/// Whether it came back too often to be run as it is.
pub(crate) fn is_suspect(header: &ChunkHeader) -> bool {
    treatment(header, header.items.len()) != Treatment::Run
}

fn poison(deaths: u32) -> ItemError {
    ItemError {
        class: "poison".to_owned(),
        message: format!("its process died {deaths} times while only this item was running"),
        status: None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::triage::tests::header;
    use super::*;

    fn alone(items: u64, returns: u32) -> ChunkHeader {
        ChunkHeader { alone: true, returns, hop: 1, ..header(items) }
    }

    #[test]
    fn only_a_single_item_that_ran_alone_is_ever_convicted() {
        for items in [1, 2, 100, 100_000] {
            for returns in 0..60 {
                let shared = treatment(&ChunkHeader { returns, ..header(items) }, items);
                let runs = returns < RETURNS_IN_COMPANY;
                assert_eq!(shared == Treatment::Run, runs, "{returns} returns of {items} in company");
                assert!(!matches!(shared, Treatment::Convict(_)));
                let convicted = matches!(treatment(&alone(items, returns), items), Treatment::Convict(_));
                assert_eq!(convicted, items == 1 && returns >= RETURNS_ALONE, "{returns} of {items} alone");
            }
        }
        let Treatment::Convict(error) = treatment(&alone(1, 3), 1) else { panic!() };
        assert_eq!(
            (error.class.as_str(), error.message.as_str()),
            ("poison", "its process died 3 times while only this item was running")
        );
    }

    #[test]
    fn what_ended_its_process_alone_is_taken_apart_into_few_messages_down_to_single_items() {
        assert_eq!(treatment(&alone(100, 0), 100), Treatment::Run);
        let (mut items, mut deaths) = (100_000, 0);
        while items > 1 {
            let Treatment::Isolate(each) = treatment(&alone(items, 1), items) else { panic!("{items}") };
            assert!(each < items && items.div_ceil(each) <= MAX_PARTS);
            (items, deaths) = (each, deaths + 1);
        }
        assert_eq!(deaths, 3, "one for each time it is taken apart");
        // What has settled meanwhile is left out.
        assert_eq!(treatment(&alone(100, 1), 1), Treatment::Isolate(1));
        assert_eq!(treatment(&alone(100, 1), 0), Treatment::Run);
        let many = ChunkHeader { returns: 3, ..header(100_000) };
        assert_eq!(treatment(&many, 100_000), Treatment::Isolate(MAX_ITEMS));
    }

    #[test]
    fn returns_from_other_queues_prove_nothing_against_what_is_to_run_alone() {
        let key = header(1).stage_key();
        let (due, own) = (Queue::Due(key.clone()), Queue::Alone(key));
        assert_eq!(counted(alone(1, 2), &due, 9).returns, 2);
        assert_eq!(counted(alone(1, 2), &own, 1).returns, 3);
        assert_eq!(counted(ChunkHeader { returns: 1, ..header(1) }, &due, 1).returns, 2);
    }
}
