//! `cron`: so many replicas from start to end.
//!
//! As in KEDA, it is within the window when the next end comes before the next start; so windows may
//! cross midnight or a weekend. Times that a clock skips count at the first moment after the gap;
//! times that it repeats count twice, which changes nothing.

use std::cmp::Ordering;

use croner::errors::CronError;
use croner::{CivilDate, CivilDateTime, CivilTime, Cron, CronDateTime, Resolution, Weekday};
use forebay_config::CronWindow;
use jiff::tz::AmbiguousOffset;
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

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
        let (start, end) =
            (self.next(&self.window.start, now_ms), self.next(&self.window.end, now_ms));
        let within = match (start, end) {
            (Some(start), Some(end)) => end <= start,
            // It never begins again, or never ends.
            (None, Some(_)) => true,
            (_, None) => false,
        };
        let until = [start, end].into_iter().flatten().min().unwrap_or(u64::MAX);
        self.known = Some((within, now_ms, until));
        within
    }

    /// The next time after `now_ms`.
    fn next(&self, cron: &Cron, now_ms: u64) -> Option<u64> {
        let now = Timestamp::from_millisecond(i64::try_from(now_ms).ok()?).ok()?;
        let now = Wall(now.to_zoned_datetime(self.window.timezone.clone()));
        let next = cron.find_next_occurrence(&now, false).ok()?;
        u64::try_from(next.0.timestamp().as_millisecond()).ok()
    }
}

/// jiff's time for croner.
#[derive(Clone, Debug)]
struct Wall(ZonedDateTime);

impl CronDateTime for Wall {
    fn to_civil(&self) -> CivilDateTime {
        let (date, time) = (self.0.date(), self.0.time());
        CivilDateTime::new(
            CivilDate::from_parts_unchecked(
                i32::from(date.year()),
                date.month() as u32,
                date.day() as u32,
            ),
            CivilTime::from_parts_unchecked(
                time.hour() as u32,
                time.minute() as u32,
                time.second() as u32,
            ),
        )
    }

    fn civil_weekday(&self) -> Weekday {
        Weekday::from_days_from_sunday(self.0.weekday().to_sunday_zero_offset() as u32)
    }

    fn resolve_civil(&self, civil: CivilDateTime) -> Result<Resolution<Self>, CronError> {
        let year = i16::try_from(civil.year()).map_err(|_| CronError::InvalidDate)?;
        let wall = jiff::civil::DateTime::new(
            year,
            civil.month() as i8,
            civil.day() as i8,
            civil.hour() as i8,
            civil.minute() as i8,
            civil.second() as i8,
            0,
        );
        let wall = wall.map_err(|_| CronError::InvalidDate)?;
        let ambiguous = self.0.time_zone().to_ambiguous_zoned_datetime(wall);
        let out_of_range = |_| CronError::InvalidTime;
        Ok(match ambiguous.offset() {
            AmbiguousOffset::Unambiguous { .. } => {
                Resolution::Single(Self(ambiguous.unambiguous().map_err(out_of_range)?))
            }
            AmbiguousOffset::Fold { .. } => Resolution::Ambiguous(
                Self(ambiguous.clone().earlier().map_err(out_of_range)?),
                Self(ambiguous.later().map_err(out_of_range)?),
            ),
            AmbiguousOffset::Gap { .. } => Resolution::Gap,
        })
    }

    fn checked_add_seconds(&self, seconds: i64) -> Option<Self> {
        self.0.checked_add(SignedDuration::from_secs(seconds)).ok().map(Self)
    }

    fn cmp_instant(&self, other: &Self) -> Ordering {
        self.0.timestamp().cmp(&other.0.timestamp())
    }
}

#[cfg(test)]
mod tests {
    use forebay_config::{Signal, Trigger};

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
                "begins in the hour that the clock skips: when that is over",
                "Europe/Amsterdam",
                "30 2 * * *",
                "0 12 * * *",
                &[
                    ("2026-03-29T00:59:59Z", false),
                    ("2026-03-29T01:00:00Z", true),
                    ("2026-03-29T09:59:59Z", true),
                    ("2026-03-29T10:00:00Z", false),
                ],
            ),
            (
                "begins in the hour that the clock repeats",
                "Europe/Amsterdam",
                "30 2 * * *",
                "0 12 * * *",
                &[
                    ("2026-10-25T00:29:59Z", false),
                    ("2026-10-25T00:30:00Z", true),
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
