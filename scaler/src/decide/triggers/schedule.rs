//! `cron`: a fixed count from start to end.

use forebay_config::{CronWindow, Millis};

/// A schedule, with its state until the next change.
#[derive(Debug)]
pub(super) struct Schedule {
    window: CronWindow,
    /// Whether it is within the window, and the time span for which that is known.
    known: Option<(bool, Millis, Millis)>,
}

impl Schedule {
    pub(super) fn new(window: CronWindow) -> Self {
        Self { window, known: None }
    }

    pub(super) fn desired_replicas(&self) -> u32 {
        self.window.desired_replicas
    }

    /// Whether `now` is within the window: start included, end not.
    pub(super) fn within(&mut self, now: Millis) -> bool {
        if let Some((within, from, until)) = self.known
            && (from..until).contains(&now)
        {
            return within;
        }
        let (within, until) = self.window.open(now.get());
        let until = Millis::new(until);
        self.known = Some((within, now, until));
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

    fn ms(time: &str) -> Millis {
        Millis::new(time.parse::<Timestamp>().expect("a time").as_millisecond() as u64)
    }

    #[test]
    fn a_schedule_is_within_its_window_from_start_to_end() {
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
                "begins in the hour that the clock skips: the day before, since nothing ends it by then",
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
                "begins in the hour that the clock repeats: when that hour comes the last time",
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
            // Without memory, and with it.
            let mut going = schedule(timezone, start, end);
            for (time, want) in times {
                let mut fresh = schedule(timezone, start, end);
                assert_eq!(fresh.within(ms(time)), *want, "{case}: {time}");
                assert_eq!(going.within(ms(time)), *want, "{case}: {time}, with memory");
            }
        }
    }

    #[test]
    fn every_minute_of_a_week_is_judged_the_same_with_and_without_memory() {
        let mut going = schedule("America/New_York", "15 22 * * 0,3", "45 1 * * *");
        let begin = ms("2026-10-30T00:00:00Z");
        for minute in 0..(7 * 24 * 60) {
            let now = begin + Millis::from_secs(minute * 60);
            let mut fresh = schedule("America/New_York", "15 22 * * 0,3", "45 1 * * *");
            assert_eq!(going.within(now), fresh.within(now), "minute {minute}");
        }
    }
}
