//! KEDA's cron dialect: five fields, as Go's `robfig/cron` v3 reads them without descriptors, and
//! the next time that they name, as it computes it.
//!
//! Fields are sets of bits. `?` is `*`, `N/S` is `N-MAX/S`, names are those of months and weekdays,
//! Sunday is 0 alone, and a `TZ=` or `CRON_TZ=` in front names a zone. Where day and weekday are
//! both restricted, one of them is enough.
//!
//! Written by hand, since crates read another dialect (`7`, `L`, `W`, `#`, `@daily`), and compute other
//! times when the clock changes. Pure. A test compares it with the Go module.

use jiff::civil::{Date, DateTime};
use jiff::tz::{Offset, TimeZone, TimeZoneDatabase};
use jiff::{Span, Timestamp};

/// A cron expression of five fields.
#[derive(Clone, Debug, PartialEq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    weekdays: u64,
    /// The zone that the expression itself names.
    zone: Option<TimeZone>,
}

/// The bit for a field that is `*` or `?`.
const STAR: u64 = 1 << 63;

struct FieldRange {
    least: u64,
    most: u64,
    /// Bits for the values from `least` on.
    names: &'static [&'static str],
}

const MINUTE: FieldRange = FieldRange { least: 0, most: 59, names: &[] };
const HOUR: FieldRange = FieldRange { least: 0, most: 23, names: &[] };
const DAY: FieldRange = FieldRange { least: 1, most: 31, names: &[] };
const MONTH: FieldRange = FieldRange {
    least: 1,
    most: 12,
    names: &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"],
};
const WEEKDAY: FieldRange =
    FieldRange { least: 0, most: 6, names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"] };

/// The zone that Go's `time.LoadLocation` finds by this name: case matters, `Local` is the machine's
/// zone, and an empty name is UTC.
pub(crate) fn time_zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => return Some(TimeZone::UTC),
        "Local" => return Some(TimeZone::system()),
        _ => {}
    }
    let known = TimeZoneDatabase::bundled().get(name).ok()?;
    // The system's rules may be newer than those that are bundled; its list of names may be shorter.
    (known.iana_name() == Some(name)).then(|| TimeZone::get(name).unwrap_or(known))
}

/// The zone's name in its right case, if only the case is wrong.
pub(crate) fn near_zone(name: &str) -> Option<String> {
    TimeZoneDatabase::bundled().get(name).ok()?.iana_name().map(str::to_owned)
}

impl Cron {
    /// Reads `text`.
    ///
    /// # Errors
    /// The fault, as the end of a sentence that begins with the text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (zone, text) = prefix(text)?;
        if text.starts_with('@') {
            return Err("is a descriptor, which KEDA does not take; write five fields".to_owned());
        }
        let fields: Vec<_> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            let count = fields.len();
            return Err(format!(
                "has {count} field{}, not five (minute, hour, day, month, weekday)",
                if count == 1 { "" } else { "s" }
            ));
        };
        Ok(Self {
            minutes: values(minute, &MINUTE)?,
            hours: values(hour, &HOUR)?,
            days: values(day, &DAY)?,
            months: values(month, &MONTH)?,
            weekdays: values(weekday, &WEEKDAY)?,
            zone,
        })
    }

    /// The first time after `now_ms` that matches, in milliseconds since the epoch. `zone` counts
    /// unless the expression names one itself. `None` if no time matches within five years.
    #[must_use]
    pub fn next(&self, now_ms: u64, zone: &TimeZone) -> Option<u64> {
        // A field without a value never fits.
        if self.minutes == 0 || self.hours == 0 {
            return None;
        }
        let clock = Clock(self.zone.as_ref().unwrap_or(zone));
        let mut t = i64::try_from(now_ms / 1000).ok()? + 1;
        let last_year = clock.wall(t)?.year().checked_add(5)?;
        // Whether smaller fields are at their first value, because a larger one was advanced.
        let mut advanced = false;
        'wrap: loop {
            if clock.wall(t)?.year() > last_year {
                return None;
            }
            loop {
                let wall = clock.wall(t)?;
                if has(self.months, wall.month()) {
                    break;
                }
                let mut from = wall;
                if !advanced {
                    advanced = true;
                    t = clock.unix(wall.date().first_of_month().at(0, 0, 0, 0))?;
                    from = clock.wall(t)?;
                }
                t = clock.unix(months_later(from)?)?;
                if clock.wall(t)?.month() == 1 {
                    continue 'wrap;
                }
            }
            loop {
                let wall = clock.wall(t)?;
                if self.has_day(wall.date()) {
                    break;
                }
                let mut from = wall;
                if !advanced {
                    advanced = true;
                    t = clock.unix(wall.date().at(0, 0, 0, 0))?;
                    from = clock.wall(t)?;
                }
                t = clock.unix(from.checked_add(Span::new().days(1)).ok()?)?;
                // There may be no midnight on a day that the clock is changed on.
                match i64::from(clock.wall(t)?.hour()) {
                    0 => {}
                    hour if hour > 12 => t += (24 - hour) * 3600,
                    hour => t -= hour * 3600,
                }
                if clock.wall(t)?.day() == 1 {
                    continue 'wrap;
                }
            }
            loop {
                let wall = clock.wall(t)?;
                if has(self.hours, wall.hour()) {
                    break;
                }
                if !advanced {
                    advanced = true;
                    t = clock.unix(wall.date().at(wall.hour(), 0, 0, 0))?;
                }
                t += 3600;
                if clock.wall(t)?.hour() == 0 {
                    continue 'wrap;
                }
            }
            loop {
                if has(self.minutes, clock.wall(t)?.minute()) {
                    break;
                }
                if !advanced {
                    advanced = true;
                    t -= t.rem_euclid(60);
                }
                t += 60;
                if clock.wall(t)?.minute() == 0 {
                    continue 'wrap;
                }
            }
            if clock.wall(t)?.second() == 0 {
                return u64::try_from(t).ok()?.checked_mul(1000);
            }
            advanced = true;
            while clock.wall(t)?.second() != 0 {
                t += 1;
            }
        }
    }

    fn has_day(&self, date: Date) -> bool {
        let day = has(self.days, date.day());
        let weekday = has(self.weekdays, date.weekday().to_sunday_zero_offset());
        if (self.days | self.weekdays) & STAR == 0 { day || weekday } else { day && weekday }
    }

    /// The weekdays that it names, Sunday first, where it restricts neither day nor month.
    pub(crate) fn weekdays(&self) -> Option<Vec<u8>> {
        let weekly = self.days & STAR != 0 && self.months & STAR != 0;
        weekly.then(|| (0..7).filter(|day| self.weekdays & (1 << day) != 0).collect())
    }

    /// Hour and minute, where it names one of each.
    pub(crate) fn time_of_day(&self) -> Option<(u32, u32)> {
        let one = |bits: u64| (bits.count_ones() == 1).then(|| bits.trailing_zeros());
        Some((one(self.hours)?, one(self.minutes)?))
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits & (1 << value) != 0)
}

