//! Sizes: `64Ki`, `32Mi`, `1Gi`, `10M`, or a bare number of bytes, with Kubernetes' suffixes.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Suffixes and their values; the preferred ones for writing come first.
const SUFFIXES: [(&str, u64); 8] = [
    ("Ti", 1 << 40),
    ("Gi", 1 << 30),
    ("Mi", 1 << 20),
    ("Ki", 1 << 10),
    ("T", 1_000_000_000_000),
    ("G", 1_000_000_000),
    ("M", 1_000_000),
    ("k", 1_000),
];

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(u64);

/// A text is not a size. The message says why, and what to write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number with one of our suffixes.
    #[error("`{0}` is not a size; write for example 64Ki, 32Mi, 1Gi or a number of bytes")]
    Unreadable(String),
    /// A suffix in another notation.
    #[error("`{text}` is not a size; write {meant}")]
    OtherSuffix {
        /// The text.
        text: String,
        /// The size that was probably meant.
        meant: String,
    },
    /// More than 64 bits can hold.
    #[error("`{0}` is too large a size")]
    TooLarge(String),
}

impl ByteSize {
    /// This many bytes.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self(bytes)
    }

    /// This many KiB.
    #[must_use]
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// This many MiB.
    #[must_use]
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// In bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl std::str::FromStr for ByteSize {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let whole = || text.to_owned();
        let trimmed = text.trim();
        let digits = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
        let (number, suffix) = trimmed.split_at(digits);
        let suffix = suffix.trim_start();
        if number.is_empty() {
            return Err(SizeError::Unreadable(whole()));
        }
        let unit = match SUFFIXES.iter().find(|(name, _)| *name == suffix) {
            Some((_, unit)) => *unit,
            None if suffix.is_empty() => 1,
            None => return Err(other_suffix(text, number, suffix)),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.map(Self).ok_or_else(|| SizeError::TooLarge(whole()))
    }
}

/// `32MB`, `32MiB`, `32mb` and the like are understood, to say how to write them.
fn other_suffix(text: &str, number: &str, suffix: &str) -> SizeError {
    let small = suffix.to_lowercase();
    let bare = small.strip_suffix('b').unwrap_or(&small);
    let meant = match SUFFIXES.iter().find(|(name, _)| name.to_lowercase() == bare) {
        Some((name, _)) => format!("{number}{name}"),
        None if bare.is_empty() => number.to_owned(),
        None => return SizeError::Unreadable(text.to_owned()),
    };
    SizeError::OtherSuffix { text: text.to_owned(), meant }
}

/// In the largest unit that loses nothing.
impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = |unit: u64| self.0 >= unit && self.0.is_multiple_of(unit);
        match SUFFIXES.iter().find(|(_, unit)| exact(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(SizeVisitor)
    }
}

struct SizeVisitor;

impl de::Visitor<'_> for SizeVisitor {
    type Value = ByteSize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 32Mi or a number of bytes")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
        text.parse().map_err(E::custom)
    }

    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
        Ok(ByteSize(bytes))
    }

    fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
        self.visit_str(&bytes.to_string())
    }

    fn visit_f64<E: de::Error>(self, bytes: f64) -> Result<ByteSize, E> {
        self.visit_str(&bytes.to_string())
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ByteSize".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "title": "size",
            "type": ["string", "integer"],
            "minimum": 0,
            "pattern": "^[0-9]+ *(Ki|Mi|Gi|Ti|k|M|G|T)?$",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sizes_are_read_with_kubernetes_suffixes() {
        for (text, bytes) in [
            ("64Ki", 65_536),
            ("32Mi", 33_554_432),
            ("1Gi", 1_073_741_824),
            ("10M", 10_000_000),
            ("10k", 10_000),
            ("4096", 4_096),
            ("0", 0),
            ("1 Ti", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn a_text_that_is_not_a_size_is_refused_with_what_to_write() {
        for (text, message) in [
            ("", "`` is not a size; write for example 64Ki, 32Mi, 1Gi or a number of bytes"),
            ("big", "`big` is not a size; write for example 64Ki, 32Mi, 1Gi or a number of bytes"),
            (
                "1.5Mi",
                "`1.5Mi` is not a size; write for example 64Ki, 32Mi, 1Gi or a number of bytes",
            ),
            ("-1", "`-1` is not a size; write for example 64Ki, 32Mi, 1Gi or a number of bytes"),
            ("32MiB", "`32MiB` is not a size; write 32Mi"),
            ("32MB", "`32MB` is not a size; write 32M"),
            ("32K", "`32K` is not a size; write 32k"),
            ("512B", "`512B` is not a size; write 512"),
            ("99999999Ti", "`99999999Ti` is too large a size"),
        ] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn a_size_is_written_in_the_largest_unit_that_loses_nothing() {
        for (bytes, text) in [
            (0, "0"),
            (1, "1"),
            (1024, "1Ki"),
            (1 << 30, "1Gi"),
            (10_000_000, "10M"),
            (1025, "1025"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(bytes: u64, shift in 0..64_u32) {
            let size = ByteSize(bytes >> shift << (shift / 2));
            prop_assert_eq!(size.to_string().parse(), Ok(size));
        }
    }
}
