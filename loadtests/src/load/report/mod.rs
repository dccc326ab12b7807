//! Results: as values for JSON, as a table for the terminal, and as a page.
//!
//! Pure: measurements in, text out.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;

use super::arrivals::Arrivals;
use super::cpu::CpuTime;
use super::generator::Generated;
use super::measurements::{Ending, Interval, Latencies, Measurements};
use super::units::RateRange;
use super::workload::Workload;

pub(crate) mod page;

/// Everything that a run found out. Seconds unless a name says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Summary {
    /// The load, in words.
    pub(crate) load: String,
    pub(crate) endpoint: String,
    pub(crate) model: String,
    pub(crate) seconds: f64,
    /// Whether Ctrl-C ended the run.
    pub(crate) interrupted: bool,
    pub(crate) requests: RequestCounts,
    pub(crate) latency: LatencySummary,
    /// Of the process that `--cpu-of` names.
    pub(crate) cpu: Option<CpuSummary>,
    pub(crate) generator_cpu: CpuSummary,
    pub(crate) over_time: OverTime,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RequestCounts {
    pub(crate) sent: u64,
    pub(crate) complete: u64,
    /// In flight when Ctrl-C ended the run.
    pub(crate) unfinished: u64,
    /// Requests that ended otherwise, by how they ended.
    pub(crate) failures: BTreeMap<String, u64>,
    /// Streams with a token that was missing, double or out of its place.
    pub(crate) misordered: u64,
    /// Requests that went out more than 1 ms after their time.
    pub(crate) late: u64,
    pub(crate) most_in_flight: u64,
    pub(crate) per_second: f64,
    /// Events of streams that carried a token.
    pub(crate) tokens: u64,
    pub(crate) tokens_per_second: f64,
}

/// Quantiles; `null` where nothing was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LatencySummary {
    /// Intended time to first token, of streams.
    pub(crate) ttft: Option<Distribution>,
    /// From one token of a stream to the next.
    pub(crate) itl: Option<Distribution>,
    /// Intended time to the end of the answer.
    pub(crate) whole: Option<Distribution>,
    /// Intended time to the time of sending.
    pub(crate) lateness: Option<Distribution>,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Distribution {
    pub(crate) mean: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p95: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
    pub(crate) max: f64,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CpuSummary {
    pub(crate) pid: u32,
    pub(crate) user: f64,
    pub(crate) system: f64,
    /// Cores in use, on average.
    pub(crate) cores: f64,
    pub(crate) micros_per_request: Option<f64>,
    /// `null` where no request streamed.
    pub(crate) micros_per_token: Option<f64>,
}

/// One value for each interval; intervals end at `at`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OverTime {
    pub(crate) at: Vec<f64>,
    pub(crate) sent_per_second: Vec<f64>,
    pub(crate) complete_per_second: Vec<f64>,
    pub(crate) failed_per_second: Vec<f64>,
    pub(crate) tokens_per_second: Vec<f64>,
    pub(crate) most_in_flight: Vec<u64>,
    pub(crate) ttft_p50: Vec<Option<f64>>,
    pub(crate) ttft_p99: Vec<Option<f64>>,
    pub(crate) latency_p50: Vec<Option<f64>>,
    pub(crate) latency_p99: Vec<Option<f64>>,
}

impl Summary {
    pub(crate) fn new(
        load: String,
        endpoint: String,
        generated: &Generated,
        cpu_of: Option<u32>,
    ) -> Self {
        let Generated { model, measurements, seconds, interrupted, cpu, own_cpu } = generated;
        let cpu =
            cpu.zip(cpu_of).map(|(cpu, pid)| CpuSummary::new(pid, cpu, *seconds, measurements));
        Self {
            load,
            endpoint,
            model: model.clone(),
            seconds: *seconds,
            interrupted: *interrupted,
            requests: RequestCounts::new(measurements, *seconds),
            latency: LatencySummary {
                ttft: Distribution::of(&measurements.latencies.ttft),
                itl: Distribution::of(&measurements.latencies.itl),
                whole: Distribution::of(&measurements.latencies.whole),
                lateness: Distribution::of(&measurements.latencies.lateness),
            },
            cpu,
            generator_cpu: CpuSummary::new(std::process::id(), *own_cpu, *seconds, measurements),
            over_time: OverTime::new(measurements),
        }
    }

