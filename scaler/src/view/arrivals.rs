//! The arrivals of the last day of a pool, without any content: how many, when, and how long.
//!
//! They come from counters, so the requests between two readings share their mean length, and are spread
//! evenly over that time. Memory is bounded: readings that fall into the same slot of time are one burst,
//! and the slots of what is older than a few minutes are longer.

use std::collections::VecDeque;
use std::fmt::Write as _;

use forebay_config::Millis;
use forebay_signals::Totals;

const DAY: Millis = Millis::from_secs(24 * 60 * 60);
/// The time that is kept in [`FINE`] slots.
const RECENT: Millis = Millis::from_secs(5 * 60);
const FINE: Millis = Millis::new(250);
const COARSE: Millis = Millis::from_secs(30);
/// Requests to write at most; of more, the last ones.
const MOST_REQUESTS: usize = 500_000;
/// Bytes of a piece of CSV.
const PIECE: usize = 32 << 10;

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

/// The arrivals of the last day: about 4,100 bursts at most, of 24 bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct DayOfArrivals {
    /// One burst for each [`COARSE`] slot with a reading that found requests.
    old: VecDeque<Burst>,
    /// The same by [`FINE`] slot, for what came later.
    recent: VecDeque<Burst>,
    last: Option<(Millis, Totals)>,
    /// Answered requests and their generated tokens.
    answered: (u64, u64),
}

impl DayOfArrivals {
    /// Records a reading of the pool's counters, which only grow.
    pub(crate) fn record(&mut self, totals: Totals, now: Millis) {
        self.age(now);
        let Some((before, earlier)) = self.last.replace((now, totals)) else { return };
        let new = totals.since(&earlier);
        self.answered.0 += new.completed;
        self.answered.1 += new.generated_tokens;
        if new.accepted > 0 {
            let burst = Burst {
                at: now,
                span: u32::try_from(now.since(before).get()).unwrap_or(u32::MAX),
                count: u32::try_from(new.accepted).unwrap_or(u32::MAX),
                prompt_tokens: new.accepted_prompt_tokens,
            };
            add(&mut self.recent, burst, FINE);
        }
    }

    /// Ends the series of readings: the next one is where it begins anew.
    pub(crate) fn pause(&mut self) {
        self.last = None;
    }

    /// Moves bursts that are no longer recent, and drops those that are older than a day.
    fn age(&mut self, now: Millis) {
        let older = |span| move |burst: &mut Burst| burst.at + span < now;
        while let Some(burst) = self.recent.pop_front_if(older(RECENT)) {
            add(&mut self.old, burst, COARSE);
        }
        while self.old.pop_front_if(older(DAY)).is_some() {}
    }

    /// The arrivals in the form of `gateway.recordArrivals`, for `forebay replay`, in pieces of about [`PIECE`]
    /// bytes that are written as they are asked for; `None` without any.
    pub(crate) fn csv(self, pool: String) -> Option<impl Iterator<Item = String>> {
        let (answered, generated) = self.answered;
        let output = generated.checked_div(answered).unwrap_or(0).max(1);
        let bursts = || self.old.iter().chain(&self.recent);
        bursts().next()?;
        let all = bursts().map(|burst| burst.count as usize).sum::<usize>();
        let bursts = self.old.into_iter().chain(self.recent);
        let rows = bursts.flat_map(|burst| (0..burst.count).map(move |n| burst.request(n)));
        let mut rows = rows.skip(all.saturating_sub(MOST_REQUESTS));
        let mut text = "time,pool,promptTokens,generatedTokens\n".to_owned();
        Some(std::iter::from_fn(move || {
            for (at, prompt) in rows.by_ref() {
                let (seconds, millis) = (at / 1000, at % 1000);
                let row = writeln!(text, "{seconds}.{millis:03},{pool},{prompt},{output}");
                row.expect("a String takes any text");
                if text.len() >= PIECE {
                    break;
                }
            }
            Some(std::mem::take(&mut text)).filter(|text| !text.is_empty())
        }))
    }
}

/// Adds a burst to the last one if both are of the same slot of this length.
fn add(bursts: &mut VecDeque<Burst>, burst: Burst, slot: Millis) {
    let index = |burst: &Burst| burst.at.get() / slot.get();
    match bursts.back_mut() {
        Some(last) if index(last) == index(&burst) => last.merge(burst),
        _ => bursts.push_back(burst),
    }
}

