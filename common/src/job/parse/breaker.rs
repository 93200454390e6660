//! `breaker` of a destination.

use std::time::Duration;

use super::keys::{self, NO_TYPE};
use super::section::Section;
use crate::job::{BreakerSpec, FailureRate};

/// On unless it is `false`.
pub(super) fn read(destination: &Section<'_>) -> Option<BreakerSpec> {
    let defaults = BreakerSpec::default();
    let Some(value) = destination.raw("breaker") else {
        return Some(defaults);
    };
    if let Some(on) = value.get_ref().as_bool() {
        return on.then_some(defaults);
    }
    let breaker = destination.table("breaker", "`breaker`".to_owned())?;
    breaker.refuse_unknown_keys(&keys::BREAKER, &NO_TYPE);
    let wait = |key, default| breaker.duration(key, Duration::from_millis(1)).unwrap_or(default);
    let failure_rate = read_failure_rate(&breaker);
    let in_a_row = failure_rate.map_or(defaults.failures, |rate| rate.minimum_calls);
    Some(BreakerSpec {
        failures: breaker.small_integer("failures", 1..=100_000).unwrap_or(in_a_row),
        failure_rate,
        open: wait("open", defaults.open),
        probe_interval: wait("probe_interval", defaults.probe_interval),
    })
}

/// Off unless there is a `failure_rate`, without which the keys that go with it would mean nothing.
fn read_failure_rate(breaker: &Section<'_>) -> Option<FailureRate> {
    let share = breaker.share("failure_rate");
    let window = breaker.duration("window", Duration::from_secs(1)).unwrap_or(Duration::from_secs(60));
    let minimum_calls = breaker.small_integer("minimum_calls", 1..=100_000).unwrap_or(20);
    let slow_call = breaker.duration("slow_call", Duration::from_millis(1));
    if breaker.raw("failure_rate").is_none() {
        for (key, value) in breaker.entries() {
            if ["window", "minimum_calls", "slow_call"].contains(&key.text) {
                let message = format!("`{}` means nothing without `failure_rate`", key.text);
                let help = "add it, for example `failure_rate = 0.5`".to_owned();
                breaker.fault_with_help(&value.span(), message, help);
            }
        }
    }
    Some(FailureRate { share: share?, window, minimum_calls, slow_call })
}
