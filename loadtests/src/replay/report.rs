//! Results as a table, as JSON, and as an HTML page.

use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;

use forebay_config::{Hold, Replay, Scaling};

use super::contestants::forebay::Change;
use super::contestants::optimum;
use super::measure::{Quantiles, Report};
use super::scenario::Scenario;
use super::trace::{SECOND, Trace};

mod html;

/// In place of a figure that does not exist.
const NOTHING: &str = "–";

/// Hours of a month, as clouds count them.
const MONTH: f64 = 730.0;

/// The results of all contestants. Their JSON is one flat object, with a list of contestants.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Results {
    #[serde(flatten)]
    pub(crate) load: Load,
    #[serde(flatten)]
    pub(crate) setting: Setting,
    /// GPU-hours that the work takes in full batches: no fleet that answers every request needs less.
    pub(crate) floor_gpu_hours: f64,
    /// Arrivals per second, between the points of the plots.
    pub(crate) demand: Vec<f64>,
    /// Forebay's changes of the count, with their reasons.
    pub(crate) changes: Vec<Change>,
    pub(crate) contestants: Vec<Report>,
    /// All that is needed to make these results again, besides the trace.
    pub(crate) origin: Option<Origin>,
}

/// The program and the settings that made the results.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Origin {
    pub(crate) version: String,
    pub(crate) seed: u64,
    pub(crate) speed_up: f64,
    pub(crate) max_in_flight: u32,
    pub(crate) scaling: Scaling,
    pub(crate) hold: Hold,
    pub(crate) replay: Replay,
}

impl Origin {
    pub(crate) fn new(scenario: &Scenario, speed_up: f64, version: &str) -> Self {
        let pool = &scenario.pool;
        Self {
            version: version.to_owned(),
            seed: scenario.model.seed,
            speed_up,
            max_in_flight: pool.max_in_flight,
            scaling: pool.scaling.clone(),
            hold: pool.hold.clone(),
            replay: scenario.config.replay.clone().unwrap_or_default(),
        }
    }
}

/// The load that was played.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Load {
    pub(crate) pool: String,
    pub(crate) trace: String,
    pub(crate) requests: usize,
    pub(crate) hours: f64,
}

/// The objective and the replicas, the same for every contestant.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Setting {
    pub(crate) objective_ttft_seconds: f64,
    pub(crate) objective_share: f64,
    pub(crate) cold_start_seconds: f64,
    pub(crate) min_replicas: u32,
    pub(crate) max_replicas: u32,
    pub(crate) gpus_per_replica: u32,
    pub(crate) gpu_hour_price: f64,
}

impl Load {
    pub(crate) fn new(scenario: &Scenario, trace: &Trace) -> Self {
        Self {
            pool: scenario.pool.name.clone(),
            trace: trace.name.clone(),
            requests: trace.requests.len(),
            hours: trace.length as f64 / 3.6e9,
        }
    }
}

impl Setting {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        Self {
            objective_ttft_seconds: scenario.model.objective as f64 / 1e6,
            objective_share: scenario.share,
            cold_start_seconds: scenario.model.cold_start.median() as f64 / 1e6,
            min_replicas: scenario.bounds.min,
            max_replicas: scenario.bounds.max,
            gpus_per_replica: scenario.price.gpus,
            gpu_hour_price: scenario.price.gpu_hour,
        }
    }
}

impl Results {
    /// Savings are relative to the second report, the fixed fleet.
    pub(crate) fn new(
        scenario: &Scenario,
        trace: &Trace,
        mut reports: Vec<Report>,
        changes: Vec<Change>,
    ) -> Self {
        let fleet = reports.get(1).map_or(0.0, |fixed| fixed.fleet.gpu_hours);
        for report in &mut reports {
            let comparable =
                fleet > 0.0 && (report.service.answered > 0 || trace.requests.is_empty());
            report.fleet.saving = comparable.then(|| 1.0 - report.fleet.gpu_hours / fleet);
        }
        let demand = demand(trace, &reports[0].series.at_seconds);
        let model = &scenario.model;
        let (load, setting) = (Load::new(scenario, trace), Setting::new(scenario));
        let floor_gpu_hours =
            optimum::floor(trace, model) as f64 / 3.6e9 * f64::from(scenario.price.gpus);
        Self { load, setting, floor_gpu_hours, demand, changes, contestants: reports, origin: None }
    }
}

/// Arrivals per second between each point and the one before.
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

/// A time in a short form.
pub(crate) fn seconds(value: f64) -> String {
    match value {
        v if v < 0.0005 => "0".to_owned(),
        v if v < 0.9995 => format!("{:.0} ms", v * 1e3),
        v if v < 99.95 => format!("{v:.1} s"),
        v => format!("{v:.0} s"),
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.1} %", share * 100.0)
}

