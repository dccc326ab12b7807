//! A recorder of metrics for tests: the counters, and how often a metric was looked up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::Mutex;

/// Counts of counters, and of a histogram's values, by name and labels.
#[derive(Default)]
pub(super) struct Registered {
    counts: Mutex<BTreeMap<String, Arc<AtomicU64>>>,
    lookups: AtomicU64,
}

impl Registered {
    /// The count of the metric with this name and these values of its labels, with spaces between.
    pub(super) fn count(&self, metric: &str) -> Option<u64> {
        self.counts.lock().get(metric).map(|count| count.load(Relaxed))
    }

    /// How often a metric was looked up by its name.
    pub(super) fn lookups(&self) -> usize {
        self.lookups.load(Relaxed) as usize
    }

    fn of(&self, key: &Key) -> Arc<AtomicU64> {
        self.lookups.fetch_add(1, Relaxed);
        let mut text = key.name().to_owned();
        for label in key.labels() {
            text = text + " " + label.value();
        }
        Arc::clone(self.counts.lock().entry(text).or_default())
    }
}

struct Values(Arc<AtomicU64>);

impl HistogramFn for Values {
    fn record(&self, _: f64) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Recorder for Registered {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.of(key))
    }
    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.of(key))
    }
    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(Arc::new(Values(self.of(key))))
    }
}
