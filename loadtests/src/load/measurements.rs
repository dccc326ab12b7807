//! The measurements of a run while it goes on: counts, latencies, and both over time.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::client::SendFailure;
use super::stream::Break;

/// Points over time, at most.
const POINTS: u32 = 600;
/// The shortest time between two points.
const SHORTEST: Duration = Duration::from_millis(500);
/// A request that goes out this much after its intended time is late.
pub(crate) const LATE: Duration = Duration::from_millis(1);

/// Latencies in microseconds, exact to three digits.
#[derive(Clone, Debug)]
pub(crate) struct Latencies(Histogram<u64>);

impl Default for Latencies {
    fn default() -> Self {
        Self(Histogram::new(3).expect("three digits are supported"))
    }
}

impl Latencies {
    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        // The histogram grows as needed; recording fails only without memory.
        let _ = self.0.record(micros);
    }

    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// In seconds.
    pub(crate) fn quantile(&self, quantile: f64) -> f64 {
        self.0.value_at_quantile(quantile) as f64 / 1e6
    }

    /// In seconds.
    pub(crate) fn mean(&self) -> f64 {
        self.0.mean() / 1e6
    }

    /// In seconds.
    pub(crate) fn most(&self) -> f64 {
        self.0.max() as f64 / 1e6
    }
}

/// The way in which a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Ending {
    Complete,
    /// A status other than 2xx.
    Refused(u16),
    Broken(Break),
    Unsent(SendFailure),
    TimedOut,
}

impl Ending {
    /// For people, and as keys of the JSON.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Complete => "complete".to_owned(),
            Self::Refused(status) => format!("status {status}"),
            Self::Broken(way) => way.name().to_owned(),
            Self::Unsent(SendFailure::Connect) => "cannot connect".to_owned(),
            Self::Unsent(SendFailure::Connection) => "connection lost before an answer".to_owned(),
            Self::TimedOut => "timed out".to_owned(),
        }
    }
}

/// One request, from its intended time to its end; times since the beginning of the run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exchange {
    pub(crate) intended: Duration,
    pub(crate) first_token: Option<Duration>,
    pub(crate) ended: Duration,
    pub(crate) ending: Ending,
    pub(crate) misordered: bool,
}

/// Counts and latencies of one interval of a run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Interval {
    pub(crate) sent: u64,
    pub(crate) complete: u64,
    pub(crate) failed: u64,
    pub(crate) tokens: u64,
    pub(crate) most_in_flight: u64,
    /// Of the requests that were meant to go out in it.
    pub(crate) ttft: Option<Latencies>,
    pub(crate) latency: Option<Latencies>,
}

#[derive(Debug, Default)]
pub(crate) struct Measurements {
    /// When counting begins: requests that were meant to go out before are not counted.
    warmup: Duration,
    /// The time between two points.
    interval: Duration,
    pub(crate) flight: FlightCounts,
    /// Requests that were meant to go out after the warm-up.
    pub(crate) sent: u64,
    pub(crate) late: u64,
    pub(crate) endings: BTreeMap<Ending, u64>,
    pub(crate) misordered: u64,
    /// Tokens, and requests ended, after the warm-up, whenever they were sent: CPU time is divided by
    /// these.
    pub(crate) tokens: u64,
    pub(crate) ended: u64,
    pub(crate) latencies: LatencyRecords,
    pub(crate) over_time: Vec<Interval>,
}

/// Requests that went out and those in flight, warm-up included.
#[derive(Debug, Default)]
pub(crate) struct FlightCounts {
    pub(crate) begun: u64,
    pub(crate) now: u64,
    pub(crate) most: u64,
}

/// Latencies of the requests that are counted.
#[derive(Debug, Default)]
pub(crate) struct LatencyRecords {
    /// From the intended time of a request until it went out.
    pub(crate) lateness: Latencies,
    pub(crate) ttft: Latencies,
    pub(crate) itl: Latencies,
    /// From the intended time to the end of the answer.
    pub(crate) whole: Latencies,
}

impl Measurements {
    /// For a run of this length.
    pub(crate) fn new(length: Duration, warmup: Duration) -> Self {
        Self { warmup, interval: (length / POINTS).max(SHORTEST), ..Self::default() }
    }

    /// The time between two points.
    pub(crate) fn interval(&self) -> Duration {
        self.interval
    }

