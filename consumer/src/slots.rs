//! A stage's slots: how many of its items are worked on at once in this process.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};
use windrow_common::job::Concurrency;
use windrow_common::resilience::adaptive::{AdaptiveLimit, Seen};
use windrow_common::telemetry::metrics::IntGauge;

/// As many as `concurrency` says.
#[derive(Debug)]
pub(crate) struct Slots {
    free: Semaphore,
    adapting: Option<Mutex<Adapting>>,
    shown: IntGauge,
}

#[derive(Debug)]
struct Adapting {
    limit: AdaptiveLimit,
    /// Slots there are to be.
    size: u32,
    /// Slots taken beyond that; each ends when it is given back.
    excess: u32,
}

/// One slot, until dropped.
#[derive(Debug)]
pub(crate) struct SlotGuard<'a> {
    slots: &'a Slots,
    permit: Option<SemaphorePermit<'a>>,
}

impl Slots {
    /// All of them free; `shown` tells how many there are.
    pub(crate) fn new(concurrency: Concurrency, shown: IntGauge) -> Self {
        let (size, adapting) = match concurrency {
            Concurrency::Fixed(size) => (size, None),
            Concurrency::Auto(bounds) => {
                let limit = AdaptiveLimit::new(bounds);
                (limit.limit(), Some(Mutex::new(Adapting { size: limit.limit(), limit, excess: 0 })))
            }
        };
        shown.set(i64::from(size));
        Self { free: Semaphore::new(size as usize), adapting, shown }
    }

    /// Waits for a free slot. Cancel-safe.
    pub(crate) async fn acquire(&self) -> SlotGuard<'_> {
        // The semaphore is never closed, so there is always a permit.
        SlotGuard { slots: self, permit: self.free.acquire().await.ok() }
    }

    /// A slot that is free now.
    pub(crate) fn try_acquire(&self) -> Option<SlotGuard<'_>> {
        self.free.try_acquire().ok().map(|permit| SlotGuard { slots: self, permit: Some(permit) })
    }

    /// Takes in what a call that ended at `now` after `took` showed: there may be more or fewer slots from then on.
    pub(crate) fn note(&self, seen: Seen, took: Duration, now: Instant) {
        let Some(adapting) = &self.adapting else { return };
        let mut adapting = lock(adapting);
        let free = u32::try_from(self.free.available_permits()).unwrap_or(u32::MAX);
        let under_way = (adapting.size + adapting.excess).saturating_sub(free);
        adapting.limit.note(seen, took, under_way, now);
        let wanted = adapting.limit.limit();
        if wanted > adapting.size {
            let more = wanted - adapting.size;
            let kept = more.min(adapting.excess);
            adapting.excess -= kept;
            self.free.add_permits((more - kept) as usize);
        } else {
            let fewer = adapting.size - wanted;
            let gone = self.free.forget_permits(fewer as usize);
            adapting.excess += fewer - u32::try_from(gone).unwrap_or(fewer);
        }
        adapting.size = wanted;
        self.shown.set(i64::from(wanted));
    }
}

impl Drop for SlotGuard<'_> {
    fn drop(&mut self) {
        let (Some(permit), Some(adapting)) = (self.permit.take(), &self.slots.adapting) else { return };
        let mut adapting = lock(adapting);
        if adapting.excess > 0 {
            adapting.excess -= 1;
            permit.forget();
        }
    }
}

/// What is behind the lock is whole after every statement, so a panic elsewhere spoils nothing.
fn lock(adapting: &Mutex<Adapting>) -> MutexGuard<'_, Adapting> {
    adapting.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use windrow_common::job::Bounds;

    use super::*;

    const QUICK: Duration = Duration::from_millis(1);

    fn slots(concurrency: Concurrency) -> Slots {
        Slots::new(concurrency, IntGauge::new("shown", "of a test").unwrap())
    }

    fn take_all(slots: &Slots) -> Vec<SlotGuard<'_>> {
        std::iter::from_fn(|| slots.try_acquire()).collect()
    }

    #[test]
    fn a_number_of_slots_stays_what_it_is() {
        let slots = slots(Concurrency::Fixed(3));
        for _ in 0..10 {
            slots.note(Seen::Refusal, QUICK, Instant::now());
            assert_eq!((take_all(&slots).len(), slots.shown.get()), (3, 3));
        }
    }

    #[test]
    fn slots_in_use_that_are_too_many_end_when_they_are_given_back() {
        let slots = slots(Concurrency::Auto(Bounds { least: 1, most: 8 }));
        let mut now = Instant::now();
        let mut taken = take_all(&slots);
        assert_eq!(taken.len(), 4);
        slots.note(Seen::Refusal, QUICK, now);
        assert_eq!(slots.shown.get(), 2);
        taken.pop();
        assert!(slots.try_acquire().is_none(), "three are in use, and two are to be");
        taken.pop();
        taken.pop();
        assert_eq!(take_all(&slots).len(), 1, "one is in use");
        // It grows by one a round, and a slot that was to end may then stay.
        taken.extend(take_all(&slots));
        for _ in 0..100 {
            now += Duration::from_secs(1);
            slots.note(Seen::Answer, QUICK, now);
            taken.extend(take_all(&slots));
        }
        assert_eq!((taken.len(), slots.shown.get()), (8, 8), "up to the most");
        now += Duration::from_secs(1);
        slots.note(Seen::Refusal, QUICK, now);
        now += Duration::from_secs(1);
        slots.note(Seen::Answer, QUICK, now);
        taken.clear();
        assert_eq!(
            take_all(&slots).len(),
            usize::try_from(slots.shown.get()).unwrap(),
            "none is lost, none too many"
        );
    }
}
