//! Arrivals by the second, and forecasts from them: the trend, and the time of day.

use std::collections::VecDeque;

use forebay_config::Millis;
use serde::{Deserialize, Serialize};

/// The arrivals of the last minutes, in whole seconds.
#[derive(Clone, Debug, Default)]
pub struct Arrivals {
    /// Second since the epoch, requests, estimated prompt tokens. Empty seconds are left out.
    seconds: VecDeque<(u64, f64, f64)>,
    last: Option<(u64, u64)>,
}

impl Arrivals {
    /// Records the counters: all requests accepted so far, and their estimated prompt tokens.
    pub fn observe(&mut self, accepted: u64, prompt: u64, keep: Millis, now: Millis) {
        let (before, prompt_before) =
            self.last.replace((accepted, prompt)).unwrap_or((accepted, prompt));
        let requests = accepted.saturating_sub(before) as f64;
        let tokens = prompt.saturating_sub(prompt_before) as f64;
        let second = now.as_secs();
        if requests > 0.0 {
            match self.seconds.back_mut() {
                Some((at, n, t)) if *at == second => {
                    *n += requests;
                    *t += tokens;
                }
                _ => self.seconds.push_back((second, requests, tokens)),
            }
        }
        let horizon = now.since(keep).as_secs();
        while self.seconds.front().is_some_and(|(at, ..)| *at < horizon) {
            self.seconds.pop_front();
        }
    }

    /// Records the load at the first decision as if it had just arrived, since its arrival was not counted.
    pub fn found(&mut self, requests: u32, prompt: u64, now: Millis) {
        if requests > 0 {
            self.seconds.push_back((now.as_secs(), f64::from(requests), prompt as f64));
        }
    }

    /// The arrivals of the last `window`, oldest first: seconds ago, requests, estimated prompt
    /// tokens.
    pub fn recent(
        &self,
        window: Millis,
        now: Millis,
    ) -> impl Iterator<Item = (u64, f64, f64)> + '_ {
        let (from, now) = (now.since(window).as_secs(), now.as_secs());
        let older = self.seconds.partition_point(|(at, ..)| *at <= from);
        let recent = self.seconds.range(older..);
        recent.map(move |(at, n, t)| (now.saturating_sub(*at), *n, *t))
    }
}

/// A window moves by its length divided by this.
const STEPS: usize = 4;
/// The weight of the assumption that there is no trend, in windows.
const PRIOR_WINDOWS: f64 = 2.0;

/// The mean rise of the rate over the last minutes, in requests per second. A short observation
/// yields little.
///
/// Compares the rate over each `window` seconds with the rate over the `span` seconds that begin
/// `after` seconds later. Each arrival is (seconds ago, mean requests); oldest first.
#[must_use]
pub fn trend(arrivals: &[(u64, f64)], window: f64, after: f64, span: f64) -> f64 {
    let step = (window / STEPS as f64).max(1.0);
    let steps = |seconds: f64| (seconds / step).round() as usize;
    let (window, skip, span) = (steps(window).max(1), steps(after), steps(span).max(1));
    let Some((oldest, _)) = arrivals.first() else { return 0.0 };
    // Sums up to each step, from the first arrival to now.
    let count = (*oldest as f64 / step) as usize + 1;
    let mut sums = vec![0.0; count + 1];
    for (ago, requests) in arrivals {
        sums[count - (*ago as f64 / step) as usize] += requests;
    }
    for at in 1..=count {
        sums[at] += sums[at - 1];
    }
    let rate = |from: usize, to: usize| (sums[to] - sums[from]) / ((to - from) as f64 * step);
    let (mut rise, mut n) = (0.0, 0.0);
    for at in window..=count.saturating_sub(skip + span) {
        rise += rate(at + skip, at + skip + span) - rate(at - window, at);
        n += 1.0;
    }
    // Windows overlap, so the assumption is weighted by the steps of a window.
    rise / (n + PRIOR_WINDOWS * window as f64)
}

const SLOTS: usize = 96;
const SLOT_MS: u64 = 15 * 60 * 1000;
const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// The load by time of day in UTC; working days and weekends are apart.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Season {
    /// Requests per second by quarter of an hour: working days, then weekends.
    rates: Vec<SeasonSlot>,
    #[serde(skip)]
    open: Option<(Millis, f64)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct SeasonSlot {
    rate: f64,
    days: u32,
}

impl Season {
    /// Records the mean requests that arrived since the last call.
    pub fn observe(&mut self, requests: f64, now: Millis) {
        let slot = Millis::new(now.get() / SLOT_MS * SLOT_MS);
        match &mut self.open {
            Some((at, sum)) if *at == slot => *sum += requests,
            other => {
                let ended = other.replace((slot, requests));
                // The first slot is incomplete.
                if let Some((at, sum)) = ended.filter(|(at, _)| *at + Millis::new(SLOT_MS) == slot)
                {
                    self.close(at, sum / (SLOT_MS as f64 / 1000.0));
                }
            }
        }
    }

