//! When a `cron` trigger's window is open.

use std::cmp::Ordering;

use croner::errors::CronError;
use croner::{CivilDate, CivilDateTime, CivilTime, Cron, CronDateTime, Resolution, Weekday};
use jiff::tz::AmbiguousOffset;
use jiff::{SignedDuration, Timestamp, ZonedDateTime};

use super::CronWindow;

impl CronWindow {
    /// Whether it is open at `now_ms`, in milliseconds since the epoch, and until when that is so:
    /// start included, end not. As in KEDA, it is open when the next end comes before the next
    /// start, so that it may cross midnight or a weekend. A time that the clock skips counts at the
    /// first moment after the gap; one that it repeats counts twice, which changes nothing.
    #[must_use]
    pub fn open(&self, now_ms: u64) -> (bool, u64) {
        let (start, end) = (self.next(&self.start, now_ms), self.next(&self.end, now_ms));
        let open = match (start, end) {
            (Some(start), Some(end)) => end <= start,
            // It never begins again, or never ends.
            (None, Some(_)) => true,
            (_, None) => false,
        };
        (open, [start, end].into_iter().flatten().min().unwrap_or(u64::MAX))
    }

    /// The next time after `now_ms`.
    fn next(&self, cron: &Cron, now_ms: u64) -> Option<u64> {
        let next = cron.find_next_occurrence(&self.wall(now_ms)?, false).ok()?;
        u64::try_from(next.0.timestamp().as_millisecond()).ok()
    }

    /// `Friday 22:00`, where its times are told.
    pub(crate) fn weekday_and_time(&self, ms: u64) -> String {
        self.wall(ms).map_or_else(String::new, |wall| {
            let time = wall.0.time();
            format!("{:?} {:02}:{:02}", wall.0.weekday(), time.hour(), time.minute())
        })
    }

    fn wall(&self, ms: u64) -> Option<Wall> {
        let time = Timestamp::from_millisecond(i64::try_from(ms).ok()?).ok()?;
        Some(Wall(time.to_zoned_datetime(self.timezone.clone())))
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
