//! Metrics of WebSocket sessions, by pool and by tenant.

use std::time::Duration;

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};

use crate::answer::traffic::{SideTraffic, Traffic};

pub(super) const SECONDS: &str = "forebay_session_seconds";
const MESSAGES: &str = "forebay_session_messages_total";
const BYTES: &str = "forebay_session_bytes_total";
pub(super) const TENANT_SECONDS: &str = "forebay_tenant_session_seconds";
const TENANT_MESSAGES: &str = "forebay_tenant_session_messages_total";
const TENANT_BYTES: &str = "forebay_tenant_session_bytes_total";

pub(super) const LENGTHS: &[f64] =
    &[0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0];

pub(super) fn describe() {
    describe_histogram!(SECONDS, Unit::Seconds, "WebSocket sessions: open to closed, by pool");
    describe_counter!(MESSAGES, "Messages in WebSocket sessions, by pool and side that sent them");
    describe_counter!(BYTES, "Bytes in WebSocket sessions, by pool and side that sent them");
    describe_histogram!(
        TENANT_SECONDS,
        Unit::Seconds,
        "WebSocket sessions: open to closed, by tenant"
    );
    describe_counter!(
        TENANT_MESSAGES,
        "Messages in WebSocket sessions, by tenant and side that sent them"
    );
    describe_counter!(
        TENANT_BYTES,
        "Bytes in WebSocket sessions, by tenant and side that sent them"
    );
}

/// The session metrics of one pool or tenant, looked up once.
pub(crate) struct SessionMetrics {
    seconds: Histogram,
    client: SideMetrics,
    replica: SideMetrics,
}

struct SideMetrics {
    messages: Counter,
    bytes: Counter,
}

impl SessionMetrics {
    pub(super) fn of_pool(pool: &str) -> Self {
        Self::register([SECONDS, MESSAGES, BYTES], "pool", pool)
    }

    pub(crate) fn of_tenant(tenant: &str) -> Self {
        Self::register([TENANT_SECONDS, TENANT_MESSAGES, TENANT_BYTES], "tenant", tenant)
    }

    fn register(names: [&'static str; 3], label: &'static str, value: &str) -> Self {
        let [seconds, messages, bytes] = names;
        let side = |side: &'static str| SideMetrics {
            messages: counter!(messages, label => value.to_owned(), "from" => side),
            bytes: counter!(bytes, label => value.to_owned(), "from" => side),
        };
        Self {
            seconds: histogram!(seconds, label => value.to_owned()),
            client: side("client"),
            replica: side("replica"),
        }
    }

    /// Records a session that has ended. `lasted`: how long it was open.
    pub(crate) fn ended(&self, lasted: Duration, traffic: &Traffic) {
        self.seconds.record(lasted);
        self.client.add(&traffic.client);
        self.replica.add(&traffic.replica);
    }
}

impl SideMetrics {
    fn add(&self, carried: &SideTraffic) {
        self.messages.increment(carried.messages());
        self.bytes.increment(carried.bytes());
    }
}
