//! Recorded and generated load: when requests came, and how long they were.

use std::path::Path;

use anyhow::{Context, ensure};

mod csv;
pub(crate) mod generate;

/// Microseconds of simulated time since the trace began.
pub(crate) type Us = u64;

pub(crate) const SECOND: Us = 1_000_000;

/// One request of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) at: Us,
    pub(crate) prompt: u32,
    pub(crate) output: u32,
}

/// A load, in order of arrival.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Trace {
    pub(crate) name: String,
    /// Milliseconds since the epoch at its beginning: schedules and times of day follow from it.
    pub(crate) began_ms: u64,
    /// From its beginning to its end, which may be later than the last arrival.
    pub(crate) length: Us,
    pub(crate) requests: Vec<Request>,
}

impl Trace {
    /// The file or, where there is none of that name, the generated trace `text`. Of a recording
    /// only the requests of `pool` are taken.
    pub(crate) fn read(text: &str, pool: &str, seed: u64) -> anyhow::Result<Self> {
        let path = Path::new(text);
        if !path.exists() {
            return generate::by_name(text, seed).with_context(|| {
                format!("there is no file `{text}`, and no generated trace of that name")
            });
        }
        let content = std::fs::read(path).with_context(|| format!("cannot read {text}"))?;
        let content = String::from_utf8(content)
            .ok()
            .with_context(|| format!("{text} is not text; a trace is a CSV file in UTF-8"))?;
        let name = path.file_stem().map_or_else(|| text.to_owned(), |s| s.to_string_lossy().into());
        csv::parse(&content, &name, text, pool)
    }

    /// The same load in `1 / factor` of the time.
    pub(crate) fn faster(mut self, factor: f64) -> anyhow::Result<Self> {
        ensure!(
            factor.is_finite() && factor > 0.0,
            "--speed-up {factor}: must be a number above 0; 2 plays the load twice as fast"
        );
        let scaled = |at: Us| (at as f64 / factor).round() as Us;
        self.requests.iter_mut().for_each(|request| request.at = scaled(request.at));
        self.length = scaled(self.length);
        Ok(self)
    }
}
