//! The metrics of the export itself.

use metrics::{counter, describe_counter};

use crate::settings::Signal;

const EXPORTED: &str = "forebay_otlp_exported_total";
const FAILED: &str = "forebay_otlp_failed_exports_total";
const DROPPED: &str = "forebay_otlp_dropped_spans_total";

/// Why spans were not delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// The queue had no room for them.
    QueueFull,
    /// The receiver could not be reached, or failed, for too long.
    Undelivered,
    /// The receiver refused them.
    Rejected,
}

/// Help texts.
pub fn describe() {
    describe_counter!(
        EXPORTED,
        "Spans and data points that a receiver of OTLP took, by signal (traces, metrics)"
    );
    describe_counter!(
        FAILED,
        "Exports by OTLP that failed, with all their repetitions, by signal (traces, metrics)"
    );
    describe_counter!(
        DROPPED,
        "Spans that were lost, by reason: queue_full, undelivered (the receiver did not take them \
         in time), rejected (it refused them)"
    );
}

/// Shows that nothing was exported or dropped so far.
pub(crate) fn show(signal: Signal) {
    exported(signal, 0);
    counter!(FAILED, "signal" => signal.name()).increment(0);
    if signal == Signal::Traces {
        for reason in [DropReason::QueueFull, DropReason::Undelivered, DropReason::Rejected] {
            dropped(reason, 0);
        }
    }
}

pub(crate) fn exported(signal: Signal, count: u64) {
    counter!(EXPORTED, "signal" => signal.name()).increment(count);
}

pub(crate) fn failed(signal: Signal) {
    counter!(FAILED, "signal" => signal.name()).increment(1);
}

pub(crate) fn dropped(why: DropReason, count: u64) {
    let reason = match why {
        DropReason::QueueFull => "queue_full",
        DropReason::Undelivered => "undelivered",
        DropReason::Rejected => "rejected",
    };
    counter!(DROPPED, "reason" => reason).increment(count);
}
