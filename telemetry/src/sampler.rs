//! Which requests are traced, decided at their beginning. Pure.

use crate::context::TraceId;

/// Decides by the parent, and for a trace that begins here by a share of all.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// The share of the traces that begin here, 0 to 1.
    pub ratio: f64,
    /// Whether the decision of a client that comes with a trace is followed. Otherwise the share
    /// applies to its traces too.
    pub by_parent: bool,
}

impl Sampler {
    /// Whether a request of this trace is traced. `parent` is its client's decision, if it came with a
    /// trace.
    ///
    /// The share is taken by the trace's identifier, as OpenTelemetry's `TraceIdRatioBased` sampler
    /// does in most of its SDKs, so that servers with the same share trace the same requests.
    #[must_use]
    pub fn samples(&self, trace: TraceId, parent: Option<bool>) -> bool {
        if let (true, Some(sampled)) = (self.by_parent, parent) {
            return sampled;
        }
        // The cast saturates.
        let bound = (self.ratio * (1_u64 << 63) as f64) as u64;
        self.ratio >= 1.0 || trace.low() >> 1 < bound
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::TraceContext;

    #[test]
    fn the_clients_decision_counts_before_the_share() {
        let trace = TraceId::random();
        let sampler = |ratio, by_parent| Sampler { ratio, by_parent };
        for (ratio, by_parent, parent, want) in [
            (1.0, true, None, true),
            (0.0, true, None, false),
            (0.0, true, Some(true), true),
            (1.0, true, Some(false), false),
            (0.0, false, Some(true), false),
            (1.0, false, Some(false), true),
        ] {
            let got = sampler(ratio, by_parent).samples(trace, parent);
            assert_eq!(got, want, "{ratio} {by_parent} {parent:?}");
        }
    }

    #[test]
    fn the_share_is_taken_by_the_last_bytes_of_the_trace() {
        let trace = |last: u64| {
            let text = format!("00-{:032x}-{:016x}-01", u128::from(last) | 1 << 127, 1);
            TraceContext::parse(text.as_bytes()).expect("valid").trace
        };
        let tenth = Sampler { ratio: 0.1, by_parent: true };
        assert!(tenth.samples(trace(0), None));
        assert!(tenth.samples(trace(u64::MAX / 10 - 2048), None));
        assert!(!tenth.samples(trace(u64::MAX / 10 + 2048), None));
        assert!(!tenth.samples(trace(u64::MAX), None));
        let all = (0..20_000).filter(|_| tenth.samples(TraceId::random(), None)).count();
        assert!((1_700..2_300).contains(&all), "{all} of 20,000");
    }
}
