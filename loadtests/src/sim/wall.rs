//! The wall clock, for what replies carry: `date`, `created`, random ids.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Since the epoch.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Sixteen random hexadecimal digits, as in `chatcmpl-81c36723a17998c6`.
pub(crate) fn id16() -> String {
    format!("{:016x}", rand::random::<u64>())
}

/// Thirty-two, as in `x-request-id`.
pub(crate) fn id32() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// A `date` header: `Mon, 23 Nov 2026 16:40:10 GMT`.
pub(crate) fn http_date(since_epoch: Duration) -> String {
    const DAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let seconds = since_epoch.as_secs();
    let days = seconds / 86_400;
    // Days to a date in the era of 400 years that begins on 1 March 0000.
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12;
    let year = era * 400 + year_of_era + u64::from(month < 2);
    format!(
        "{}, {day:02} {} {year} {:02}:{:02}:{:02} GMT",
        DAYS[(days % 7) as usize],
        MONTHS[month as usize],
        seconds / 3600 % 24,
        seconds / 60 % 60,
        seconds % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_written_as_http_wants_them() {
        for (seconds, want) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (951_782_400, "Tue, 29 Feb 2000 00:00:00 GMT"),
            (1_795_452_010, "Mon, 23 Nov 2026 16:40:10 GMT"),
        ] {
            assert_eq!(http_date(Duration::from_secs(seconds)), want);
        }
    }
}