    fn at(&mut self, time: Duration) -> &mut Interval {
        let index = (time.as_secs_f64() / self.interval.as_secs_f64()) as usize;
        if self.over_time.len() <= index {
            self.over_time.resize_with(index + 1, Interval::default);
        }
        &mut self.over_time[index]
    }

    /// A request goes out at `now`.
    pub(crate) fn begin(&mut self, intended: Duration, now: Duration) {
        self.flight.begun += 1;
        self.flight.now += 1;
        self.flight.most = self.flight.most.max(self.flight.now);
        let in_flight = self.flight.now;
        let interval = self.at(now);
        interval.sent += 1;
        interval.most_in_flight = interval.most_in_flight.max(in_flight);
        if intended >= self.warmup {
            self.sent += 1;
            let lateness = now.saturating_sub(intended);
            self.late += u64::from(lateness > LATE);
            self.latencies.lateness.record(lateness);
        }
    }

    /// Tokens arrived together at `now`, this long after the ones before.
    pub(crate) fn tokens(&mut self, now: Duration, count: u32, gap: Option<Duration>) {
        self.at(now).tokens += u64::from(count);
        if now < self.warmup {
            return;
        }
        self.tokens += u64::from(count);
        if let Some(gap) = gap {
            self.latencies.itl.record(gap);
        }
        // Tokens of one read arrived at one moment.
        for _ in 1..count {
            self.latencies.itl.record(Duration::ZERO);
        }
    }

    pub(crate) fn end(&mut self, exchange: &Exchange) {
        self.flight.now -= 1;
        let complete = exchange.ending == Ending::Complete;
        let interval = self.at(exchange.ended);
        interval.complete += u64::from(complete);
        interval.failed += u64::from(!complete);
        self.ended += u64::from(exchange.ended >= self.warmup);
        if exchange.intended < self.warmup {
            return;
        }
        *self.endings.entry(exchange.ending).or_default() += 1;
        self.misordered += u64::from(exchange.misordered);
        let meant = self.at(exchange.intended);
        if let Some(first) = exchange.first_token {
            let ttft = first.saturating_sub(exchange.intended);
            meant.ttft.get_or_insert_default().record(ttft);
            self.latencies.ttft.record(ttft);
        }
        if complete {
            let latency = exchange.ended.saturating_sub(exchange.intended);
            self.at(exchange.intended).latency.get_or_insert_default().record(latency);
            self.latencies.whole.record(latency);
        }
    }

    /// Counted requests that ended otherwise than complete.
    pub(crate) fn failed(&self) -> u64 {
        let failed = self.endings.iter().filter(|(ending, _)| **ending != Ending::Complete);
        failed.map(|(_, count)| count).sum()
    }

    pub(crate) fn complete(&self) -> u64 {
        self.endings.get(&Ending::Complete).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MS: Duration = Duration::from_millis(1);

    fn exchange(intended: Duration, sent: Duration, ended: Duration) -> Exchange {
        let first_token = Some(sent + MS);
        Exchange { intended, first_token, ended, ending: Ending::Complete, misordered: false }
    }

    #[test]
    fn latency_counts_from_the_intended_time_and_a_late_send_is_counted() {
        let mut measured = Measurements::new(10 * SECOND, Duration::ZERO);
        measured.begin(SECOND, 3 * SECOND);
        measured.end(&exchange(SECOND, 3 * SECOND, 4 * SECOND));
        assert_eq!((measured.sent, measured.late), (1, 1));
        let close = |seconds: f64, want: f64| (seconds - want).abs() < want / 500.0;
        assert!(
            close(measured.latencies.whole.quantile(0.5), 3.0),
            "{}",
            measured.latencies.whole.quantile(0.5)
        );
        assert!(
            close(measured.latencies.ttft.quantile(0.5), 2.001),
            "{}",
            measured.latencies.ttft.quantile(0.5)
        );
        assert_eq!(measured.over_time[6].sent, 1, "where it went out");
        assert!(measured.over_time[2].ttft.is_some(), "where it was meant to go out");
    }

    #[test]
    fn requests_of_the_warm_up_are_not_counted() {
        let mut measured = Measurements::new(10 * SECOND, 2 * SECOND);
        for intended in [SECOND, 3 * SECOND] {
            measured.begin(intended, intended);
            measured.end(&exchange(intended, intended, intended + 2 * SECOND));
        }
        assert_eq!((measured.flight.begun, measured.sent, measured.complete()), (2, 1, 1));
        assert_eq!(measured.ended, 2, "CPU time is that of all that ended after the warm-up");
    }
}
