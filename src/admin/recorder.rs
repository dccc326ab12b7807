//! All metrics of this process, and their text for `/metrics`.
//!
//! A thousand pools have 150,000 lines, and each scrape writes all of them. So every series is kept with
//! the text of its labels, in their order, and a histogram counts into its buckets at once: a scrape
//! reads and copies, needs no upkeep between scrapes, and has the same order each time. It holds no lock
//! for longer than one family takes, so a thread that needs a new series never waits for a whole scrape.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use forebay_base::is_withdrawn;
use forebay_telemetry::figure::{self, Metric, Points};
use metrics::{
    Counter, Gauge, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit,
};
use parking_lot::RwLock;

/// Every family of metrics by name.
#[derive(Clone)]
pub(crate) struct Figures(Arc<Inner>);

struct Inner {
    families: RwLock<BTreeMap<String, Arc<Family>>>,
    /// The bounds of each histogram by name.
    bounds: BTreeMap<&'static str, &'static [f64]>,
    /// Since when counters count.
    began: SystemTime,
    /// Figures for OTLP that are not recorded here.
    more: OnceLock<Box<OtherFigures>>,
}

type OtherFigures = dyn Fn(SystemTime) -> Vec<Metric> + Send + Sync;

/// The series with one name.
struct Family {
    kind: Kind,
    help: RwLock<SharedString>,
    /// By the text of their labels, without braces. The key has the labels themselves.
    series: RwLock<BTreeMap<String, (Key, Series)>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets but the last, in ascending order.
    Histogram(&'static [f64]),
}

#[derive(Clone)]
enum Series {
    /// A counter's value, or the bits of a gauge's.
    Value(Arc<AtomicU64>),
    Buckets(Arc<Buckets>),
}

/// A histogram's counts.
struct Buckets {
    bounds: &'static [f64],
    /// Values up to each bound and above the one before; the last one has the rest.
    counts: Box<[AtomicU64]>,
    /// The bits of the values' sum.
    sum: AtomicU64,
}

impl Figures {
    /// No metrics yet. `bounds` has the bounds of each histogram by name.
    pub(crate) fn new(bounds: impl IntoIterator<Item = (&'static str, &'static [f64])>) -> Self {
        let bounds = bounds.into_iter().collect();
        let began = SystemTime::now();
        let (families, more) = (RwLock::default(), OnceLock::new());
        Self(Arc::new(Inner { families, bounds, began, more }))
    }

    fn histogram(&self, name: &str) -> Kind {
        Kind::Histogram(self.0.bounds.get(name).copied().unwrap_or_default())
    }

    fn describe(&self, name: &str, kind: Kind, help: SharedString) {
        *self.family(name, kind).help.write() = help;
    }

    fn family(&self, name: &str, kind: Kind) -> Arc<Family> {
        if let Some(family) = self.0.families.read().get(name) {
            return Arc::clone(family);
        }
        let new = || {
            let help = RwLock::new(SharedString::const_str(""));
            Arc::new(Family { kind, help, series: RwLock::default() })
        };
        Arc::clone(self.0.families.write().entry(name.to_owned()).or_insert_with(new))
    }

    /// The series with this key; `None` if its name is another kind of metric.
    fn series(&self, key: &Key, kind: Kind) -> Option<Series> {
        let family = self.family(key.name(), kind);
        if family.kind != kind {
            return None;
        }
        let labels = labels(key);
        if let Some((_, series)) = family.series.read().get(&labels) {
            return Some(series.clone());
        }
        let new = || match kind {
            Kind::Counter | Kind::Gauge => Series::Value(Arc::default()),
            Kind::Histogram(bounds) => Series::Buckets(Arc::new(Buckets::new(bounds))),
        };
        let mut all = family.series.write();
        let (_, series) = all.entry(labels).or_insert_with(|| (key.clone(), new()));
        Some(series.clone())
    }

    /// Writes all series in Prometheus' text format, in the order of their names and labels.
    pub(crate) fn render(&self, text: &mut String) {
        let families = self.0.families.read().clone();
        for (name, family) in &families {
            // The figures by OpenTelemetry's own names are for OTLP alone.
            if !name.contains('.') {
                family.render(name, text);
            }
        }
    }

    /// All figures as messages of OTLP, as they are `now`.
    pub(crate) fn otlp(&self, now: SystemTime) -> Vec<Metric> {
        let families = self.0.families.read().clone();
        let all = families.iter().filter_map(|(name, family)| {
            let points = family.points()?;
            Some(figure::metric(name, &family.help.read(), points, self.0.began, now))
        });
        let more = self.0.more.get().map(|more| more(now));
        all.chain(more.into_iter().flatten()).collect()
    }

