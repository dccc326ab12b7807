//! A string of JSON, and its escapes.

use std::borrow::Cow;

use super::unescape::unescape;

/// A string as it stands between its quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct JsonString<'a> {
    pub(super) raw: &'a [u8],
    pub(super) escapes: Escapes,
}

/// The escapes of a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Escapes {
    None,
    /// Those alone that every writer writes: `\"`, `\\`, `\n` and the like.
    Usual,
    /// `\/` or `\uXXXX` too.
    Any,
}

impl<'a> JsonString<'a> {
    /// The bytes between the quotes, escapes as they stand.
    pub(crate) fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The bytes between the quotes, if they have no escapes.
    pub(crate) fn unescaped(&self) -> Option<&'a [u8]> {
        (self.escapes == Escapes::None).then_some(self.raw)
    }

    /// The text in the form in which every writer writes it, and which is the same for the same
    /// text. Half a surrogate pair has no such form, and stays as it is.
    pub(crate) fn usual_form(&self) -> Cow<'a, [u8]> {
        if self.escapes != Escapes::Any {
            return Cow::Borrowed(self.raw);
        }
        let quoted = self.decode().and_then(|text| serde_json::to_vec(&text).ok());
        let inner = |mut text: Vec<u8>| {
            text.pop();
            text.remove(0);
            Cow::Owned(text)
        };
        quoted.map_or(Cow::Borrowed(self.raw), inner)
    }

    /// The decoded text; `None` for broken UTF-8 and for half a surrogate pair.
    pub(crate) fn decode(&self) -> Option<Cow<'a, str>> {
        let raw = std::str::from_utf8(self.raw).ok()?;
        match self.escapes {
            Escapes::None => Some(Cow::Borrowed(raw)),
            Escapes::Usual | Escapes::Any => unescape(raw).map(Cow::Owned),
        }
    }
}
