//! Progress of a comparison: a bar on a terminal, or lines of JSON for a program that shows it.

use std::cell::Cell;
use std::io::IsTerminal as _;
use std::time::Duration;

use forebay_base::print;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;
use tokio::time::Instant;

use super::contestants::Contestant;
use super::measure::{FleetFigures, Report, ServiceFigures};
use super::report::{Load, Setting};
use super::trace::Trace;
use super::world::{Model, Run, play};

/// Points of the plots.
const POINTS: u32 = 720;
/// Least time between two lines about the same contestant.
const PACE: Duration = Duration::from_millis(200);

/// A report without its series, which are long.
#[derive(Serialize)]
struct Ended<'a> {
    name: &'a str,
    #[serde(flatten)]
    service: &'a ServiceFigures,
    #[serde(flatten)]
    fleet: &'a FleetFigures,
}

/// A place for progress.
pub(crate) enum Progress {
    Bar(ProgressBar),
    /// Standard output, a JSON object a line.
    Lines,
}

impl Progress {
    /// A bar, if standard error is a terminal.
    pub(crate) fn bar() -> Self {
        if !std::io::stderr().is_terminal() {
            return Self::Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(1000);
        if let Ok(style) = ProgressStyle::with_template("{msg:<10} {bar:40} {percent:>3} %") {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    /// The load and the setting are known.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub(crate) fn begun(&self, load: &Load, setting: &Setting) -> anyhow::Result<()> {
        self.line(&json!({"load": load, "setting": setting}))
    }

    /// A contestant has ended.
    ///
    /// # Errors
    /// Standard output can't be written.
    pub(crate) fn ended(&self, report: &Report) -> anyhow::Result<()> {
        let Report { name, service, fleet, .. } = report;
        self.line(&json!({"contestant": Ended { name, service, fleet }}))
    }

    fn line(&self, line: &serde_json::Value) -> anyhow::Result<()> {
        if matches!(self, Self::Lines) {
            print::out(format_args!("{line}\n"))?;
        }
        Ok(())
    }

    /// Plays a contestant.
    pub(crate) fn play(
        &self,
        name: &'static str,
        trace: &Trace,
        model: &Model,
        contestant: &mut dyn Contestant,
    ) -> Run {
        self.search(name, |report| {
            let length = trace.length.max(1) as f64;
            play(trace, model, contestant, POINTS, |now| report(now as f64 / length))
        })
    }

    /// Shows the share of its work that `work` reports.
    pub(crate) fn search<T>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut dyn FnMut(f64)) -> T,
    ) -> T {
        if let Self::Bar(bar) = self {
            bar.set_message(name);
            bar.set_position(0);
        }
        let last: Cell<Option<Instant>> = Cell::new(None);
        work(&mut |share: f64| match self {
            Self::Bar(bar) => bar.set_position((share * 1000.0) as u64),
            Self::Lines => {
                if last.get().is_none_or(|last| last.elapsed() >= PACE) {
                    last.set(Some(Instant::now()));
                    // Its reader may have left; the results fail then.
                    let _ = self.line(&json!({"playing": name, "share": share}));
                }
            }
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
