//! The figures of the client side.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const CONNECTIONS: &str = "forebay_connections";
const REFUSED_CONNECTIONS: &str = "forebay_refused_connections_total";
const MADE_ROOM: &str = "forebay_closed_for_room_total";
const RELOADS: &str = "forebay_reloads_total";

pub(super) fn describe() {
    describe_gauge!(CONNECTIONS, "Connections of clients now");
    describe_counter!(REFUSED_CONNECTIONS, "Connections closed at once, by the bound they broke");
    describe_counter!(
        MADE_ROOM,
        "Connections without a request that were to close because another had no place"
    );
    describe_counter!(RELOADS, "Files read anew, by what they are and whether they were taken");
}

pub(crate) fn connections() -> Gauge {
    gauge!(CONNECTIONS)
}

pub(crate) fn refused_connections(bound: &'static str) -> Counter {
    counter!(REFUSED_CONNECTIONS, "bound" => bound)
}

pub(crate) fn connections_that_made_room() -> Counter {
    counter!(MADE_ROOM)
}

/// Counts files that were read anew.
pub(crate) fn reload(what: &'static str, taken: bool) {
    let outcome = if taken { "taken" } else { "refused" };
    counter!(RELOADS, "what" => what, "outcome" => outcome).increment(1);
}
