//! Where log lines go and how they look.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::uptime;

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("FOREBAY_LOG").unwrap_or_else(|_| EnvFilter::new(default))
}

/// A few calm lines for somebody who watches: what happens, not each request.
pub(crate) fn for_people() {
    tracing_subscriber::fmt()
        .with_env_filter(filter("warn,forebay=info,forebay_gateway=info,forebay_scaler=info,forebay::access=off"))
        .with_target(false)
        .with_timer(uptime())
        .with_writer(std::io::stderr)
        .init();
}

/// A line a request and a line a decision, as JSON.
pub(crate) fn for_machines() {
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter("warn,forebay=info,forebay_gateway=info,forebay_scaler=info,forebay::access=info"))
        .with_writer(std::io::stderr)
        .init();
}