    /// The failures in words.
    pub(crate) fn failures(&self) -> String {
        let each = self.requests.failures.iter().map(|(name, count)| format!("{count} × {name}"));
        each.collect::<Vec<_>>().join(", ")
    }
}

impl RequestCounts {
    fn new(measured: &Measurements, seconds: f64) -> Self {
        let failures = measured.endings.iter().filter(|(ending, _)| **ending != Ending::Complete);
        Self {
            sent: measured.sent,
            complete: measured.complete(),
            unfinished: measured.flight.now,
            failures: failures.map(|(ending, count)| (ending.name(), *count)).collect(),
            misordered: measured.misordered,
            late: measured.late,
            most_in_flight: measured.flight.most,
            per_second: per_second(measured.ended, seconds),
            tokens: measured.tokens,
            tokens_per_second: per_second(measured.tokens, seconds),
        }
    }
}

fn per_second(count: u64, seconds: f64) -> f64 {
    if seconds > 0.0 { count as f64 / seconds } else { 0.0 }
}

impl Distribution {
    fn of(latencies: &Latencies) -> Option<Self> {
        (latencies.count() > 0).then(|| Self {
            mean: latencies.mean(),
            p50: latencies.quantile(0.5),
            p90: latencies.quantile(0.9),
            p95: latencies.quantile(0.95),
            p99: latencies.quantile(0.99),
            p999: latencies.quantile(0.999),
            max: latencies.most(),
        })
    }
}

impl CpuSummary {
    fn new(pid: u32, cpu: CpuTime, seconds: f64, measured: &Measurements) -> Self {
        let total = cpu.total().as_secs_f64();
        let per = |count: u64| (count > 0).then(|| total * 1e6 / count as f64);
        Self {
            pid,
            user: cpu.user.as_secs_f64(),
            system: cpu.system.as_secs_f64(),
            cores: if seconds > 0.0 { total / seconds } else { 0.0 },
            micros_per_request: per(measured.ended),
            micros_per_token: per(measured.tokens),
        }
    }
}

impl OverTime {
    fn new(measured: &Measurements) -> Self {
        let intervals = &measured.over_time;
        let length = measured.interval().as_secs_f64();
        let rate = |count: fn(&Interval) -> u64| {
            intervals.iter().map(|interval| count(interval) as f64 / length).collect()
        };
        let quantile = |of: fn(&Interval) -> &Option<Latencies>, quantile: f64| {
            let values = intervals.iter().map(|interval| of(interval).as_ref());
            values.map(|latencies| latencies.map(|l| l.quantile(quantile))).collect()
        };
        Self {
            at: (1..=intervals.len()).map(|count| count as f64 * length).collect(),
            sent_per_second: rate(|interval| interval.sent),
            complete_per_second: rate(|interval| interval.complete),
            failed_per_second: rate(|interval| interval.failed),
            tokens_per_second: rate(|interval| interval.tokens),
            most_in_flight: intervals.iter().map(|interval| interval.most_in_flight).collect(),
            ttft_p50: quantile(|interval| &interval.ttft, 0.5),
            ttft_p99: quantile(|interval| &interval.ttft, 0.99),
            latency_p50: quantile(|interval| &interval.latency, 0.5),
            latency_p99: quantile(|interval| &interval.latency, 0.99),
        }
    }
}

/// The load in words: `poisson 20/s for 30s`.
pub(crate) fn title(workload: &Workload) -> String {
    let length =
        forebay_config::format_duration(Duration::from_millis(workload.length.as_millis() as u64));
    let load = match &workload.arrivals {
        Arrivals::Poisson(rate) => format!("poisson {rate}/s"),
        Arrivals::Constant(rate) => format!("constant {rate}/s"),
        Arrivals::Ramp(RateRange { from, to }) => format!("ramp {from}/s to {to}/s"),
        Arrivals::Trace(trace) => format!("trace {}", trace.name),
        Arrivals::Clients(clients) => format!("{clients} clients in a closed loop"),
    };
    format!("{load} for {length}")
}

/// A time, as short as it is clear.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if v < 0.000_000_5 => "0".to_owned(),
        v if v < 0.000_999_5 => format!("{:.0} µs", v * 1e6),
        v if v < 0.099_95 => format!("{:.2} ms", v * 1e3),
        v if v < 0.999_5 => format!("{:.0} ms", v * 1e3),
        v => format!("{v:.2} s"),
    }
}

fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        "0 %".to_owned()
    } else {
        format!("{:.1} %", part as f64 * 100.0 / whole as f64)
    }
}

/// The lines above the table of latencies: a name, and its figures in words.
fn lines(summary: &Summary) -> Vec<(&'static str, String)> {
    let requests = &summary.requests;
    let mut lines = vec![(
        "requests",
        format!(
            "{} sent, {} complete; {:.1}/s over {:.1} s; at most {} in flight",
            requests.sent,
            requests.complete,
            requests.per_second,
            summary.seconds,
            requests.most_in_flight
        ),
    )];
    if !requests.failures.is_empty() {
        let failed = requests.failures.values().sum();
        let share = share(failed, requests.sent);
        lines.push(("failed", format!("{failed} ({share}): {}", summary.failures())));
    }
    if requests.misordered > 0 {
        lines.push(("order", format!("{} streams with tokens out of order", requests.misordered)));
    }
    if summary.interrupted {
        lines.push(("interrupted", format!("{} requests unfinished", requests.unfinished)));
    }
    if requests.tokens > 0 {
        let (tokens, rate) = (requests.tokens, requests.tokens_per_second);
        lines.push(("tokens", format!("{tokens} streamed, {rate:.0}/s")));
    }
    if let Some(lateness) = summary.latency.lateness {
        let late = format!("{} ({})", requests.late, share(requests.late, requests.sent));
        let most = seconds(lateness.max);
        lines.push(("late sends", format!("{late} by more than 1 ms; the latest by {most}")));
    }
    let cpu = |cpu: &CpuSummary| {
        let mut text = format!("{:.0} % of a core", cpu.cores * 100.0);
        if let Some(micros) = cpu.micros_per_request {
            let _ = write!(text, ", {micros:.1} µs a request");
        }
        if let Some(micros) = cpu.micros_per_token {
            let _ = write!(text, ", {micros:.1} µs a token");
        }
        text
    };
    if let Some(measured) = &summary.cpu {
        lines.push(("CPU", format!("process {}: {}", measured.pid, cpu(measured))));
    }
    lines.push(("generator", cpu(&summary.generator_cpu)));
    lines
}

const COLUMNS: [&str; 7] = ["p50", "p90", "p95", "p99", "p99.9", "max", "mean"];

/// The latencies that were measured: name and cells.
fn latencies(summary: &Summary) -> Vec<(&'static str, [String; 7])> {
    let LatencySummary { ttft, itl, whole, .. } = summary.latency;
    [("TTFT", ttft), ("ITL", itl), ("whole answer", whole)]
        .into_iter()
        .filter_map(|(name, distribution)| {
            let Distribution { mean, p50, p90, p95, p99, p999, max } = distribution?;
            Some((name, [p50, p90, p95, p99, p999, max, mean].map(seconds)))
        })
        .collect()
}

/// Stands in place of the latencies where none was measured.
const NO_LATENCIES: &str = "No answer was complete, so there are no latencies.";

/// A hint where the figures should not be trusted.
fn warning(summary: &Summary) -> Option<String> {
    let requests = &summary.requests;
    let open_loop = !summary.load.contains("closed loop");
    (open_loop && requests.late * 100 > requests.sent).then(|| {
        format!(
            "warning: {} of the requests went out late; a busy machine, too many requests for one \
             core or too few --connections can be the cause",
            share(requests.late, requests.sent)
        )
    })
}

/// For the terminal.
pub(crate) fn table(summary: &Summary) -> String {
    let mut text = format!("{}, to {} ({})\n\n", summary.load, summary.endpoint, summary.model);
    for (name, figures) in lines(summary) {
        let _ = writeln!(text, "{name:<13} {figures}");
    }
    let rows = latencies(summary);
    if rows.is_empty() {
        let _ = writeln!(text, "\n{NO_LATENCIES}");
    } else {
        let _ = write!(text, "\n{:<13}", "");
        for column in COLUMNS {
            let _ = write!(text, " {column:>9}");
        }
        text.push('\n');
        for (name, cells) in rows {
            let _ = write!(text, "{name:<13}");
            for cell in cells {
                let _ = write!(text, " {cell:>9}");
            }
            text.push('\n');
        }
    }
    if let Some(warning) = warning(summary) {
        let _ = writeln!(text, "\n{warning}");
    }
    text
}
