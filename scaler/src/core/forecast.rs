//! What came, second by second, and what is to be expected.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// Arrivals of the last minutes, in whole seconds.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// Second since the epoch, requests, estimated prompt tokens; seconds without any are left out.
    seconds: VecDeque<(u64, f64, f64)>,
    last: Option<(u64, u64)>,
    since_ms: u64,
}

impl Arrivals {
    /// The counters now: all that were accepted, and their estimated prompt tokens.
    pub fn observe(&mut self, accepted: u64, prompt: u64, keep_ms: u64, now_ms: u64) {
        let (before, prompt_before) = self.last.replace((accepted, prompt)).unwrap_or_else(|| {
            self.since_ms = now_ms;
            (accepted, prompt)
        });
        let requests = accepted.saturating_sub(before) as f64;
        let tokens = prompt.saturating_sub(prompt_before) as f64;
        let second = now_ms / 1000;
        if requests > 0.0 {
            match self.seconds.back_mut() {
                Some((at, n, t)) if *at == second => {
                    *n += requests;
                    *t += tokens;
                }
                _ => self.seconds.push_back((second, requests, tokens)),
            }
        }
        let horizon = now_ms.saturating_sub(keep_ms) / 1000;
        while self.seconds.front().is_some_and(|(at, ..)| *at < horizon) {
            self.seconds.pop_front();
        }
    }

    /// Takes the first load as having come just now: it was there before it could be counted.
    pub fn found(&mut self, requests: u32, prompt: u64, now_ms: u64) {
        if requests > 0 {
            self.seconds.push_back((now_ms / 1000, f64::from(requests), prompt as f64));
        }
    }

    /// The last `window_ms`, oldest first: seconds before now, requests, estimated prompt tokens.
    pub fn recent(
        &self,
        window_ms: u64,
        now_ms: u64,
    ) -> impl Iterator<Item = (u64, f64, f64)> + '_ {
        let (from, now) = (now_ms.saturating_sub(window_ms) / 1000, now_ms / 1000);
        let recent = self.seconds.iter().filter(move |(at, ..)| *at > from);
        recent.map(move |(at, n, t)| (now.saturating_sub(*at), *n, *t))
    }

    /// When the first was counted.
    #[must_use]
    pub fn since_ms(&self) -> u64 {
        self.since_ms
    }
}

const SLOTS: usize = 96;
const SLOT_MS: u64 = 15 * 60 * 1000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The load by time of day, working days and weekends apart, in UTC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Season {
    /// Requests per second by quarter of an hour: working days, then weekends.
    rates: Vec<Slot>,
    #[serde(skip)]
    open: Option<(u64, f64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Slot {
    rate: f64,
    days: u32,
}

impl Season {
    /// So many (mean) requests came since the last call.
    pub fn observe(&mut self, requests: f64, now_ms: u64) {
        let slot_ms = now_ms / SLOT_MS * SLOT_MS;
        match &mut self.open {
            Some((at, sum)) if *at == slot_ms => *sum += requests,
            other => {
                let ended = other.replace((slot_ms, requests));
                // The first one is not whole.
                if let Some((at, sum)) = ended.filter(|(at, _)| at + SLOT_MS == slot_ms) {
                    self.close(at, sum / (SLOT_MS as f64 / 1000.0));
                }
            }
        }
    }

    fn close(&mut self, at_ms: u64, rate: f64) {
        self.rates.resize(2 * SLOTS, Slot::default());
        let slot = &mut self.rates[index(at_ms)];
        // The mean of the first days, then the last week's weighs most.
        let share = (1.0 / f64::from(slot.days + 1)).max(0.25);
        slot.rate += (rate - slot.rate) * share;
        slot.days += 1;
    }

    /// Requests per second at that time, once two such days were seen.
    #[must_use]
    pub fn rate(&self, at_ms: u64) -> Option<f64> {
        let slot = self.rates.get(index(at_ms))?;
        (slot.days >= 2).then_some(slot.rate)
    }
}

fn index(at_ms: u64) -> usize {
    // The epoch was a Thursday.
    let weekday = (at_ms / DAY_MS + 3) % 7;
    let slot = (at_ms % DAY_MS / SLOT_MS) as usize;
    if weekday >= 5 { SLOTS + slot } else { slot }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrivals_are_counted_by_the_second_and_forgotten() {
        let mut arrivals = Arrivals::default();
        for (at, accepted) in [(1_000, 5), (1_400, 7), (1_900, 8), (3_100, 9)] {
            arrivals.observe(accepted, accepted * 100, 60_000, at);
        }
        let seen: Vec<_> = arrivals.recent(60_000, 4_000).collect();
        assert_eq!(seen, [(3, 3.0, 300.0), (1, 1.0, 100.0)]);
        arrivals.observe(9, 900, 60_000, 62_500);
        assert_eq!(arrivals.recent(60_000, 62_500).count(), 1);
    }

    #[test]
    fn a_time_of_day_is_known_after_two_days_of_its_kind() {
        let mut season = Season::default();
        // From a Monday on: 10 requests a second from 9 to 10 on working days.
        let monday = 4 * DAY_MS;
        for minute in 0..9 * 24 * 60u64 {
            let at = monday + minute * 60_000;
            let hour = at % DAY_MS / 3_600_000;
            let working = (at / DAY_MS + 3) % 7 < 5;
            season.observe(if hour == 9 && working { 600.0 } else { 0.0 }, at);
        }
        let at = |day: u64, hour: u64| season.rate(monday + day * DAY_MS + hour * 3_600_000);
        assert!((at(9, 9).expect("known") - 10.0).abs() < 1e-9);
        assert_eq!(at(9, 11), Some(0.0));
        assert_eq!(at(12, 9), Some(0.0), "a Saturday");
    }
}
