//! Where log lines go and how they look.

use std::fmt;
use std::io::IsTerminal;
use std::time::Duration;

use forebay_config::{LogFormat, Logging};
use tokio::time::Instant;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// A few calm lines for somebody who watches: what happens, not each request.
pub(crate) fn for_people() {
    tracing_subscriber::fmt()
        .with_env_filter(filter(
            "warn,forebay=info,forebay_gateway=info,forebay_scaler=info,forebay::access=off",
        ))
        .with_target(false)
        .with_timer(SinceStart(Instant::now()))
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_writer(std::io::stderr)
        .init();
}

/// A line a request and a line a decision, in the configured form.
pub(crate) fn for_machines(logging: &Logging) {
    let access = if logging.access { "info" } else { "off" };
    let levels = "warn,forebay=info,forebay_gateway=info,forebay_scaler=info";
    let filter = filter(&format!("{levels},forebay::access={access}"));
    let lines = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match logging.format {
        LogFormat::Json => lines.json().flatten_event(true).init(),
        LogFormat::Text => lines.with_ansi(false).init(),
    }
}

/// Seconds since the start: what somebody who watches compares.
struct SinceStart(Instant);

impl FormatTime for SinceStart {
    fn format_time(&self, w: &mut Writer<'_>) -> fmt::Result {
        let since: Duration = self.0.elapsed();
        write!(w, "{:7.2}s", since.as_secs_f64())
    }
}
