//! When the next piece may be published. Pure.

use windrow_common::envelope::control::{RunNews, RunState};

/// Messages published and not confirmed, at most.
const UNCONFIRMED_MESSAGES: usize = 256;

/// Chunks with an item in a delay level are counted apart: there may be this many times as many chunks
/// unsettled as may be outstanding.
const UNSETTLED_PER_OUTSTANDING: u64 = 10;

/// What a run has published so far, over all sources and processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Published {
    /// Chunks.
    pub(crate) chunks: u64,
    /// Items.
    pub(crate) items: u64,
}

impl Published {
    /// So many more.
    pub(crate) fn add(&mut self, chunks: u64, items: u64) {
        self.chunks += chunks;
        self.items += items;
    }
}

/// Whether the next piece may be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It may.
    Open,
    /// Once the broker confirms some of what is under way.
    Unconfirmed,
    /// Once the collector says that more has settled.
    Outstanding,
    /// Once the run is resumed.
    Paused,
}

/// Whether the next piece may be published, with `unconfirmed` messages under way and at most
/// `outstanding` chunks' worth of items published that neither settled nor wait in a delay level.
pub(crate) fn gate(
    unconfirmed: usize,
    published: Published,
    outstanding: u64,
    news: Option<&RunNews>,
) -> Gate {
    if news.is_some_and(|news| news.state == RunState::Paused) {
        return Gate::Paused;
    }
    if unconfirmed >= UNCONFIRMED_MESSAGES {
        return Gate::Unconfirmed;
    }
    let settled_chunks = news.map_or(0, |news| news.settled_chunks);
    let unsettled = published.chunks.saturating_sub(settled_chunks);
    let active = unsettled.min(active_chunks(published, news));
    if active >= outstanding || unsettled >= outstanding.saturating_mul(UNSETTLED_PER_OUTSTANDING) {
        return Gate::Outstanding;
    }
    Gate::Open
}

/// The items that neither settled nor wait, in chunks of the size this run's chunks have on average.
fn active_chunks(published: Published, news: Option<&RunNews>) -> u64 {
    let elsewhere = news.map_or(0, |news| news.settled_items.saturating_add(news.waiting_items));
    let active_items = u128::from(published.items.saturating_sub(elsewhere));
    let chunks = (active_items * u128::from(published.chunks)).div_ceil(u128::from(published.items.max(1)));
    u64::try_from(chunks).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn news(settled_chunks: u64, settled_items: u64, waiting_items: u64) -> RunNews {
        RunNews {
            run: "r".parse().unwrap(),
            state: RunState::Running,
            stopping: false,
            settled_chunks,
            settled_items,
            failed_items: 0,
            waiting_items,
        }
    }

    const PUBLISHED: Published = Published { chunks: 2000, items: 200_000 };

    #[test]
    fn before_any_news_the_window_is_filled_and_no_more() {
        assert_eq!(gate(0, Published { chunks: 1999, items: 199_900 }, 2000, None), Gate::Open);
        assert_eq!(gate(0, PUBLISHED, 2000, None), Gate::Outstanding);
    }

    #[test]
    fn settled_chunks_make_room() {
        assert_eq!(gate(0, PUBLISHED, 2000, Some(&news(0, 50, 0))), Gate::Outstanding);
        assert_eq!(gate(0, PUBLISHED, 2000, Some(&news(1, 100, 0))), Gate::Open);
    }

    #[test]
    fn chunks_that_only_wait_for_a_retry_leave_room_up_to_a_bound() {
        // Each chunk has 99 items settled and one in a delay level.
        assert_eq!(gate(0, PUBLISHED, 2000, Some(&news(0, 198_000, 2_000))), Gate::Open);
        let many = Published { chunks: 20_000, items: 2_000_000 };
        assert_eq!(gate(0, many, 2000, Some(&news(0, 1_980_000, 20_000))), Gate::Outstanding);
    }

    #[test]
    fn confirms_and_pauses_hold_the_next_piece_back() {
        assert_eq!(gate(256, Published::default(), 2000, None), Gate::Unconfirmed);
        let paused = RunNews { state: RunState::Paused, ..news(0, 0, 0) };
        assert_eq!(gate(0, Published::default(), 2000, Some(&paused)), Gate::Paused);
    }

    #[test]
    fn news_ahead_of_what_this_process_knows_is_no_trouble() {
        assert_eq!(gate(0, Published::default(), 1, Some(&news(5, 500, 0))), Gate::Open);
    }
}
