//! Metrics of the client side: connections, and the feed that tells of replicas.

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

const CONNECTIONS: &str = "forebay_connections";
const REFUSED_CONNECTIONS: &str = "forebay_refused_connections_total";
const MADE_ROOM: &str = "forebay_closed_for_room_total";
const SCALER_HEARD: &str = "forebay_scaler_heard";

pub(super) fn describe() {
    describe_gauge!(CONNECTIONS, "Open connections of clients");
    describe_counter!(
        REFUSED_CONNECTIONS,
        "Connections closed at once, by the limit that was reached"
    );
    describe_counter!(
        MADE_ROOM,
        "Connections without a request that were closed to make room for another"
    );
    describe_gauge!(SCALER_HEARD, "1 while the scaler's feed is heard, 0 while it is not");
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

pub(crate) fn scaler_heard() -> Gauge {
    gauge!(SCALER_HEARD)
}
