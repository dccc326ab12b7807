//! One pool's load over all gateways: sums, never averages of averages.

use forebay_signals::PoolSignals;

/// What every gateway together has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests held.
    pub held: u32,
    /// Requests at replicas.
    pub in_flight: u32,
    /// Some listed gateway has not been heard: the truth may be more than this.
    pub missing: bool,
}

/// One gateway's last word on a pool.
#[derive(Clone, Copy, Debug)]
pub enum Word<'a> {
    /// It is connected.
    Now(&'a PoolSignals),
    /// It was lost so many milliseconds ago.
    Lost(&'a PoolSignals, u64),
    /// It is listed and was never heard.
    Never,
}

/// Sums. What a lost gateway had stands for `stale_after_ms`, then halves with each such time, but
/// never to zero: it may serve on, unheard.
#[must_use]
pub fn merge<'a>(words: impl IntoIterator<Item = Word<'a>>, stale_after_ms: u64) -> Load {
    let mut load = Load::default();
    for word in words {
        match word {
            Word::Now(signals) => {
                load.held += signals.queue_depth;
                load.in_flight += signals.in_flight;
            }
            Word::Lost(signals, since_ms) => {
                load.missing = true;
                let halvings = (since_ms / stale_after_ms.max(1)).min(31) as u32;
                let faded = |count: u32| if count == 0 { 0 } else { (count >> halvings).max(1) };
                load.held += faded(signals.queue_depth);
                load.in_flight += faded(signals.in_flight);
            }
            Word::Never => load.missing = true,
        }
    }
    load
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_gateway_fades_and_never_vanishes() {
        let busy = PoolSignals { queue_depth: 8, in_flight: 1, ..PoolSignals::default() };
        for (case, word, want) in [
            ("heard", Word::Now(&busy), (8, 1, false)),
            ("just lost", Word::Lost(&busy, 9_000), (8, 1, true)),
            ("stale", Word::Lost(&busy, 10_000), (4, 1, true)),
            ("long gone", Word::Lost(&busy, 3_600_000), (1, 1, true)),
            ("never heard", Word::Never, (0, 0, true)),
        ] {
            let load = merge([word], 10_000);
            assert_eq!((load.held, load.in_flight, load.missing), want, "{case}");
        }
        assert_eq!(merge([Word::Now(&busy), Word::Now(&busy)], 10_000).held, 16);
    }
}
