//! Durations: `30s`, `5m`, `1h30m`, `250ms`, or a bare number of seconds, as HPA and KEDA have it.

use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserializer, Serializer, de};

/// Longest duration that is accepted. Longer ones are mistakes, and could overflow a deadline.
const LONGEST: Duration = Duration::from_secs(3650 * 24 * 60 * 60);

/// A text is not a duration. The message says why, and what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// A number without a unit after a number with one, or no number at all.
    #[error("`{0}` is not a duration; write for example 250ms, 30s, 5m or 1h30m")]
    Unreadable(String),
    /// An unknown unit.
    #[error("`{text}` is not a duration: unit `{unit}` is not known; use d, h, m, s or ms")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The unknown unit.
        unit: String,
    },
    /// Units that are not in order from large to small.
    #[error("`{0}` is not a duration: write each unit once, larger ones first, as in 1h30m")]
    Order(String),
    /// A fraction, which has a smaller unit to be written in.
    #[error("`{0}` is not a duration: no fractions; write 1500ms for 1.5s, 90s for 1.5m")]
    Fraction(String),
    /// Below zero.
    #[error("`{0}` is negative; a duration is 0s or longer")]
    Negative(String),
    /// Over ten years.
    #[error("`{0}` is longer than ten years")]
    TooLong(String),
}

/// Reads `30s`, `5m`, `1h30m`, `250ms`, `1d`, or a bare number of seconds.
///
/// # Errors
/// The text is none of these, or is longer than ten years.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let whole = || text.to_owned();
    let mut rest = text.trim();
    if rest.starts_with('-') {
        return Err(DurationError::Negative(whole()));
    }
    if !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_digit()) {
        let seconds = rest.parse().map_err(|_| DurationError::TooLong(whole()))?;
        return bounded(Duration::from_secs(seconds), text);
    }
    let (mut sum, mut last) = (0_u64, u64::MAX);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, behind) = rest.split_at(digits);
        if !number.is_empty() && behind.starts_with(['.', ',']) {
            return Err(DurationError::Fraction(whole()));
        }
        let letters = behind.find(|c: char| !c.is_alphabetic()).unwrap_or(behind.len());
        let (unit, next) = behind.split_at(letters);
        if number.is_empty() || unit.is_empty() {
            return Err(DurationError::Unreadable(whole()));
        }
        let unit = match unit {
            "d" => 24 * 60 * 60 * 1000,
            "h" => 60 * 60 * 1000,
            "m" => 60 * 1000,
            "s" => 1000,
            "ms" => 1,
            unit => {
                return Err(DurationError::UnknownUnit { text: whole(), unit: unit.to_owned() });
            }
        };
        if unit >= last {
            return Err(DurationError::Order(whole()));
        }
        let number = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        let added = number.and_then(|number| sum.checked_add(number));
        sum = added.ok_or_else(|| DurationError::TooLong(whole()))?;
        last = unit;
        rest = next.trim_start();
    }
    if last == u64::MAX {
        return Err(DurationError::Unreadable(whole()));
    }
    bounded(Duration::from_millis(sum), text)
}

fn bounded(duration: Duration, text: &str) -> Result<Duration, DurationError> {
    if duration > LONGEST {
        return Err(DurationError::TooLong(text.to_owned()));
    }
    Ok(duration)
}

/// Writes a duration as [`parse_duration`] reads it: `1h30m`, `250ms`, `0s`. Fractions of a
/// millisecond are left out.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let parts = [
        (seconds / 3600, "h"),
        (seconds / 60 % 60, "m"),
        (seconds % 60, "s"),
        (u64::from(millis), "ms"),
    ];
    let parts = parts.iter().filter(|(count, _)| *count > 0);
    let text: String = parts.map(|(count, unit)| format!("{count}{unit}")).collect();
    if text.is_empty() { "0s".to_owned() } else { text }
}

// === for `#[serde(with)]` ===

pub(crate) fn serialize<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_str(&format_duration(*duration))
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    d.deserialize_any(DurationVisitor)
}

/// The same for a duration that may be left out.
pub(crate) mod optional {
    use super::{Deserializer, Duration, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, s),
            None => s.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        super::deserialize(d).map(Some)
    }
}

/// The same for a duration or the word `never`, which is `None`.
pub(crate) mod or_never {
    use super::{Deserializer, Duration, DurationVisitor, Serializer, de};

    const NEVER: &str = "never";

