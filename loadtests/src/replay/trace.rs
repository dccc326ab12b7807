//! Recorded and generated loads: the arrivals of requests and their lengths.

use std::path::Path;

use anyhow::{Context, ensure};

mod content;
pub(crate) mod conversations;
mod file;
pub(crate) mod generate;
mod mooncake;

pub(crate) use content::PromptContent;
use conversations::CONVERSATIONS;

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
    /// The beginning, in milliseconds since the epoch: schedules and times of day depend on it.
    pub(crate) began_ms: u64,
    /// Time from the beginning to the end, which may be later than the last arrival.
    pub(crate) length: Us,
    pub(crate) requests: Vec<Request>,
    /// The content of each request's prompt; empty if the load does not say what prompts have in
    /// common.
    pub(crate) contents: Vec<PromptContent>,
}

impl Trace {
    /// The content of a request's prompt, if it is known.
    pub(crate) fn content(&self, request: u32) -> Option<&PromptContent> {
        self.contents.get(request as usize)
    }

    /// Reads the file `text`, or else makes the generated trace of that name. Of a recording it takes
    /// the requests of `pool` alone.
    pub(crate) fn read(text: &str, pool: &str, seed: u64) -> anyhow::Result<Self> {
        let path = Path::new(text);
        if !path.exists() {
            if let Some(shape) = CONVERSATIONS.iter().find(|shape| shape.name == text) {
                return Ok(shape.generate(seed));
            }
            return generate::by_name(text, seed).with_context(|| {
                format!("there is no file `{text}`, and no generated trace of that name")
            });
        }
        let content = std::fs::read(path).with_context(|| format!("cannot read {text}"))?;
        let content = String::from_utf8(content).ok().with_context(|| {
            format!("{text} is not UTF-8 text; a trace is a file of CSV or of JSON lines in UTF-8")
        })?;
        let name = path.file_stem().map_or_else(|| text.to_owned(), |s| s.to_string_lossy().into());
        if content.trim_start().starts_with('{') {
            return mooncake::parse(&content, &name, text);
        }
        file::parse(&content, &name, text, pool)
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
