//! `cron`: so many replicas from start to end.

use forebay_config::CronWindow;

/// A schedule, with what it knows until the next change.
#[derive(Debug)]
pub(super) struct Schedule {
    window: CronWindow,
    /// Whether it is within, and from when until when that is known.
    known: Option<(bool, u64, u64)>,
}

impl Schedule {
    pub(super) fn new(window: CronWindow) -> Self {
        Self { window, known: None }
    }

    pub(super) fn desired_replicas(&self) -> u32 {
        self.window.desired_replicas
    }

    /// Whether `now_ms` is within the window: start included, end not.
    pub(super) fn within(&mut self, now_ms: u64) -> bool {
        if let Some((within, from_ms, until_ms)) = self.known
            && (from_ms..until_ms).contains(&now_ms)
        {
            return within;
        }
        let (within, until_ms) = self.window.open(now_ms);
        self.known = Some((within, now_ms, until_ms));
        within
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::{Signal, Trigger};
    use jiff::Timestamp;

    use super::*;

    fn schedule(timezone: &str, start: &str, end: &str) -> Schedule {
        let settings =
            [("timezone", timezone), ("start", start), ("end", end), ("desiredReplicas", "3")];
        let (rule, faults) = Trigger::of("cron", &settings).rule(1);
        let Some(Signal::Cron(window)) = rule.map(|rule| rule.signal) else { panic!("{faults:?}") };
        Schedule::new(*window)
    }

    fn ms(time: &str) -> u64 {
        time.parse::<Timestamp>().expect("a time").as_millisecond() as u64
    }

    #[test]
    fn it_is_within_from_start_to_end() {
        for (case, timezone, start, end, times) in [
            (
                "office hours; 2026-11-24 is a Tuesday",
                "Europe/Amsterdam",
                "30 7 * * 1-5",
                "0 20 * * 1-5",
                &[
                    ("2026-11-24T06:29:59Z", false),
                    ("2026-11-24T06:30:00Z", true),
                    ("2026-11-24T18:59:59Z", true),
                    ("2026-11-24T19:00:00Z", false),
                    ("2026-11-28T12:00:00Z", false),
                ][..],
            ),
            (
                "over midnight",
                "UTC",
                "0 22 * * *",
                "0 6 * * *",
                &[
                    ("2026-11-24T21:59:59Z", false),
                    ("2026-11-24T22:00:00Z", true),
                    ("2026-11-25T00:00:00Z", true),
                    ("2026-11-25T06:00:00Z", false),
                ],
            ),
            (
                "over the weekend, since nothing ends it before",
                "UTC",
                "0 22 * * 1-5",
                "0 6 * * 1-5",
                &[("2026-11-28T12:00:00Z", true), ("2026-11-30T06:00:00Z", false)],
            ),
            (
                "begins in the hour that the clock skips: the day before, since nothing ends it then",
                "Europe/Amsterdam",
                "30 2 * * *",
                "0 12 * * *",
                &[
                    ("2026-03-28T10:59:59Z", true),
                    ("2026-03-28T11:00:00Z", true),
                    ("2026-03-29T01:00:00Z", true),
                    ("2026-03-29T09:59:59Z", true),
                    ("2026-03-29T10:00:00Z", false),
                ],
            ),
            (
                "begins in the hour that the clock repeats: when it comes the last time",
                "Europe/Amsterdam",
                "30 2 * * *",
                "0 12 * * *",
                &[
                    ("2026-10-25T00:29:59Z", false),
                    ("2026-10-25T00:30:00Z", false),
                    ("2026-10-25T01:29:59Z", false),
                    ("2026-10-25T01:30:00Z", true),
                    ("2026-10-25T10:59:59Z", true),
                    ("2026-10-25T11:00:00Z", false),
                ],
            ),
        ] {
            // By itself, and with what it knew before.
            let mut going = schedule(timezone, start, end);
            for (time, want) in times {
                let mut fresh = schedule(timezone, start, end);
                assert_eq!(fresh.within(ms(time)), *want, "{case}: {time}");
                assert_eq!(going.within(ms(time)), *want, "{case}: {time}, going on");
            }
        }
    }

    #[test]
    fn every_minute_of_a_week_is_told_the_same_with_and_without_memory() {
        let mut going = schedule("America/New_York", "15 22 * * 0,3", "45 1 * * *");
        let begin = ms("2026-10-30T00:00:00Z");
        for minute in 0..(7 * 24 * 60) {
            let now = begin + minute * 60_000;
            let mut fresh = schedule("America/New_York", "15 22 * * 0,3", "45 1 * * *");
            assert_eq!(going.within(now), fresh.within(now), "minute {minute}");
        }
    }
}