/// A saving, or how many times as much was paid where that is more than twice.
fn saved(saving: Option<f64>) -> String {
    match saving {
        None => NOTHING.to_owned(),
        Some(saving) if saving < -1.0 => format!("costs {:.0}×", 1.0 - saving),
        Some(saving) => percent(saving),
    }
}

/// The heads of the columns, then a row for each report.
fn cells(results: &Results) -> Vec<Vec<String>> {
    let price = results.setting.gpu_hour_price > 0.0;
    let mut head = vec![
        "",
        "in time",
        "gave up",
        "TTFT p50",
        "TTFT p95",
        "TTFT p99",
        "hold p50",
        "hold p95",
        "hold p99",
        "GPU-hours",
        "saved",
        "mean",
        "peak",
        "starts",
    ];
    if price {
        head.extend(["cost", "a month"]);
    }
    let mut rows = vec![head.into_iter().map(str::to_owned).collect::<Vec<_>>()];
    for report in &results.contestants {
        let quantiles = |of: Option<Quantiles>| match of {
            Some(of) => [of.p50, of.p95, of.p99].map(seconds),
            None => [(); 3].map(|()| NOTHING.to_owned()),
        };
        let mut row = vec![report.name.clone(), percent(report.service.share_within)];
        row.push(report.service.gave_up.to_string());
        row.extend(quantiles(report.service.ttft_seconds));
        row.extend(quantiles(report.service.hold_seconds));
        row.extend([format!("{:.2}", report.fleet.gpu_hours), saved(report.fleet.saving)]);
        row.push(format!("{:.2}", report.fleet.mean_replicas));
        row.extend(
            [report.fleet.peak_replicas, report.fleet.starts].map(|count| count.to_string()),
        );
        if price {
            row.push(format!("{:.2}", report.fleet.cost));
            let month = report.fleet.cost / results.load.hours.max(f64::MIN_POSITIVE) * MONTH;
            row.push(format!("{month:.0}"));
        }
        rows.push(row);
    }
    rows
}

/// The length of a load, in the unit that says most.
pub(super) fn span(hours: f64) -> String {
    match hours * 3600.0 {
        seconds if seconds < 120.0 => format!("{seconds:.0} s"),
        seconds if seconds < 7200.0 => format!("{:.0} min", seconds / 60.0),
        _ => format!("{hours:.1} h"),
    }
}

/// A sentence about the load and its setting.
fn summary(results: &Results) -> String {
    let Results { load, setting, .. } = results;
    format!(
        "{} request{} in {}; objective: TTFT within {} for {}; a start takes {}; {} to {} \
         replicas of {} GPU{}",
        load.requests,
        if load.requests == 1 { "" } else { "s" },
        span(load.hours),
        seconds(setting.objective_ttft_seconds),
        percent(setting.objective_share),
        seconds(setting.cold_start_seconds),
        setting.min_replicas,
        setting.max_replicas,
        setting.gpus_per_replica,
        if setting.gpus_per_replica == 1 { "" } else { "s" },
    ) + &if setting.gpu_hour_price > 0.0 {
        format!(
            "; cost in the currency of gpuHourPrice ({}), a month has {MONTH} hours",
            setting.gpu_hour_price
        )
    } else {
        String::new()
    }
}

/// The table for a terminal.
pub(crate) fn table(results: &Results) -> String {
    let title = format!("{} on {}: {}", results.load.pool, results.load.trace, summary(results));
    format!("{title}\n\n{}", aligned(&cells(results)))
}

/// Rows of cells as lines, in columns.
pub(crate) fn aligned(rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in rows {
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

/// Writes `report.html` and `results.json`.
pub(crate) fn write(folder: &Path, results: &Results) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let mut json = serde_json::to_string_pretty(results)?;
    json.push('\n');
    std::fs::write(folder.join("results.json"), json)?;
    std::fs::write(folder.join("report.html"), html::page(results))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_has_the_unit_that_says_most() {
        let lengths = [2.0 / 3600.0, 0.5, 0.67, 24.0, 168.0].map(span);
        assert_eq!(lengths, ["2 s", "30 min", "40 min", "24.0 h", "168.0 h"]);
    }

    #[test]
    fn a_saving_is_a_share_or_a_multiple_and_nothing_without_service() {
        assert_eq!(saved(Some(0.661)), "66.1 %");
        assert_eq!(saved(Some(-0.4)), "-40.0 %");
        assert_eq!(saved(Some(-36.15)), "costs 37×");
        assert_eq!(saved(None), NOTHING);
    }
}