    pub(crate) fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        s: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => super::serialize(duration, s),
            None => s.serialize_str(NEVER),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        d: D,
    ) -> Result<Option<Duration>, D::Error> {
        d.deserialize_any(OrNever)
    }

    struct OrNever;

    impl de::Visitor<'_> for OrNever {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a duration such as 30s, or never")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text == NEVER { Ok(None) } else { DurationVisitor.visit_str(text).map(Some) }
        }

        fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Self::Value, E> {
            DurationVisitor.visit_u64(seconds).map(Some)
        }

        fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Self::Value, E> {
            DurationVisitor.visit_i64(seconds).map(Some)
        }

        fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Self::Value, E> {
            DurationVisitor.visit_f64(seconds).map(Some)
        }
    }
}

struct DurationVisitor;

impl de::Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a duration such as 30s or 1h30m")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
        parse_duration(text).map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, seconds: u64) -> Result<Duration, E> {
        self.visit_str(&seconds.to_string())
    }

    fn visit_i64<E: de::Error>(self, seconds: i64) -> Result<Duration, E> {
        self.visit_str(&seconds.to_string())
    }

    fn visit_f64<E: de::Error>(self, seconds: f64) -> Result<Duration, E> {
        self.visit_str(&seconds.to_string())
    }
}

/// The schema of a duration, or of what else the beginning of its pattern allows.
fn text_or_seconds(title: &str, or: &str) -> Schema {
    // Without lookahead, which helm's regular expressions don't have.
    let units = "([0-9]+d *)?([0-9]+h *)?([0-9]+m *)?([0-9]+s *)?([0-9]+ms)?";
    json_schema!({
        "title": title,
        "type": ["string", "integer"],
        "minimum": 0,
        "minLength": 1,
        "pattern": format!("^({or}[0-9]+|{units})$"),
    })
}

/// Schema of a duration, as text or as bare seconds.
pub(crate) struct DurationSchema;

impl JsonSchema for DurationSchema {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        text_or_seconds("duration", "")
    }
}

/// Schema of a duration, or of the word `never`.
pub(crate) struct OrNeverSchema;

impl JsonSchema for OrNeverSchema {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DurationOrNever".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        text_or_seconds("duration, `never`", "never|")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1h 30m", 5_400_000),
            ("250ms", 250),
            ("1s500ms", 1_500),
            ("1d", 86_400_000),
            ("0s", 0),
            ("0", 0),
            ("300", 300_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_duration_is_refused_with_what_to_write() {
        for (text, message) in [
            ("", "`` is not a duration; write for example 250ms, 30s, 5m or 1h30m"),
            ("soon", "`soon` is not a duration; write for example 250ms, 30s, 5m or 1h30m"),
            ("1h30", "`1h30` is not a duration; write for example 250ms, 30s, 5m or 1h30m"),
            (
                "30 parsecs",
                "`30 parsecs` is not a duration; write for example 250ms, 30s, 5m or 1h30m",
            ),
            ("30sec", "`30sec` is not a duration: unit `sec` is not known; use d, h, m, s or ms"),
            ("5M", "`5M` is not a duration: unit `M` is not known; use d, h, m, s or ms"),
            (
                "30m1h",
                "`30m1h` is not a duration: write each unit once, larger ones first, as in 1h30m",
            ),
            ("1.5s", "`1.5s` is not a duration: no fractions; write 1500ms for 1.5s, 90s for 1.5m"),
            ("-1s", "`-1s` is negative; a duration is 0s or longer"),
            ("4000d", "`4000d` is longer than ten years"),
            ("99999999999999999999", "`99999999999999999999` is longer than ten years"),
            ("99999999999999999999s", "`99999999999999999999s` is longer than ten years"),
        ] {
            let error = parse_duration(text).expect_err(text);
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn never_is_read_where_it_is_allowed_and_written_back() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Wait(#[serde(with = "or_never")] Option<Duration>);
        for (json, written, want) in [
            ("\"never\"", "\"never\"", None),
            ("\"90s\"", "\"1m30s\"", Some(Duration::from_secs(90))),
            ("5", "\"5s\"", Some(Duration::from_secs(5))),
        ] {
            let wait: Wait = serde_json::from_str(json).expect(json);
            assert_eq!(wait, Wait(want));
            assert_eq!(serde_json::to_string(&wait).expect("JSON"), written);
        }
        let error = serde_json::from_str::<Wait>("\"always\"").expect_err("not a duration");
        assert!(error.to_string().contains("`always` is not a duration"), "{error}");
    }

    proptest! {
        #[test] // to the millisecond, over the whole range
        fn what_is_written_is_read_back(millis in 0..=LONGEST.as_millis() as u64) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,12}|[0-9dhms. ]{0,40}") {
            let _ = parse_duration(&text);
        }
    }
}
