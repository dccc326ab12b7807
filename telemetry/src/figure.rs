//! Figures as messages of OTLP. Pure.

use std::time::SystemTime;

use metrics::Key;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as NumberValue;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, NumberDataPoint, Sum, Summary,
    SummaryDataPoint,
};

use crate::span::{Value, attribute, nanos};

pub use opentelemetry_proto::tonic::metrics::v1::Metric;

/// The values of one figure, under their labels.
#[derive(Clone, Debug)]
pub enum Points {
    /// A count that only grows.
    Counts(Vec<(Key, u64)>),
    /// Numbers that go up and down.
    Numbers(Vec<(Key, f64)>),
    /// Counts by bucket with the sum of all values, and the buckets' upper bounds but the last.
    Buckets(&'static [f64], Vec<(Key, Vec<u64>, f64)>),
    /// Numbers of values, with the sum of the values.
    Sums(Vec<(Key, u64, f64)>),
}

/// The figure `name` as it is `now`, counted since `began`.
#[must_use]
pub fn metric(
    name: &str,
    help: &str,
    points: Points,
    began: SystemTime,
    now: SystemTime,
) -> Metric {
    let (start_time_unix_nano, time_unix_nano) = (nanos(began), nanos(now));
    let attributes = |key: &Key| {
        let labels = key.labels();
        labels.map(|label| attribute(label.key(), Value::from(label.value()))).collect()
    };
    let number = |key: &Key, value| NumberDataPoint {
        attributes: attributes(key),
        start_time_unix_nano,
        time_unix_nano,
        value: Some(value),
        ..NumberDataPoint::default()
    };
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let data = match points {
        Points::Counts(counts) => {
            let value = |count| NumberValue::AsInt(i64::try_from(count).unwrap_or(i64::MAX));
            let counts = counts.iter().map(|(key, count)| number(key, value(*count)));
            let data_points = counts.collect();
            Data::Sum(Sum { data_points, aggregation_temporality, is_monotonic: true })
        }
        Points::Numbers(numbers) => {
            let numbers =
                numbers.iter().map(|(key, value)| number(key, NumberValue::AsDouble(*value)));
            Data::Gauge(Gauge { data_points: numbers.collect() })
        }
        Points::Buckets(bounds, all) => {
            let all = all.into_iter().map(|(key, bucket_counts, sum)| HistogramDataPoint {
                attributes: attributes(&key),
                start_time_unix_nano,
                time_unix_nano,
                count: bucket_counts.iter().sum(),
                sum: Some(sum),
                bucket_counts,
                explicit_bounds: bounds.to_vec(),
                ..HistogramDataPoint::default()
            });
            Data::Histogram(Histogram { data_points: all.collect(), aggregation_temporality })
        }
        Points::Sums(all) => {
            let all = all.into_iter().map(|(key, count, sum)| SummaryDataPoint {
                attributes: attributes(&key),
                start_time_unix_nano,
                time_unix_nano,
                count,
                sum,
                ..SummaryDataPoint::default()
            });
            Data::Summary(Summary { data_points: all.collect() })
        }
    };
    Metric {
        name: name.to_owned(),
        description: help.to_owned(),
        unit: unit(name).to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

/// Divides metrics into parts of at most `most` data points each, so that a receiver that bounds its
/// messages takes them. A metric with more points is in several parts.
pub(crate) fn parts(metrics: Vec<Metric>, most: usize) -> Vec<Vec<Metric>> {
    let (mut parts, mut room) = (vec![Vec::new()], most);
    for mut metric in metrics {
        loop {
            let rest = split_off(&mut metric, room);
            room -= points(&metric);
            parts.last_mut().expect("begun").push(metric);
            if rest.is_none() && room > 0 {
                break;
            }
            parts.push(Vec::new());
            room = most;
            match rest {
                Some(rest) => metric = rest,
                None => break,
            }
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// Takes the points after the first `keep` out of a metric, as a metric of their own.
fn split_off(metric: &mut Metric, keep: usize) -> Option<Metric> {
    if points(metric) <= keep {
        return None;
    }
    let data = match metric.data.as_mut()? {
        Data::Gauge(gauge) => Data::Gauge(Gauge { data_points: gauge.data_points.split_off(keep) }),
        Data::Sum(sum) => Data::Sum(Sum {
            data_points: sum.data_points.split_off(keep),
            aggregation_temporality: sum.aggregation_temporality,
            is_monotonic: sum.is_monotonic,
        }),
        Data::Histogram(all) => Data::Histogram(Histogram {
            data_points: all.data_points.split_off(keep),
            aggregation_temporality: all.aggregation_temporality,
        }),
        Data::Summary(all) => {
            Data::Summary(Summary { data_points: all.data_points.split_off(keep) })
        }
        Data::ExponentialHistogram(_) => return None,
    };
    Some(Metric {
        name: metric.name.clone(),
        description: metric.description.clone(),
        unit: metric.unit.clone(),
        data: Some(data),
        ..Metric::default()
    })
}

/// The data points of a metric.
pub(crate) fn points(metric: &Metric) -> usize {
    match &metric.data {
        Some(Data::Gauge(gauge)) => gauge.data_points.len(),
        Some(Data::Sum(sum)) => sum.data_points.len(),
        Some(Data::Histogram(histogram)) => histogram.data_points.len(),
        Some(Data::Summary(summary)) => summary.data_points.len(),
        Some(Data::ExponentialHistogram(_)) | None => 0,
    }
}

/// The unit in OpenTelemetry's notation (UCUM), by the end of the name. Without a known one it is empty:
/// `1` would make readers append `_ratio` to the name of a gauge.
fn unit(name: &str) -> &'static str {
    match name.strip_suffix("_total").unwrap_or(name) {
        "gen_ai.client.token.usage" => "{token}",
        name if name.starts_with("gen_ai.") => "s",
        name if name.ends_with("_seconds") => "s",
        name if name.ends_with("_bytes") => "By",
        name if name.ends_with("_tokens") => "{token}",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn each_kind_of_figure_has_its_kind_of_data() {
        let key = || Key::from_parts("x", vec![metrics::Label::new("pool", "a")]);
        let (began, now) = (UNIX_EPOCH, UNIX_EPOCH + Duration::from_secs(1));
        let made = |name, points| metric(name, "Words", points, began, now);

        let counter = made("forebay_requests_total", Points::Counts(vec![(key(), 3)]));
        let Some(Data::Sum(sum)) = counter.data else { panic!("{counter:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.aggregation_temporality, AggregationTemporality::Cumulative as i32);
        let [point] = sum.data_points.as_slice() else { panic!("{sum:?}") };
        assert_eq!(point.value, Some(NumberValue::AsInt(3)));
        assert_eq!(point.attributes, [attribute("pool", Value::from("a"))]);
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (0, 1_000_000_000));

        let gauge = made("forebay_queue_bytes", Points::Numbers(vec![(key(), 2.5)]));
        assert_eq!((gauge.unit.as_str(), gauge.description.as_str()), ("By", "Words"));
        let Some(Data::Gauge(gauge)) = gauge.data else { panic!("{gauge:?}") };
        assert_eq!(gauge.data_points[0].value, Some(NumberValue::AsDouble(2.5)));

        let buckets = Points::Buckets(&[0.5, 1.0], vec![(key(), vec![1, 0, 2], 7.25)]);
        let histogram = made("gen_ai.server.request.duration", buckets);
        assert_eq!(histogram.unit, "s");
        let Some(Data::Histogram(histogram)) = histogram.data else { panic!("{histogram:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((point.count, point.sum), (3, Some(7.25)));
        assert_eq!(
            (&point.bucket_counts[..], &point.explicit_bounds[..]),
            (&[1, 0, 2][..], &[0.5, 1.0][..])
        );
    }

    #[test]
    fn a_sum_without_buckets_is_a_summary() {
        let points = Points::Sums(vec![(Key::from_name("x"), 3, 1.5)]);
        let made = metric("forebay_endpoint_ttft_seconds", "", points, UNIX_EPOCH, UNIX_EPOCH);
        let Some(Data::Summary(summary)) = made.data else { panic!("{made:?}") };
        assert_eq!((summary.data_points[0].count, summary.data_points[0].sum), (3, 1.5));
    }

    #[test]
    fn parts_have_all_points_in_their_order_and_none_has_too_many() {
        let gauge = |name: &str, count: usize| {
            let key = |n| Key::from_parts("x", vec![metrics::Label::new("n", format!("{n}"))]);
            let all = (0..count).map(|n| (key(n), n as f64)).collect();
            metric(name, "", Points::Numbers(all), UNIX_EPOCH, UNIX_EPOCH)
        };
        let shown = |sizes: &[usize]| {
            let all = sizes.iter().enumerate().map(|(n, size)| gauge(&format!("m{n}"), *size));
            let parts = parts(all.collect(), 4);
            let part = |part: &Vec<Metric>| {
                let one = part.iter().map(|metric| format!("{}:{}", metric.name, points(metric)));
                one.collect::<Vec<_>>().join(" ")
            };
            parts.iter().map(part).collect::<Vec<_>>()
        };
        assert_eq!(shown(&[]), [""; 0]);
        assert_eq!(shown(&[3]), ["m0:3"]);
        assert_eq!(shown(&[4, 1]), ["m0:4", "m1:1"]);
        assert_eq!(shown(&[1, 2, 3]), ["m0:1 m1:2 m2:1", "m2:2"]);
        assert_eq!(shown(&[9]), ["m0:4", "m0:4", "m0:1"]);
        let whole = gauge("m", 6);
        let Some(Data::Gauge(all)) = &whole.data else { panic!("{whole:?}") };
        let divided = parts(vec![whole.clone()], 4).into_iter().flatten();
        let divided = divided.flat_map(|metric| match metric.data {
            Some(Data::Gauge(gauge)) => gauge.data_points,
            other => panic!("{other:?}"),
        });
        assert_eq!(divided.collect::<Vec<_>>(), all.data_points);
    }

    #[test]
    fn units_are_known_by_the_names() {
        for (name, want) in [
            ("forebay_ttft_seconds", "s"),
            ("forebay_process_cpu_seconds_total", "s"),
            ("forebay_prompt_tokens_total", "{token}"),
            ("gen_ai.client.token.usage", "{token}"),
            ("forebay_queue_depth", ""),
        ] {
            assert_eq!(unit(name), want, "{name}");
        }
    }
}