    /// Adds figures that are not recorded here to those for OTLP. Only the first call has an effect.
    pub(crate) fn also(&self, more: impl Fn(SystemTime) -> Vec<Metric> + Send + Sync + 'static) {
        let _ = self.0.more.set(Box::new(more));
    }
}

impl Family {
    /// Its values now; `None` if it has none.
    fn points(&self) -> Option<Points> {
        let all = self.series.read();
        if all.is_empty() {
            return None;
        }
        let values = || {
            all.values().filter_map(|(key, series)| match series {
                Series::Value(value) => Some((key.clone(), value.load(Relaxed))),
                Series::Buckets(_) => None,
            })
        };
        Some(match self.kind {
            Kind::Counter => Points::Counts(values().collect()),
            Kind::Gauge => {
                let numbers = values().map(|(key, bits)| (key, f64::from_bits(bits)));
                let shown: Vec<_> = numbers.filter(|(_, value)| !is_withdrawn(*value)).collect();
                if shown.is_empty() {
                    return None;
                }
                Points::Numbers(shown)
            }
            Kind::Histogram(bounds) => {
                let counts = |buckets: &Buckets| {
                    buckets.counts.iter().map(|count| count.load(Relaxed)).collect()
                };
                let all = all.values().filter_map(|(key, series)| match series {
                    Series::Buckets(buckets) => {
                        let sum = f64::from_bits(buckets.sum.load(Relaxed));
                        Some((key.clone(), counts(buckets), sum))
                    }
                    Series::Value(_) => None,
                });
                Points::Buckets(bounds, all.collect())
            }
        })
    }

    fn render(&self, name: &str, text: &mut String) {
        let series = self.series.read();
        if series.is_empty() {
            return;
        }
        let help = self.help.read().replace('\\', "\\\\").replace('\n', "\\n");
        if !help.is_empty() {
            put(text, format_args!("# HELP {name} {help}\n"));
        }
        let kind = match self.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        put(text, format_args!("# TYPE {name} {kind}\n"));
        // Made once for all series.
        let bounds = match self.kind {
            Kind::Histogram(bounds) => bounds,
            Kind::Counter | Kind::Gauge => &[],
        };
        let bounds = bounds.iter().map(|bound| format!("le=\"{bound}\""));
        let bounds: Vec<_> = bounds.chain(["le=\"+Inf\"".to_owned()]).collect();
        let [bucket, sum, count] = ["_bucket", "_sum", "_count"].map(|end| name.to_owned() + end);
        for (labels, (_, series)) in &*series {
            match (series, self.kind) {
                (Series::Value(value), Kind::Gauge) => {
                    let value = f64::from_bits(value.load(Relaxed));
                    if !is_withdrawn(value) {
                        begin(text, name, labels, "");
                        put(text, format_args!(" {value}\n"));
                    }
                }
                (Series::Value(value), _) => {
                    begin(text, name, labels, "");
                    put(text, format_args!(" {}\n", value.load(Relaxed)));
                }
                (Series::Buckets(buckets), _) => {
                    let mut below = 0;
                    for (bound, here) in bounds.iter().zip(&buckets.counts) {
                        below += here.load(Relaxed);
                        begin(text, &bucket, labels, bound);
                        put(text, format_args!(" {below}\n"));
                    }
                    begin(text, &sum, labels, "");
                    let total = f64::from_bits(buckets.sum.load(Relaxed));
                    put(text, format_args!(" {total}\n"));
                    begin(text, &count, labels, "");
                    put(text, format_args!(" {below}\n"));
                }
            }
        }
        text.push('\n');
    }
}

/// Writes a line up to its value.
fn begin(text: &mut String, name: &str, labels: &str, more: &str) {
    text.push_str(name);
    if labels.is_empty() && more.is_empty() {
        return;
    }
    text.push('{');
    text.push_str(labels);
    if !labels.is_empty() && !more.is_empty() {
        text.push(',');
    }
    text.push_str(more);
    text.push('}');
}

fn put(text: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = text.write_fmt(what);
}

/// A series' labels as text: `pool="chat",outcome="completed"`.
fn labels(key: &Key) -> String {
    let mut text = String::new();
    for label in key.labels() {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(label.key());
        text.push_str("=\"");
        for char in label.value().chars() {
            match char {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                char => text.push(char),
            }
        }
        text.push('"');
    }
    text
}

impl Buckets {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }
}

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        self.record_many(value, 1);
    }

    fn record_many(&self, value: f64, count: usize) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(count as u64, Relaxed);
        let add = value * count as f64;
        let added = |sum: u64| Some((f64::from_bits(sum) + add).to_bits());
        // The function never refuses.
        let _ = self.sum.fetch_update(Relaxed, Relaxed, added);
    }
}

