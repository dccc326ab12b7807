//! Cuts a server-sent event stream, which arrives in pieces of any size, into whole events.
//!
//! An event keeps its bytes, with the blank line that ends it, so that it can be passed on
//! unchanged. An event within one piece is not copied.
//!
//! By hand: crates that read event streams decode each event into strings and drop its bytes.

use std::borrow::Cow;

use bytes::{Bytes, BytesMut};
use memchr::memchr2;

/// The longest event that is accepted, in bytes. Events of a sound server are far shorter.
pub(crate) const MAX_EVENT: usize = 16 << 20;

/// An event was larger than [`MAX_EVENT`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

/// Finds where events end.
#[derive(Clone, Debug)]
pub(crate) struct Splitter {
    /// The beginning of an event that is not complete.
    partial: BytesMut,
    /// The current line has no bytes yet.
    line_empty: bool,
    /// The last byte was a carriage return; a line feed may still belong to it.
    after_return: bool,
    limit: usize,
}

/// An event's name, and its data if it has any.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SseEvent<'a> {
    pub(crate) name: &'a [u8],
    /// `None` for comments and blank lines.
    pub(crate) data: Option<Cow<'a, [u8]>>,
}

impl Default for Splitter {
    fn default() -> Self {
        Self::with_limit(MAX_EVENT)
    }
}

impl Splitter {
    fn with_limit(limit: usize) -> Self {
        Self { partial: BytesMut::new(), line_empty: true, after_return: false, limit }
    }

    /// Takes the next whole event off the front of `bytes`, joined to its beginning in earlier
    /// bytes. `None`: all of `bytes` was taken, and the event is not complete.
    ///
    /// # Errors
    /// The event is too long.
    #[inline]
    pub(crate) fn next(&mut self, bytes: &mut Bytes) -> Result<Option<Bytes>, TooLong> {
        let end = self.event_end(bytes);
        if self.partial.len() + end.unwrap_or(bytes.len()) > self.limit {
            return Err(TooLong);
        }
        if let (Some(end), true) = (end, self.partial.is_empty()) {
            return Ok(Some(bytes.split_to(end)));
        }
        self.partial.extend_from_slice(&bytes.split_to(end.unwrap_or(bytes.len())));
        Ok(end.map(|_| self.partial.split().freeze()))
    }

    /// Whether the next event began in earlier bytes.
    pub(crate) fn joining(&self) -> bool {
        !self.partial.is_empty()
    }

    /// Whether the next byte begins an event.
    pub(crate) fn is_between_events(&self) -> bool {
        self.partial.is_empty() && self.line_empty && !self.after_return
    }

    /// Takes the beginning of an event that has no end.
    pub(crate) fn rest(&mut self) -> Bytes {
        self.line_empty = true;
        self.after_return = false;
        self.partial.split().freeze()
    }

    /// The position in `bytes` where the event ends: after its blank line, which ends with LF, CRLF
    /// or CR.
    fn event_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut at = 0;
        if self.after_return {
            at = usize::from(*bytes.first()? == b'\n');
            self.after_return = false;
            if std::mem::replace(&mut self.line_empty, true) {
                return Some(at);
            }
        }
        while let Some(length) = memchr2(b'\n', b'\r', &bytes[at..]) {
            let blank = self.line_empty && length == 0;
            let line_end = at + length;
            at = line_end + 1;
            if bytes[line_end] == b'\r' {
                match bytes.get(at) {
                    Some(next) => at += usize::from(*next == b'\n'),
                    None => {
                        self.after_return = true;
                        self.line_empty = blank;
                        return None;
                    }
                }
            }
            self.line_empty = true;
            if blank {
                return Some(at);
            }
        }
        self.line_empty &= at == bytes.len();
        None
    }
}

impl<'a> SseEvent<'a> {
    /// Reads an event's lines. A gateway needs no other fields than `event` and `data`.
    pub(crate) fn read(raw: &'a [u8]) -> Self {
        let mut event = Self { name: b"", data: None };
        let mut rest = raw.strip_prefix(b"\xef\xbb\xbf").unwrap_or(raw);
        while !rest.is_empty() {
            let end = memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
            let (line, after) = rest.split_at(end);
            rest = after.get(1..).unwrap_or_default();
            if let Some(value) = field(line, b"data") {
                event.data = Some(match event.data {
                    None => Cow::Borrowed(value),
                    Some(lines) => Cow::Owned([&lines, value].join(&b'\n')),
                });
            } else if let Some(value) = field(line, b"event") {
                event.name = value;
            }
        }
        event
    }
}