/// The zone in front, if there is one, and the rest.
fn prefix(text: &str) -> Result<(Option<TimeZone>, &str), String> {
    let Some(rest) = text.strip_prefix("TZ=").or_else(|| text.strip_prefix("CRON_TZ=")) else {
        return Ok((None, text));
    };
    let Some((name, rest)) = rest.split_once(' ') else {
        return Err("has nothing after its zone".to_owned());
    };
    let zone = time_zone(name).ok_or_else(|| format!("names the unknown zone `{name}`"))?;
    // `Local` is the zone of the time that the search starts from.
    Ok(((name != "Local").then_some(zone), rest.trim()))
}

/// The values of one field, a list of ranges.
fn values(text: &str, field: &FieldRange) -> Result<u64, String> {
    let ranges = text.split(',').filter(|range| !range.is_empty());
    ranges.map(|range| self::range(range, field)).try_fold(0, |bits, range| Ok(bits | range?))
}

/// `*`, `N`, `N-M`, each with or without a step.
fn range(text: &str, field: &FieldRange) -> Result<u64, String> {
    let wrong = |what: &str| Err(format!("is wrong at `{text}`: {what}"));
    let (bounds, step) = match text.split_once('/') {
        None => (text, None),
        Some((_, step)) if step.contains('/') => return wrong("there are two slashes"),
        Some((bounds, step)) => (bounds, Some(number(step, text)?)),
    };
    let parts: Vec<_> = bounds.split('-').collect();
    let (from, to, mut star) = match parts[..] {
        ["*" | "?", ..] => (field.least, field.most, STAR),
        [one] => {
            let from = field.value(one, text)?;
            // With a step the range goes on to the field's end.
            (from, if step.is_some() { field.most } else { from }, 0)
        }
        [from, to] => (field.value(from, text)?, field.value(to, text)?, 0),
        _ => return wrong("there are two hyphens"),
    };
    let step = step.unwrap_or(1);
    if step > 1 {
        star = 0;
    }
    if from < field.least || to > field.most {
        return wrong(&format!("the values are {} to {}", field.least, field.most));
    }
    if from > to {
        return wrong("it ends before it begins");
    }
    if step == 0 {
        return wrong("a step is 1 or more");
    }
    let step = usize::try_from(step).unwrap_or(usize::MAX);
    Ok((from..=to).step_by(step).fold(star, |bits, value| bits | (1 << value)))
}

impl FieldRange {
    fn value(&self, text: &str, range: &str) -> Result<u64, String> {
        // Go maps each letter to one letter.
        let lower: String = text.chars().filter_map(|c| c.to_lowercase().next()).collect();
        let named = self.names.iter().zip(self.least..).find(|(name, _)| **name == lower);
        named.map_or_else(|| number(text, range), |(_, value)| Ok(value))
    }
}

fn number(text: &str, range: &str) -> Result<u64, String> {
    let digits = text.strip_prefix('+').unwrap_or(text);
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number =
        digits.parse::<i64>().ok().filter(|_| plain).and_then(|number| u64::try_from(number).ok());
    number.ok_or_else(|| format!("is wrong at `{range}`: `{text}` is not a number"))
}

/// The same time a month later, as Go's `AddDate`: surplus days overflow into the next month.
fn months_later(from: DateTime) -> Option<DateTime> {
    let first = from.date().first_of_month().checked_add(Span::new().months(1)).ok()?;
    let date = first.checked_add(Span::new().days(i64::from(from.day()) - 1)).ok()?;
    Some(date.to_datetime(from.time()))
}

/// A zone's clock.
struct Clock<'a>(&'a TimeZone);

impl Clock<'_> {
    fn offset(&self, unix: i64) -> Option<Offset> {
        Some(self.0.to_offset(Timestamp::from_second(unix).ok()?))
    }

    fn wall(&self, unix: i64) -> Option<DateTime> {
        Some(self.offset(unix)?.to_datetime(Timestamp::from_second(unix).ok()?))
    }

    /// The moment when the clock shows this; Go's `time.Date` decides where it does so twice or
    /// never.
    fn unix(&self, wall: DateTime) -> Option<i64> {
        let unix = Offset::UTC.to_timestamp(wall).ok()?.as_second();
        match i64::from(self.offset(unix)?.seconds()) {
            0 => Some(unix),
            seconds => Some(unix - i64::from(self.offset(unix - seconds)?.seconds())),
        }
    }
}
