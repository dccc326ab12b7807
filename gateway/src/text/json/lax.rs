//! Values as vLLM reads a request's: pydantic in its lax mode, where `"yes"` and `1.0` are booleans
//! and `" 2 "` and `true` are whole numbers. The rules are pydantic-core's (`input/shared.rs`), and
//! vLLM's own verdicts are a test (`scan`).

use std::borrow::Cow;

use super::{Broken, Cursor, Kind};

/// A value that a field of a simple type can be read from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Simple<'a> {
    Null,
    Bool(bool),
    /// As it is written.
    Number(&'a str),
    Text(Cow<'a, str>),
    /// An object, an array, or a string that is not text.
    Other,
}

/// What a field of the type `T`, which may be `null`, is read as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lax<T> {
    Null,
    Value(T),
    /// Of another type: the server refuses it.
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
    /// The next value.
    pub(crate) fn simple(&mut self) -> Result<Simple<'a>, Broken> {
        let kind = self.kind()?;
        let start = self.at;
        if kind == Kind::String {
            return Ok(self.string()?.decode().map_or(Simple::Other, Simple::Text));
        }
        self.skip()?;
        Ok(match kind {
            Kind::Null => Simple::Null,
            Kind::True => Simple::Bool(true),
            Kind::False => Simple::Bool(false),
            Kind::Number => {
                let text = std::str::from_utf8(&self.bytes[start..self.at]);
                text.map_or(Simple::Other, Simple::Number)
            }
            Kind::Object | Kind::Array | Kind::String => Simple::Other,
        })
    }
}

impl Simple<'_> {
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

    /// A count; those below zero, which are whole numbers too, are no counts and read as invalid.
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

/// A boolean out of text, as forms have it too.
pub(crate) fn boolean(text: &str) -> Option<bool> {
    let is = |word: &&str| text.eq_ignore_ascii_case(word);
    if ["1", "true", "t", "yes", "y", "on"].iter().any(is) {
        return Some(true);
    }
    ["0", "false", "f", "no", "n", "off"].iter().any(is).then_some(false)
}

/// A count out of text: white space around it, a sign before it, single underscores between its
/// digits and zeros after its point change nothing.
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

/// Digits alone; more than fit are as many as there can be.
fn digits(text: &str) -> u64 {
    text.parse().unwrap_or(u64::MAX)
}

/// A float that is whole, and zero with a sign.
fn whole(text: &str) -> Option<u64> {
    let float: f64 = text.parse().ok()?;
    (float.fract() == 0.0 && (0.0..i64::MAX as f64).contains(&float)).then_some(float as u64)
}
