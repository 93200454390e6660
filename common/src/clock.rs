//! The time as this process sees it. Both clocks follow tokio's, so a test that pauses that one has all time in its hand.

use std::cell::Cell;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

thread_local! {
    /// When this thread's wall clock was set, and to what.
    static SET: Cell<Option<(Instant, u64)>> = const { Cell::new(None) };
}

/// Now, for pauses, budgets and deadlines within this process.
pub fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// Now, for the record and the wire, in Unix milliseconds.
pub fn unix_ms() -> u64 {
    let since_epoch = match SET.get() {
        Some((at, unix_ms)) => Duration::from_millis(unix_ms) + now().saturating_duration_since(at),
        None => SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default(),
    };
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// For simulations: from now on this thread's wall clock goes on from `unix_ms` as tokio's clock does, and not with
/// the machine's.
pub fn set_for_this_thread(unix_ms: u64) {
    SET.set(Some((now(), unix_ms)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_holds_both_and_moves_both() {
        set_for_this_thread(1_000);
        let began = now();
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!((now(), unix_ms()), (began, 1_000));
        tokio::time::sleep(Duration::from_secs(3_600)).await;
        assert_eq!((now() - began, unix_ms()), (Duration::from_secs(3_600), 3_601_000));
    }

    #[test]
    fn elsewhere_the_wall_clock_is_the_machines() {
        let of_the_machine = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis();
        assert!(u128::from(unix_ms()).abs_diff(of_the_machine) < 60_000);
    }
}