/// The value of `line`, if it is of this field: after the colon and at most one space.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    match line.strip_prefix(name)? {
        [] => Some(b""),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All events, and the bytes after the last one.
    fn split(pieces: &[&[u8]]) -> (Vec<Bytes>, Bytes) {
        let (mut splitter, mut events) = (Splitter::default(), Vec::new());
        for piece in pieces {
            let mut bytes = Bytes::copy_from_slice(piece);
            while let Some(event) = splitter.next(&mut bytes).expect("short") {
                events.push(event);
            }
            assert!(bytes.is_empty(), "all bytes are taken");
        }
        (events, splitter.rest())
    }

    #[test]
    fn events_end_at_a_blank_line_with_any_line_ending() {
        for (text, want, rest) in [
            ("data: a\n\ndata: b\n\n", vec!["data: a\n\n", "data: b\n\n"], ""),
            ("data: a\r\n\r\ndata: b\r\n\r\n", vec!["data: a\r\n\r\n", "data: b\r\n\r\n"], ""),
            ("data: a\r\rdata: b\r\rx", vec!["data: a\r\r", "data: b\r\r"], "x"),
            ("data: a\n\r\n: c\n\n", vec!["data: a\n\r\n", ": c\n\n"], ""),
            ("\n\ndata: a\ndata: b\n\n", vec!["\n", "\n", "data: a\ndata: b\n\n"], ""),
            ("data: a\n", vec![], "data: a\n"),
        ] {
            let (events, left) = split(&[text.as_bytes()]);
            assert_eq!((events, left), (want.into_iter().map(Bytes::from).collect(), rest.into()));
        }
    }

    #[test]
    fn lines_are_read_as_the_standard_says() {
        let event = |name: &'static str, data: Option<&'static str>| SseEvent {
            name: name.as_bytes(),
            data: data.map(|data| Cow::Borrowed(data.as_bytes())),
        };
        for (raw, want) in [
            ("data: {}\n\n", event("", Some("{}"))),
            ("data:{}\n\n", event("", Some("{}"))),
            ("data:  {}\r\n\r\n", event("", Some(" {}"))),
            ("event: ping\ndata\n\n", event("ping", Some(""))),
            ("data: a\rdata: b\r\r", event("", Some("a\nb"))),
            (": keep-alive\n\n", event("", None)),
            ("id: 1\ndatas: x\nretry: 2\n\n", event("", None)),
            ("\u{feff}data: a\n\n", event("", Some("a"))),
        ] {
            assert_eq!(SseEvent::read(raw.as_bytes()), want, "{raw:?}");
        }
    }

    #[test]
    fn an_event_within_a_piece_is_not_copied() {
        let piece = Bytes::from_static(b"data: a\n\ndata: b\n\n");
        let (mut splitter, mut bytes) = (Splitter::default(), piece.clone());
        let first = splitter.next(&mut bytes).expect("short").expect("whole");
        let second = splitter.next(&mut bytes).expect("short").expect("whole");
        assert_eq!(first.as_ptr(), piece.as_ptr());
        assert_eq!(second.as_ptr(), piece[9..].as_ptr());
    }

    #[test]
    fn an_event_over_the_limit_is_an_error() {
        let mut splitter = Splitter::with_limit(16);
        let mut next = |text: &'static str| splitter.next(&mut Bytes::from(text));
        assert_eq!(next("data: 012345678\n"), Ok(None));
        assert_eq!(next("x"), Err(TooLong));
        let mut whole = Bytes::from("data: 0123456789\n\n");
        assert_eq!(Splitter::with_limit(16).next(&mut whole), Err(TooLong));
    }

    proptest! {
        #[test]
        fn any_cuts_give_the_same_events(
            lines in prop::collection::vec((prop_oneof!["", "a", "data: b"], prop_oneof!["\n", "\r\n", "\r"]), 0..20),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let text: String = lines.into_iter().map(|(line, end)| line + &end).collect();
            let mut cuts: Vec<_> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<_> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            prop_assert_eq!(split(&pieces), split(&[text.as_bytes()]));
        }
    }
}
