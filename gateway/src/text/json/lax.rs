//! Reads values as vLLM reads those of a request: with pydantic in its lax mode, where `"yes"` and
//! `1.0` are booleans, and `" 2 "` and `true` are whole numbers. The rules are pydantic-core's
//! (`input/shared.rs`); a test in `read/scan` compares them with vLLM's own verdicts.

use std::borrow::Cow;

use super::{Cursor, JsonError, JsonKind};

/// A value from which a field of a simple type can be read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Scalar<'a> {
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    /// An object, an array, or a string that is not text.
    Other,
}

/// The reading of a field of type `T` that may be `null`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lax<T> {
    Null,
    Value(T),
    /// A value of another type: vLLM refuses it.
    Invalid,
}

impl<T> Lax<T> {
    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Value(value) => Some(value),
            Self::Null | Self::Invalid => None,
        }
    }
}

impl<'a> Cursor<'a> {
    /// The next value as a count, read as vLLM reads a request's field; `None` if it is not one.
    pub(crate) fn count(&mut self) -> Result<Option<u64>, JsonError> {
        match self.plain_count() {
            Some(count) => Ok(Some(count)),
            None => Ok(self.scalar()?.count().value()),
        }
    }

    /// Reads the next value if it is a whole number as nearly all are written. Or else, stays where
    /// it is.
    fn plain_count(&mut self) -> Option<u64> {
        const MOST_DIGITS: usize = 18;
        self.peek();
        let (mut at, mut count) = (self.at, 0);
        while let Some(digit @ b'0'..=b'9') = self.bytes.get(at) {
            count = count * 10 + u64::from(digit - b'0');
            at += 1;
            if at - self.at > MOST_DIGITS {
                return None;
            }
        }
        let is_zero_before_digits = self.bytes.get(self.at) == Some(&b'0') && at - self.at > 1;
        let goes_on = matches!(self.bytes.get(at), Some(b'.' | b'e' | b'E'));
        if at == self.at || is_zero_before_digits || goes_on {
            return None;
        }
        self.at = at;
        Some(count)
    }

    /// The next value.
    pub(crate) fn scalar(&mut self) -> Result<Scalar<'a>, JsonError> {
        let kind = self.kind()?;
        let start = self.at;
        if kind == JsonKind::String {
            return Ok(self.string()?.decode().map_or(Scalar::Other, Scalar::Text));
        }
        self.skip()?;
        Ok(match kind {
            JsonKind::Null => Scalar::Null,
            JsonKind::True => Scalar::Bool(true),
            JsonKind::False => Scalar::Bool(false),
            JsonKind::Number => {
                let text = std::str::from_utf8(&self.bytes[start..self.at]);
                text.map_or(Scalar::Other, Scalar::Number)
            }
            JsonKind::Object | JsonKind::Array | JsonKind::String => Scalar::Other,
        })
    }
}

impl Scalar<'_> {
    pub(crate) fn boolean(&self) -> Lax<bool> {
        let read = match self {
            Self::Null => return Lax::Null,
            Self::Bool(value) => Some(*value),
            Self::Number(text) => match text.parse() {
                Ok(0.0) => Some(false),
                Ok(1.0) => Some(true),
                Ok(_) | Err(_) => None,
            },
            Self::Text(text) => boolean(text),
            Self::Other => None,
        };
        read.map_or(Lax::Invalid, Lax::Value)
    }

    /// The value as a count. A whole number below zero is invalid, although vLLM may accept it.
    pub(crate) fn count(&self) -> Lax<u64> {
        let read = match self {
            Self::Null => return Lax::Null,
            Self::Bool(value) => Some(u64::from(*value)),
            Self::Number(text) => match text.bytes().all(|byte| byte.is_ascii_digit()) {
                true => Some(digits(text)),
                false => whole(text),
            },
            Self::Text(text) => count(text),
            Self::Other => None,
        };
        read.map_or(Lax::Invalid, Lax::Value)
    }
}

/// A boolean written as text, in forms as well.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    let is = |word: &&str| text.eq_ignore_ascii_case(word);
    if ["1", "true", "t", "yes", "y", "on"].iter().any(is) {
        return Some(true);
    }
    ["0", "false", "f", "no", "n", "off"].iter().any(is).then_some(false)
}

/// A count written as text. It may have white space around it, a sign before it, single underscores
/// between its digits, and zeros after its point.
pub(crate) fn count(text: &str) -> Option<u64> {
    let text = text.trim();
    let (negative, text) = match text.strip_prefix('-') {
        Some(text) => (true, text),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (number, zeros) = text.split_once('.').unwrap_or((text, "0"));
    let grouped = number
        .split('_')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    if !grouped || zeros.is_empty() || zeros.bytes().any(|byte| byte != b'0') {
        return None;
    }
    let count = digits(&number.replace('_', ""));
    (count == 0 || !negative).then_some(count)
}

/// The number that these digits write; the largest number if it does not fit.
fn digits(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}

/// A float that is whole and not below zero; `-0.0` is zero.
fn whole(text: &str) -> Option<u64> {
    let float: f64 = text.parse().ok()?;
    (float.fract() == 0.0 && (0.0..i64::MAX as f64).contains(&float)).then_some(float as u64)
}
