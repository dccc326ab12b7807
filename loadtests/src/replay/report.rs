//! Results as a table, as JSON, and as a page.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use super::contestants::optimum;
use super::measure::Report;
use super::scenario::Scenario;
use super::trace::{SECOND, Trace};

mod html;

/// Everything that came out.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    pub(crate) pool: String,
    pub(crate) trace: String,
    pub(crate) requests: usize,
    pub(crate) hours: f64,
    pub(crate) objective_ttft_seconds: f64,
    pub(crate) objective_share: f64,
    pub(crate) cold_start_seconds: f64,
    pub(crate) min_replicas: u32,
    pub(crate) max_replicas: u32,
    pub(crate) gpus_per_replica: u32,
    pub(crate) gpu_hour_price: f64,
    /// GPU-hours that the work itself takes at full batches: no fleet that answers all needs less.
    pub(crate) floor_gpu_hours: f64,
    /// Arrivals per second, between the plots' points.
    pub(crate) demand: Vec<f64>,
    pub(crate) contestants: Vec<Report>,
}

impl Results {
    /// The second report is the fixed fleet that savings are told against.
    pub(crate) fn new(scenario: &Scenario, trace: &Trace, mut reports: Vec<Report>) -> Self {
        let fleet = reports.get(1).map_or(0.0, |fixed| fixed.gpu_hours);
        for report in &mut reports {
            report.saving = if fleet > 0.0 { 1.0 - report.gpu_hours / fleet } else { 0.0 };
        }
        let demand = demand(trace, &reports[0].series.at_seconds);
        let model = &scenario.model;
        Self {
            pool: scenario.pool.name.clone(),
            trace: trace.name.clone(),
            requests: trace.requests.len(),
            hours: trace.length as f64 / 3.6e9,
            objective_ttft_seconds: model.objective as f64 / 1e6,
            objective_share: scenario.share,
            cold_start_seconds: model.cold_start.median() as f64 / 1e6,
            min_replicas: scenario.bounds.min,
            max_replicas: scenario.bounds.max,
            gpus_per_replica: scenario.price.gpus,
            gpu_hour_price: scenario.price.gpu_hour,
            floor_gpu_hours: optimum::floor(trace, model) as f64 / 3.6e9
                * f64::from(scenario.price.gpus),
            demand,
            contestants: reports,
        }
    }
}

/// Arrivals a second up to each point, from the one before.
fn demand(trace: &Trace, at: &[f64]) -> Vec<f64> {
    let mut next = 0;
    let mut before = 0.0;
    let mut rates = Vec::with_capacity(at.len());
    for point in at {
        let mut count = 0;
        while trace.requests.get(next).is_some_and(|r| r.at as f64 / SECOND as f64 <= *point) {
            (count, next) = (count + 1, next + 1);
        }
        let length: f64 = point - before;
        rates.push(if length > 0.0 { f64::from(count) / length } else { 0.0 });
        before = *point;
    }
    rates
}

/// A figure in seconds, as short as it is clear.
fn seconds(value: f64) -> String {
    match value {
        v if v < 0.0005 => "0".to_owned(),
        v if v < 0.9995 => format!("{:.0} ms", v * 1e3),
        v if v < 99.95 => format!("{v:.1} s"),
        v => format!("{v:.0} s"),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// What stands at the head of each column, and each report's row.
fn cells(results: &Results) -> Vec<Vec<String>> {
    let price = results.gpu_hour_price > 0.0;
    let mut head = vec![
        "",
        "in time",
        "gave up",
        "TTFT p50",
        "p95",
        "p99",
        "hold p50",
        "p95",
        "p99",
        "GPU-hours",
        "saved",
        "mean",
        "peak",
        "starts",
    ];
    if price {
        head.push("cost");
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for report in &results.contestants {
        let (ttft, hold) = (report.ttft_seconds, report.hold_seconds);
        let mut row = vec![report.name.clone(), percent(report.share_within)];
        row.push(report.gave_up.to_string());
        row.extend([ttft.p50, ttft.p95, ttft.p99, hold.p50, hold.p95, hold.p99].map(seconds));
        row.extend([format!("{:.2}", report.gpu_hours), percent(report.saving)]);
        row.push(format!("{:.2}", report.mean_replicas));
        row.extend([report.peak_replicas, report.starts].map(|count| count.to_string()));
        if price {
            row.push(format!("{:.2}", report.cost));
        }
        rows.push(row);
    }
    rows
}

/// One sentence on what was played.
fn summary(results: &Results) -> String {
    format!(
        "{} requests in {:.1} h; TTFT within {} wanted for {}; a start takes {}; {} to {} replicas \
         of {} GPU{}",
        results.requests,
        results.hours,
        seconds(results.objective_ttft_seconds),
        percent(results.objective_share),
        seconds(results.cold_start_seconds),
        results.min_replicas,
        results.max_replicas,
        results.gpus_per_replica,
        if results.gpus_per_replica == 1 { "" } else { "s" },
    )
}

/// For the terminal.
pub(crate) fn table(results: &Results) -> String {
    let rows = cells(results);
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = format!("{} on {}: {}\n\n", results.pool, results.trace, summary(results));
    for row in &rows {
        let mut line = String::new();
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let _ = if column == 0 {
                write!(line, "{cell:<width$}")
            } else {
                write!(line, "  {cell:>width$}")
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// `report.html` and `results.json`.
pub(crate) fn write(folder: &Path, results: &Results) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut json = serde_json::to_string_pretty(results)?;
    json.push('\n');
    std::fs::write(folder.join("results.json"), json)?;
    std::fs::write(folder.join("report.html"), html::page(results))?;
    Ok(())
}
