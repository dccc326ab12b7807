//! The metrics of this crate.

use std::time::{SystemTime, UNIX_EPOCH};

use metrics::{Counter, Unit, counter, describe_counter, describe_gauge, gauge};

const DROPPED: &str = "forebay_dropped_lines_total";
const BUILD_INFO: &str = "forebay_build_info";
const RELOADS: &str = "forebay_reloads_total";
const LAST_RELOAD: &str = "forebay_last_reload_taken";
const LAST_RELOAD_TIME: &str = "forebay_last_reload_timestamp_seconds";
const CLOSED_CONNECTIONS: &str = "forebay_listener_closed_connections_total";

/// The value of a gauge that has nothing to say at present: `/metrics` and exports leave it out until it is
/// set again. It is one NaN of many; a figure that is unknown is `f64::NAN`, which is shown.
pub const WITHDRAWN: f64 = f64::from_bits(0x7ff8_666f_7265_6261);

/// Whether a gauge's value is [`WITHDRAWN`].
#[must_use]
pub fn is_withdrawn(value: f64) -> bool {
    value.to_bits() == WITHDRAWN.to_bits()
}

/// Help texts.
pub fn describe() {
    crate::shortage::describe();
    describe_gauge!(BUILD_INFO, "Always 1, by version and commit of this program");
    describe_counter!(RELOADS, "Files read again, by what they hold and whether they were taken");
    describe_gauge!(
        LAST_RELOAD,
        "1 if a file was taken when it was read last, 0 if it was refused, by what it holds"
    );
    describe_gauge!(
        LAST_RELOAD_TIME,
        Unit::Seconds,
        "When a file was taken last, in seconds since 1970, by what it holds"
    );
    describe_counter!(
        DROPPED,
        "Lines that could not be written, or not fast enough, by output (log, arrivals)"
    );
    describe_counter!(
        CLOSED_CONNECTIONS,
        "Connections closed because a listener had too many, by listener (admin, keda): the one \
         that had waited longest, or the new one where none waited"
    );
}

/// Looked up at each use: the log is written before the recorder of metrics is installed.
pub(crate) fn dropped_lines(output: &'static str) -> Counter {
    counter!(DROPPED, "output" => output)
}

pub(crate) fn closed_connections(listener: &'static str) -> Counter {
    counter!(CLOSED_CONNECTIONS, "listener" => listener)
}

/// Shows which program this is.
pub fn set_build_info(version: &'static str, commit: &'static str) {
    gauge!(BUILD_INFO, "version" => version, "commit" => commit).set(1.0);
}

/// Notes that a file was taken at the start.
pub fn loaded(what: &'static str) {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    gauge!(LAST_RELOAD_TIME, "what" => what).set(since.as_secs_f64());
    gauge!(LAST_RELOAD, "what" => what).set(1.0);
}

/// Counts a file that was read again.
pub fn reloaded(what: &'static str, taken: bool) {
    let outcome = if taken { "taken" } else { "refused" };
    counter!(RELOADS, "what" => what, "outcome" => outcome).increment(1);
    if taken {
        loaded(what);
    } else {
        gauge!(LAST_RELOAD, "what" => what).set(0.0);
    }
}