impl Burst {
    /// The time of one of its requests, and the estimated tokens of its prompt.
    fn request(&self, n: u32) -> (u64, u64) {
        let (span, count) = (u64::from(self.span), u64::from(self.count));
        let began = self.at.get() - span.min(self.at.get());
        let at = began + span * (u64::from(n) + 1) / count;
        (at, (self.prompt_tokens / count).max(1))
    }

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
    use proptest::prelude::*;

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
        assert_eq!(csv(&arrivals), None, "the first reading is where it begins");
        arrivals.record(totals(7), at(1_000));
        arrivals.record(totals(7), at(2_000));
        arrivals.record(totals(8), at(3_000));
        let want = "time,pool,promptTokens,generatedTokens\n1000000.500,p,100,30\n\
                    1000001.000,p,100,30\n1000003.000,p,100,30\n";
        assert_eq!(csv(&arrivals).as_deref(), Some(want));
    }

    fn csv(arrivals: &DayOfArrivals) -> Option<String> {
        arrivals.clone().csv("p".to_owned()).map(Iterator::collect)
    }

    #[test]
    fn a_long_day_comes_in_small_pieces_and_without_its_first_requests() {
        let mut arrivals = DayOfArrivals::default();
        let all = MOST_REQUESTS as u64 + 7;
        arrivals.record(totals(0), at(0));
        arrivals.record(totals(9), at(10_000));
        arrivals.record(totals(all), at(20_000));
        let (mut rows, mut longest) = (0, 0);
        for piece in arrivals.clone().csv("p".to_owned()).expect("some") {
            rows += piece.lines().count();
            longest = longest.max(piece.len());
        }
        assert_eq!(rows, 1 + MOST_REQUESTS);
        assert!(longest < PIECE + 100, "{longest} bytes");
        let first = times(&arrivals)[0];
        assert!((8.8..9.0).contains(&first), "the eighth of nine within ten seconds: {first}");
    }

    /// Seconds at which each request arrived, counted from `at(0)`.
    fn times(arrivals: &DayOfArrivals) -> Vec<f64> {
        let text = csv(arrivals).unwrap_or_default();
        let time = |line: &str| line.split(',').next().and_then(|time| time.parse::<f64>().ok());
        text.lines().skip(1).map(|line| time(line).expect("a time") - 1_000_000.0).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4))]

        /// Readings once a second for three days; each second of an hour brings the hour's count.
        #[test]
        fn the_last_day_keeps_its_shape_and_nothing_older(
            hours in prop::collection::vec(0..4u64, 24), offset in 0..1000u64,
        ) {
            let day = DAY.as_secs();
            let hour = |second: u64| hours[(second % day / 3600) as usize];
            let mut arrivals = DayOfArrivals::default();
            let (mut accepted, end) = (0, 3 * day);
            for second in 0..=end {
                accepted += if second == 0 { 0 } else { hour(second - 1) };
                arrivals.record(totals(accepted), at(second * 1_000 + offset));
                let count = arrivals.old.len() + arrivals.recent.len();
                prop_assert!(count <= 4_100, "{count} bursts at second {second}");
            }
            let times = times(&arrivals);
            prop_assert!(times.is_sorted(), "in order");
            let slot = COARSE.as_secs_f64();
            let first = times.first().copied().unwrap_or(end as f64);
            prop_assert!(first >= (end - day) as f64 - 2.0 * slot, "none is older: {first}");
            let total: u64 = hours.iter().map(|each| each * 3600).sum();
            let (most, got) = (4.0 * 2.0 * slot, times.len() as f64);
            prop_assert!((got - total as f64).abs() <= most, "{got} of {total}");
            for (index, each) in hours.iter().enumerate() {
                let from = (end - day + 3600 * index as u64) as f64;
                let within = times.iter().filter(|time| (from..from + 3600.0).contains(*time));
                let (got, want) = (within.count() as f64, (each * 3600) as f64);
                prop_assert!((got - want).abs() <= most, "hour {index}: {got} of {want}");
            }
        }
    }

    #[test]
    fn close_readings_without_a_pause_are_bursts_of_a_slot_each() {
        let mut arrivals = DayOfArrivals::default();
        for n in 0..600 {
            arrivals.record(totals(n), at(n * 100));
        }
        assert_eq!(arrivals.recent.len(), 240, "four for each of 60 seconds");
        assert!(arrivals.recent.iter().all(|burst| burst.span <= 300), "{:?}", arrivals.recent);
    }

    #[test]
    fn a_quiet_pool_forgets_too_and_a_pause_is_no_burst() {
        let mut arrivals = DayOfArrivals::default();
        arrivals.record(totals(0), at(0));
        arrivals.record(totals(3), at(1_000));
        arrivals.pause();
        arrivals.record(totals(1_000), at(60_000));
        arrivals.record(totals(1_001), at(61_000));
        assert_eq!(times(&arrivals).len(), 4, "what came meanwhile was not read");
        arrivals.record(totals(1_001), at(62_000) + DAY);
        assert_eq!(csv(&arrivals), None);
    }
}
