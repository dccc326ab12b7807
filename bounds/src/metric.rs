//! The figures of this crate.

use metrics::{Counter, counter, describe_counter};

const DROPPED: &str = "forebay_dropped_lines_total";
const TURNED_AWAY: &str = "forebay_listener_closed_connections_total";

/// Help texts.
pub fn describe() {
    describe_counter!(
        DROPPED,
        "Lines that could not be written, or not fast enough, by output (log, arrivals)"
    );
    describe_counter!(
        TURNED_AWAY,
        "Connections closed because a listener had too many, by listener (admin, keda): the one \
         that had waited longest, or the new one where none waited"
    );
}

/// Asked for anew each time: a log is written before there are metrics.
pub(crate) fn dropped_lines(output: &'static str) -> Counter {
    counter!(DROPPED, "output" => output)
}

pub(crate) fn closed_connections(listener: &'static str) -> Counter {
    counter!(TURNED_AWAY, "listener" => listener)
}
