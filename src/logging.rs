//! The log: its lines and their form.
//!
//! A thread of its own writes the lines. A standard error that is full, closed or not read blocks no
//! other thread, and lines that could not be written are counted.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use forebay_base::output::{Lines, Output};
use forebay_config::{LogFormat, Logging};
use forebay_gateway::{AccessLogForm, set_access_log_form};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

/// Longest time to write the last lines.
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

    /// Shows the number of dropped lines on `/metrics`.
    pub(crate) fn show(&self) {
        self.0.show();
    }

    /// Writes the last lines, if they can be.
    pub(crate) fn finish(&self) {
        self.0.finish(LAST);
    }

    fn lines(&self) -> LogWriter {
        LogWriter(self.0.clone())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.finish();
    }
}

struct LogWriter(Output);

impl<'a> MakeWriter<'a> for LogWriter {
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

/// A log for a person who watches, with a sentence for each request and each decision.
pub(crate) fn for_people(logging: &Logging) -> anyhow::Result<Log> {
    let log = Log::start()?;
    let access = access(logging);
    tracing_subscriber::fmt()
        .with_env_filter(filter(&format!("{LEVELS},{access},forebay::bounds=warn")))
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .log_internal_errors(false)
        .with_target(false)
        .with_timer(SinceStart(Instant::now()))
        .with_writer(log.lines())
        .init();
    set_access_log_form(AccessLogForm::Sentence);
    Ok(log)
}

/// A log with a line for each request and each decision, in the configured format.
pub(crate) fn for_machines(logging: &Logging) -> anyhow::Result<Log> {
    let log = Log::start()?;
    let access = access(logging);
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter(&format!("{LEVELS},{access}")))
        .log_internal_errors(false)
        .with_writer(log.lines());
    match logging.format {
        LogFormat::Json => {
            lines.json().flatten_event(true).init();
            set_access_log_form(AccessLogForm::Json(log.0.clone()));
        }
        LogFormat::Text => lines.with_ansi(false).init(),
    }
    Ok(log)
}

const LEVELS: &str = "warn,forebay=info,forebay_base=info,forebay_gateway=info,forebay_scaler=info";

fn access(logging: &Logging) -> &'static str {
    if logging.access { "forebay::access=info" } else { "forebay::access=off" }
}

/// Seconds since the start.
#[derive(Clone)]
struct SinceStart(Instant);

impl FormatTime for SinceStart {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let since: Duration = self.0.elapsed();
        write!(w, "{:7.2}s", since.as_secs_f64())
    }
}
