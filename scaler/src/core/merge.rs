//! One pool's load over all gateways: sums, never averages of averages.

use forebay_signals::PoolSignals;

/// What every gateway together has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Requests held.
    pub held: u32,
    /// Requests at replicas.
    pub in_flight: u32,
    /// Requests accepted, all told. It grows also by those that come and go between two reports.
    pub accepted: u64,
    /// A listed gateway has just fallen silent: the truth may be more than this.
    pub missing: bool,
    /// A listed gateway has been silent for long: it counts with what has faded of its last word.
    pub stale: bool,
}

/// One gateway's last word on a pool.
#[derive(Clone, Copy, Debug)]
pub enum Word<'a> {
    /// It is connected.
    Now(&'a PoolSignals),
    /// It was lost so many milliseconds ago.
    Lost(&'a PoolSignals, u64),
    /// It was listed so many milliseconds ago and was never heard.
    Never(u64),
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
                load.accepted += signals.totals.accepted;
            }
            Word::Lost(signals, since_ms) => {
                load.silent(since_ms, stale_after_ms);
                load.accepted += signals.totals.accepted;
                let halvings = (since_ms / stale_after_ms.max(1)).min(31) as u32;
                let faded = |count: u32| if count == 0 { 0 } else { (count >> halvings).max(1) };
                load.held += faded(signals.queue_depth);
                load.in_flight += faded(signals.in_flight);
            }
            Word::Never(since_ms) => load.silent(since_ms, stale_after_ms),
        }
    }
    load
}

impl Load {
    fn silent(&mut self, since_ms: u64, stale_after_ms: u64) {
        if since_ms < stale_after_ms {
            self.missing = true;
        } else {
            self.stale = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_gateway_fades_and_never_vanishes() {
        let busy = PoolSignals { queue_depth: 8, in_flight: 1, ..PoolSignals::default() };
        for (case, word, want) in [
            ("heard", Word::Now(&busy), (8, 1, false, false)),
            ("just lost", Word::Lost(&busy, 9_999), (8, 1, true, false)),
            ("stale", Word::Lost(&busy, 10_000), (4, 1, false, true)),
            ("long gone", Word::Lost(&busy, 3_600_000), (1, 1, false, true)),
            ("not heard yet", Word::Never(9_999), (0, 0, true, false)),
            ("never heard", Word::Never(10_000), (0, 0, false, true)),
        ] {
            let load = merge([word], 10_000);
            let got = (load.held, load.in_flight, load.missing, load.stale);
            assert_eq!(got, want, "{case}");
        }
        assert_eq!(merge([Word::Now(&busy), Word::Now(&busy)], 10_000).held, 16);
    }
}
