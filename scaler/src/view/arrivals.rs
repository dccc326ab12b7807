//! The arrivals of the last day of a pool, without any content: how many, when, and how long.
//!
//! They come from counters, so the requests between two readings share their mean length, and are spread
//! evenly over that time. Memory is bounded: a long series gets coarser at its beginning.

use std::collections::VecDeque;
use std::fmt::Write as _;

use forebay_config::Millis;
use forebay_signals::Totals;

/// Bursts of one pool. 16 bytes each.
const MOST: usize = 4096;
/// Readings that are closer than this are one burst.
const CLOSE: Millis = Millis::new(200);
const DAY: Millis = Millis::from_secs(24 * 60 * 60);
/// Requests to write at most; of more, the last ones.
const MOST_REQUESTS: usize = 500_000;

/// Requests that arrived between two readings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Burst {
    /// The later reading.
    at: Millis,
    /// The time since the earlier one.
    span: u32,
    count: u32,
    /// Estimated tokens of all their prompts.
    prompt_tokens: u64,
}

/// The arrivals of the last day.
#[derive(Clone, Debug, Default)]
pub(crate) struct DayOfArrivals {
    bursts: VecDeque<Burst>,
    last: Option<(Millis, Totals)>,
    /// Answered requests and their generated tokens.
    answered: (u64, u64),
}

impl DayOfArrivals {
    /// Records a reading of the pool's counters, which only grow.
    pub(crate) fn record(&mut self, totals: Totals, now: Millis) {
        let Some((before, earlier)) = self.last.replace((now, totals)) else { return };
        let new = totals.since(&earlier);
        self.answered.0 += new.completed;
        self.answered.1 += new.generated_tokens;
        if new.accepted == 0 {
            return;
        }
        let burst = Burst {
            at: now,
            span: u32::try_from(now.since(before).get()).unwrap_or(u32::MAX),
            count: u32::try_from(new.accepted).unwrap_or(u32::MAX),
            prompt_tokens: new.accepted_prompt_tokens,
        };
        match self.bursts.back_mut() {
            Some(last) if now.since(last.at) < CLOSE => last.merge(burst),
            _ => self.bursts.push_back(burst),
        }
        while self.bursts.front().is_some_and(|burst| burst.at + DAY < now) {
            self.bursts.pop_front();
        }
        if self.bursts.len() > MOST {
            self.coarsen();
        }
    }

    /// Merges the bursts of the older half in pairs.
    fn coarsen(&mut self) {
        let half = MOST / 2;
        let old: Vec<_> = self.bursts.drain(..half).collect();
        for pair in old.chunks(2).rev() {
            let mut burst = pair[0];
            if let Some(next) = pair.get(1) {
                burst.merge(*next);
            }
            self.bursts.push_front(burst);
        }
    }

    /// The arrivals in the form of `gateway.recordArrivals`, for `forebay replay`; `None` without any.
    pub(crate) fn csv(&self, pool: &str) -> Option<String> {
        if self.bursts.is_empty() {
            return None;
        }
        let (answered, generated) = self.answered;
        let output = generated.checked_div(answered).unwrap_or(0).max(1);
        let mut text = "time,pool,promptTokens,generatedTokens\n".to_owned();
        let mut left = self.bursts.iter().map(|burst| burst.count as usize).sum::<usize>();
        for burst in &self.bursts {
            let began = burst.at.get() - u64::from(burst.span).min(burst.at.get());
            for n in 0..u64::from(burst.count) {
                left -= 1;
                if left >= MOST_REQUESTS {
                    continue;
                }
                let at = began + u64::from(burst.span) * (n + 1) / u64::from(burst.count);
                let prompt = (burst.prompt_tokens / u64::from(burst.count)).max(1);
                let (seconds, millis) = (at / 1000, at % 1000);
                let row = writeln!(text, "{seconds}.{millis:03},{pool},{prompt},{output}");
                row.expect("a String takes any text");
            }
        }
        Some(text)
    }
}

impl Burst {
    fn merge(&mut self, next: Self) {
        let began = self.at.get() - u64::from(self.span).min(self.at.get());
        self.at = next.at;
        self.span = u32::try_from(next.at.get() - began).unwrap_or(u32::MAX);
        self.count = self.count.saturating_add(next.count);
        self.prompt_tokens += next.prompt_tokens;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn totals(accepted: u64) -> Totals {
        Totals {
            accepted,
            accepted_prompt_tokens: accepted * 100,
            completed: accepted,
            generated_tokens: accepted * 30,
            ..Totals::default()
        }
    }

    fn at(millis: u64) -> Millis {
        Millis::new(1_000_000_000 + millis)
    }

    #[test]
    fn requests_between_two_readings_are_spread_over_that_time() {
        let mut arrivals = DayOfArrivals::default();
        arrivals.record(totals(5), at(0));
        assert_eq!(arrivals.csv("p"), None, "the first reading is where it begins");
        arrivals.record(totals(7), at(1_000));
        arrivals.record(totals(7), at(2_000));
        arrivals.record(totals(8), at(3_000));
        let want = "time,pool,promptTokens,generatedTokens\n1000000.500,p,100,30\n\
                    1000001.000,p,100,30\n1000003.000,p,100,30\n";
        assert_eq!(arrivals.csv("p").as_deref(), Some(want));
    }

    #[test]
    fn a_long_series_is_bounded_and_loses_no_request_of_the_day() {
        let mut arrivals = DayOfArrivals::default();
        for n in 0..50_000 {
            arrivals.record(totals(n), at(n * 1_000));
        }
        assert!(arrivals.bursts.len() <= MOST);
        let count: u32 = arrivals.bursts.iter().map(|burst| burst.count).sum();
        assert_eq!(count, 49_999);
        let lines = arrivals.csv("p").expect("arrivals");
        let mut before = 0.0;
        for line in lines.lines().skip(1) {
            let time: f64 =
                line.split(',').next().and_then(|time| time.parse().ok()).expect("a time");
            assert!(time >= before, "in order");
            before = time;
        }
        arrivals.record(totals(50_001), at(50_000_000) + DAY);
        assert_eq!(arrivals.csv("p").expect("one").lines().count(), 3, "a day is kept");
    }
}