    fn close(&mut self, at: Millis, rate: f64) {
        self.rates.resize(2 * SLOTS, SeasonSlot::default());
        let slot = &mut self.rates[index(at)];
        // The mean of the first days; later the last days weigh most.
        let share = (1.0 / f64::from(slot.days + 1)).max(0.25);
        slot.rate += (rate - slot.rate) * share;
        slot.days += 1;
    }

    /// Requests per second at that time; `None` before two such days were observed.
    #[must_use]
    pub fn rate(&self, at: Millis) -> Option<f64> {
        let slot = self.rates.get(index(at))?;
        (slot.days >= 2).then_some(slot.rate)
    }
}

fn index(at: Millis) -> usize {
    // The epoch was a Thursday.
    let weekday = (at.get() / DAY_MS + 3) % 7;
    let slot = (at.get() % DAY_MS / SLOT_MS) as usize;
    if weekday >= 5 { SLOTS + slot } else { slot }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Millis = Millis::from_secs(60);

    #[test]
    fn arrivals_are_counted_by_the_second_and_forgotten() {
        let mut arrivals = Arrivals::default();
        for (at, accepted) in [(1_000, 5), (1_400, 7), (1_900, 8), (3_100, 9)] {
            arrivals.observe(accepted, accepted * 100, MINUTE, Millis::new(at));
        }
        let seen: Vec<_> = arrivals.recent(MINUTE, Millis::new(4_000)).collect();
        assert_eq!(seen, [(3, 3.0, 300.0), (1, 1.0, 100.0)]);
        arrivals.observe(9, 900, MINUTE, Millis::new(62_500));
        assert_eq!(arrivals.recent(MINUTE, Millis::new(62_500)).count(), 1);
    }

    /// `rate` per second, from `seconds` ago until now.
    fn rates(seconds: u64, rate: impl Fn(u64) -> f64) -> Vec<(u64, f64)> {
        (0..seconds).map(|at| (seconds - 1 - at, rate(at))).filter(|(_, n)| *n > 0.0).collect()
    }

    #[test]
    fn a_load_that_climbs_is_expected_to_climb_further_and_no_other() {
        let bursts = |at: u64| if at % 130 < 30 { 12.0 } else { 0.2 };
        // The mean of the last minute lags by half a minute; the forecast is for 105 s later.
        for (case, seconds, rate, want) in [
            ("has just begun", 100, &(|at: u64| at as f64) as &dyn Fn(u64) -> f64, 0.0..=0.0),
            ("climbs", 1200, &|at| at as f64 / 100.0, 0.8..=1.05),
            ("falls", 1200, &|at| 12.0 - at as f64 / 100.0, -1.05..=-0.8),
            ("steady", 1200, &|_| 5.0, -0.01..=0.01),
            ("bursts that pass", 1200, &bursts, -0.4..=0.4),
        ] {
            let got = trend(&rates(seconds, rate), 60.0, 60.0, 30.0);
            assert!(want.contains(&got), "{case}: {got}");
        }
        assert_eq!(trend(&[], 60.0, 60.0, 30.0), 0.0);
    }

    proptest! {
        #[test]
        fn a_trend_is_no_steeper_than_the_load(
            load in prop::collection::vec(0.0..20.0f64, 1..600), cold in 1.0..120.0f64,
        ) {
            let got = trend(&rates(load.len() as u64, |at| load[at as usize]), cold, cold, cold / 2.0);
            prop_assert!((-20.0..=20.0).contains(&got), "{got}");
        }
    }

    #[test]
    fn a_time_of_day_is_known_after_two_days_of_its_kind() {
        let mut season = Season::default();
        // 10 requests per second from 9 to 10 on working days, beginning on a Monday.
        let monday = 4 * DAY_MS;
        for minute in 0..9 * 24 * 60u64 {
            let at = monday + minute * 60_000;
            let hour = at % DAY_MS / 3_600_000;
            let working = (at / DAY_MS + 3) % 7 < 5;
            season.observe(if hour == 9 && working { 600.0 } else { 0.0 }, Millis::new(at));
        }
        let at = |day: u64, hour: u64| {
            season.rate(Millis::new(monday + day * DAY_MS + hour * 3_600_000))
        };
        assert!((at(9, 9).expect("known") - 10.0).abs() < 1e-9);
        assert_eq!(at(9, 11), Some(0.0));
        assert_eq!(at(12, 9), Some(0.0), "a Saturday");
    }
}
