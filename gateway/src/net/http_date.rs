//! The time as `date` states it, which every answer has.

use std::cell::Cell;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimePrinter;

use crate::wire::outbox::DateText;

/// A second, and its text.
#[derive(Clone, Copy)]
struct WrittenSecond {
    since_epoch: u64,
    text: DateText,
}

thread_local! {
    static LAST: Cell<Option<WrittenSecond>> = const { Cell::new(None) };
}

/// The present time as an HTTP date (RFC 9110, 5.6.7). It is written once a second.
pub(crate) fn now() -> DateText {
    let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    at(time)
}

fn at(time: Duration) -> DateText {
    let since_epoch = time.as_secs();
    if let Some(last) = LAST.get()
        && last.since_epoch == since_epoch
    {
        return last.text;
    }
    let mut text = *b"Thu, 01 Jan 1970 00:00:00 GMT";
    if let Ok(time) = Timestamp::from_second(since_epoch.cast_signed())
        && let Ok(written) = DateTimePrinter::new().timestamp_to_rfc9110_string(&time)
        && let Ok(written) = written.into_bytes().try_into()
    {
        text = written;
    }
    LAST.set(Some(WrittenSecond { since_epoch, text }));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_date_is_that_of_its_second() {
        for (second, want) in [
            (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (784_111_777, "Sun, 06 Nov 1994 08:49:37 GMT"),
            (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
        ] {
            assert_eq!(at(Duration::from_millis(second * 1000 + 999)), want.as_bytes(), "{second}");
        }
    }
}
