//! Where log lines go and how they look.
//!
//! They are written on the side: a standard error that takes nothing, or is full or closed, holds
//! up nobody, and what could not be written is counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use forebay_bounds::{Lines, Output};
use forebay_config::{LogFormat, Logging};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// How long the last lines may take at the end.
const LAST: Duration = Duration::from_secs(1);

/// The log of this process. Dropping it writes the last lines, if they can be.
#[must_use = "dropping it ends the log"]
pub(crate) struct Log(Output);

impl Log {
    fn start() -> anyhow::Result<Self> {
        let output = Lines::stderr().and_then(|lines| Output::start("log", lines));
        let log = Self(output.context("cannot write a log")?);
        // The standard library's hook writes to standard error itself, and may wait there.
        std::panic::set_hook(Box::new(|info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("unnamed");
            let trace = Backtrace::capture();
            match trace.status() {
                BacktraceStatus::Captured => {
                    tracing::error!("thread {name} {info}\n{trace}");
                }
                _ => tracing::error!("thread {name} {info}"),
            }
        }));
        Ok(log)
    }

    /// Shows on `/metrics` what was dropped.
    pub(crate) fn show(&self) {
        self.0.show();
    }

    /// Writes the last lines, if they can be.
    pub(crate) fn finish(&self) {
        self.0.finish(LAST);
    }

    fn lines(&self) -> OnTheSide {
        OnTheSide(self.0.clone())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.finish();
    }
}

struct OnTheSide(Output);

impl<'a> MakeWriter<'a> for OnTheSide {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line(&self.0)
    }
}

/// Takes each line as a whole, as the subscriber hands it over.
struct Line<'a>(&'a Output);

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write(line);
        Ok(line.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// A few calm lines for somebody who watches: what happens, not each request.
pub(crate) fn for_people() -> anyhow::Result<Log> {
    let log = Log::start()?;
    tracing_subscriber::fmt()
        .with_env_filter(filter(&format!("{LEVELS},forebay::access=off,forebay::bounds=warn")))
        .with_target(false)
        .with_timer(SinceStart(Instant::now()))
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false)
        .with_writer(log.lines())
        .init();
    Ok(log)
}

/// A line a request and a line a decision, in the configured form.
pub(crate) fn for_machines(logging: &Logging) -> anyhow::Result<Log> {
    let log = Log::start()?;
    let access = if logging.access { "info" } else { "off" };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&format!("{LEVELS},forebay::access={access}")))
        .log_internal_errors(false)
        .with_writer(log.lines());
    match logging.format {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text => lines.with_ansi(false).init(),
    }
    Ok(log)
}

const LEVELS: &str =
    "warn,forebay=info,forebay_bounds=info,forebay_gateway=info,forebay_scaler=info";

/// Seconds since the start: what somebody who watches compares.
struct SinceStart(Instant);

impl FormatTime for SinceStart {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let since: Duration = self.0.elapsed();
        write!(w, "{:7.2}s", since.as_secs_f64())
    }
}
