//! Metric families, made when they are first asked for, and one process's registry of them.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use prometheus::core::Collector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use super::metrics::{MAX_LABELED, OTHER};
use crate::outcome::Outcome;

/// The families of one process. A name is asked for with the same labels each time: all names are literals
/// of [`super::metrics`].
#[derive(Debug, Default)]
pub(super) struct Families {
    registry: Registry,
    counters: Mutex<HashMap<&'static str, IntCounterVec>>,
    gauges: Mutex<HashMap<&'static str, IntGaugeVec>>,
    histograms: Mutex<HashMap<&'static str, HistogramVec>>,
}

impl Families {
    /// The families under these labels, given as name and value.
    pub(super) fn with<'a, const N: usize>(&'a self, labels: [(&'a str, &'a str); N]) -> Labeled<'a> {
        let (names, values) = labels.into_iter().unzip();
        Labeled { families: self, names, values }
    }

    /// Everything in the Prometheus text format.
    pub(super) fn text(&self) -> String {
        // The registry holds valid families only, and writing to a string cannot fail.
        TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    fn family<C: Collector + Clone + 'static>(
        &self,
        known: &Mutex<HashMap<&'static str, C>>,
        name: &'static str,
        make: impl FnOnce() -> prometheus::Result<C>,
    ) -> C {
        let mut known = lock(known);
        let family = known.entry(name).or_insert_with(|| {
            let family = make().expect("a metric's name and labels are valid");
            self.registry.register(Box::new(family.clone())).expect("a metric's name means one family");
            family
        });
        family.clone()
    }
}

/// Families under fixed labels.
pub(super) struct Labeled<'a> {
    families: &'a Families,
    names: Vec<&'a str>,
    values: Vec<&'a str>,
}

impl Labeled<'_> {
    pub(super) fn counter(&self, name: &'static str, help: &str) -> IntCounter {
        let families = self.families;
        let make = || IntCounterVec::new(Opts::new(name, help), &self.names);
        families.family(&families.counters, name, make).with_label_values(&self.values)
    }

    pub(super) fn gauge(&self, name: &'static str, help: &str) -> IntGauge {
        let families = self.families;
        let make = || IntGaugeVec::new(Opts::new(name, help), &self.names);
        families.family(&families.gauges, name, make).with_label_values(&self.values)
    }

    /// A histogram of seconds, with these upper bounds.
    pub(super) fn histogram(&self, name: &'static str, help: &str, bounds: &[f64]) -> Histogram {
        let families = self.families;
        let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        let make = || HistogramVec::new(options, &self.names);
        families.family(&families.histograms, name, make).with_label_values(&self.values)
    }

    /// A counter for each outcome, under one more label.
    pub(super) fn by_outcome(&self, name: &'static str, help: &str) -> OutcomeCounters {
        OutcomeCounters(Outcome::ALL.map(|outcome| {
            let mut labeled =
                Self { families: self.families, names: self.names.clone(), values: self.values.clone() };
            labeled.names.push("outcome");
            labeled.values.push(outcome.as_str());
            labeled.counter(name, help)
        }))
    }
}

/// A counter for each outcome.
#[derive(Debug, Clone)]
pub struct OutcomeCounters([IntCounter; Outcome::ALL.len()]);

impl OutcomeCounters {
    /// The counter of items that ended as `outcome`.
    pub fn of(&self, outcome: Outcome) -> &IntCounter {
        // The array was made from `ALL`, which is in the order of the variants.
        &self.0[outcome as usize]
    }
}

/// Names seen so far, up to [`MAX_LABELED`].
#[derive(Debug, Default)]
pub(super) struct Names(Mutex<HashSet<String>>);

impl Names {
    /// The name, or [`OTHER`] when there are too many already.
    pub(super) fn bounded<'a>(&self, name: &'a str) -> &'a str {
        let mut names = lock(&self.0);
        if names.contains(name) || names.len() < MAX_LABELED {
            names.insert(name.to_owned());
            name
        } else {
            OTHER
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