impl Recorder for Figures {
    fn describe_counter(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), Kind::Counter, help);
    }

    fn describe_gauge(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), Kind::Gauge, help);
    }

    fn describe_histogram(&self, key: KeyName, _: Option<Unit>, help: SharedString) {
        self.describe(key.as_str(), self.histogram(key.as_str()), help);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        match self.series(key, Kind::Counter) {
            Some(Series::Value(value)) => Counter::from_arc(value),
            _ => Counter::noop(),
        }
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        match self.series(key, Kind::Gauge) {
            Some(Series::Value(value)) => Gauge::from_arc(value),
            _ => Gauge::noop(),
        }
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        match self.series(key, self.histogram(key.name())) {
            Some(Series::Buckets(buckets)) => Histogram::from_arc(buckets),
            _ => Histogram::noop(),
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_base::WITHDRAWN;
    use metrics::{
        counter, describe_counter, describe_histogram, gauge, histogram, with_local_recorder,
    };

    use super::*;

    fn text(figures: &Figures) -> String {
        let mut text = String::new();
        figures.render(&mut text);
        text
    }

    #[test]
    fn series_are_written_in_prometheus_format_and_in_the_same_order_each_time() {
        let figures = Figures::new([("wait_seconds", &[0.5, 1.0][..])]);
        with_local_recorder(&figures, || {
            describe_counter!("requests_total", "Requests,\nby \\ pool");
            describe_histogram!("wait_seconds", "Waits");
            describe_counter!("never_total", "Without series");
            for (pool, count) in [("z", 1), ("a", 2), ("say \"m\\n\"", 3)] {
                counter!("requests_total", "pool" => pool, "outcome" => "completed")
                    .increment(count);
            }
            gauge!("depth").set(2.5);
            let waits = histogram!("wait_seconds", "pool" => "a");
            // A value on a bound belongs to its bucket.
            [0.25, 0.5, 0.75, 7.0].into_iter().for_each(|wait| waits.record(wait));
            waits.record_many(1.0, 3);
        });
        let want = r##"# TYPE depth gauge
depth 2.5

# HELP requests_total Requests,\nby \\ pool
# TYPE requests_total counter
requests_total{pool="a",outcome="completed"} 2
requests_total{pool="say \"m\\n\"",outcome="completed"} 3
requests_total{pool="z",outcome="completed"} 1

# HELP wait_seconds Waits
# TYPE wait_seconds histogram
wait_seconds_bucket{pool="a",le="0.5"} 2
wait_seconds_bucket{pool="a",le="1"} 6
wait_seconds_bucket{pool="a",le="+Inf"} 7
wait_seconds_sum{pool="a"} 11.5
wait_seconds_count{pool="a"} 7

"##;
        assert_eq!(text(&figures), want);
        assert_eq!(text(&figures), want);
    }

    #[test]
    fn figures_by_opentelemetrys_names_are_exported_beside_the_others_and_not_shown() {
        let figures = Figures::new([("wait_seconds", &[0.5, 1.0][..])]);
        with_local_recorder(&figures, || {
            describe_counter!("never_total", "Without series");
            describe_histogram!("wait_seconds", "Waits");
            counter!("requests_total", "pool" => "a").increment(2);
            gauge!("depth").set(2.5);
            histogram!("wait_seconds").record(0.75);
            histogram!("gen_ai.server.request.duration").record(0.75);
        });
        let text = text(&figures);
        assert!(text.contains("requests_total") && !text.contains("gen_ai"), "{text}");
        let key = Key::from_name("other");
        let other = move |now| {
            figure::metric("other", "", Points::Counts(vec![(key.clone(), 1)]), now, now)
        };
        figures.also(move |now| vec![other(now)]);
        let metrics = figures.otlp(SystemTime::now());
        let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        let want =
            ["depth", "gen_ai.server.request.duration", "requests_total", "wait_seconds", "other"];
        assert_eq!(names, want);
        assert_eq!(metrics[3].description, "Waits");
    }

    #[test]
    fn a_withdrawn_gauge_is_left_out_until_it_is_set_again() {
        let figures = Figures::new([]);
        let [a, b] = with_local_recorder(&figures, || {
            ["a", "b"].map(|pool| gauge!("depth", "pool" => pool))
        });
        a.set(WITHDRAWN);
        b.set(f64::NAN);
        assert_eq!(text(&figures), "# TYPE depth gauge\ndepth{pool=\"b\"} NaN\n\n");
        b.set(WITHDRAWN);
        assert!(figures.otlp(SystemTime::now()).is_empty());
        a.set(3.0);
        assert_eq!(text(&figures), "# TYPE depth gauge\ndepth{pool=\"a\"} 3\n\n");
        assert_eq!(figures.otlp(SystemTime::now()).len(), 1);
    }

    #[test]
    fn a_series_that_is_registered_again_goes_on() {
        let figures = Figures::new([]);
        with_local_recorder(&figures, || {
            (0..3).for_each(|_| counter!("requests_total", "pool" => "a").increment(1));
            gauge!("requests_total", "pool" => "a").set(9.0);
        });
        let text = text(&figures);
        assert!(text.ends_with("requests_total{pool=\"a\"} 3\n\n"), "not of two kinds: {text}");
    }
}
