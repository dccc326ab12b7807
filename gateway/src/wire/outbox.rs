//! The head of a response to a client as bytes, and the framing of its body.

use std::mem;

use bytes::Bytes;
use http::header;
use http::{Method, StatusCode, Version, response};
use http_body::SizeHint;
use hyper::ext::ReasonPhrase;

use crate::text::stack::StackText;
use crate::wire::lines::HeaderLines;
use crate::wire::{digits, lists_token};

/// The text of `date`.
pub(crate) type DateText = [u8; 29];

/// The bytes of framing and data that are collected before they are written.
const ROOM: usize = 16 << 10;
/// Data of so many bytes is copied behind its framing. To write it in place would cost more.
const COPIED: usize = 2 << 10;

/// The part of a request on which the framing of its response depends.
#[derive(Clone, Debug)]
pub(crate) struct RequestLine {
    pub(crate) method: Method,
    pub(crate) version: Version,
}

/// The sign of a response's end for the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ResponseFraming {
    /// So many bytes are left.
    Length(u64),
    Chunks,
    /// The connection's end.
    Close,
}

/// The response ended before the length that its head states.
#[derive(Debug, thiserror::Error)]
#[error("a response ended before its length")]
pub(crate) struct TooShort;

/// Bytes on their way to the client.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    /// Long data behind them, and the framing behind that.
    data: Bytes,
    tail: &'static [u8],
    /// The number of bytes that are written, of all three.
    written: usize,
}

impl Outbox {
    /// An outbox with an empty buffer that has room already.
    pub(crate) fn with_buffer(bytes: Vec<u8>) -> Self {
        Self { bytes, ..Self::default() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether another piece may be added.
    pub(crate) fn has_room(&self) -> bool {
        self.data.is_empty() && self.bytes.len() < ROOM
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        debug_assert!(self.data.is_empty() && self.tail.is_empty(), "it has no room");
        self.bytes.extend_from_slice(bytes);
    }

    fn push_data(&mut self, data: Bytes, tail: &'static [u8]) {
        if data.len() <= COPIED {
            self.bytes.extend_from_slice(&data);
            self.bytes.extend_from_slice(tail);
        } else {
            (self.data, self.tail) = (data, tail);
        }
    }

    /// The bytes that are not written.
    pub(crate) fn slices(&self) -> [&[u8]; 3] {
        let mut skip = self.written;
        [&self.bytes[..], &self.data, self.tail].map(|slice| {
            let (_, rest) = slice.split_at(skip.min(slice.len()));
            skip -= slice.len() - rest.len();
            rest
        })
    }

    /// Notes that `count` more bytes are written. Returns the buffer once all are.
    pub(crate) fn written(&mut self, count: usize) -> Option<Vec<u8>> {
        self.written += count;
        if self.written < self.bytes.len() + self.data.len() + self.tail.len() {
            return None;
        }
        let mut buffer = mem::take(self).bytes;
        buffer.clear();
        Some(buffer)
    }

    /// Adds a head, with `lines` before its own headers. Returns the framing of the body, and whether
    /// the connection can carry another request afterwards.
    ///
    /// `size` is that of the body, `None` if it is empty. Without `keep_alive`, the head says that
    /// the connection ends.
    pub(crate) fn push_head(
        &mut self,
        head: &response::Parts,
        lines: &HeaderLines,
        asked: &RequestLine,
        size: Option<SizeHint>,
        mut keep_alive: bool,
        date: impl FnOnce() -> DateText,
    ) -> (ResponseFraming, bool) {
        let out = &mut self.bytes;
        let mut push = |parts: &[&[u8]]| parts.iter().for_each(|part| out.extend_from_slice(part));
        let old = asked.version == Version::HTTP_10;
        if head.status == StatusCode::OK && head.extensions.is_empty() && !old {
            push(&[b"HTTP/1.1 200 OK\r\n"]);
        } else {
            let version: &[u8] = if old { b"HTTP/1.0 " } else { b"HTTP/1.1 " };
            let usual = || head.status.canonical_reason().unwrap_or("<none>").as_bytes();
            let reason = head.extensions.get::<ReasonPhrase>().map(ReasonPhrase::as_bytes);
            let reason = reason.unwrap_or_else(usual);
            push(&[version, head.status.as_str().as_bytes(), b" ", reason, b"\r\n"]);
        }
        let stated_by_head = || {
            let stated = head.headers.get(header::CONTENT_LENGTH);
            stated.and_then(|length| digits(length.as_bytes()))
        };
        let known = size.as_ref().map_or(Some(0), SizeHint::exact);
        let mut framing = match known.or_else(stated_by_head) {
            Some(length) => ResponseFraming::Length(length),
            None if old => ResponseFraming::Close,
            None => ResponseFraming::Chunks,
        };
        let stated = match framing {
            // The length that GET would get.
            _ if asked.method == Method::HEAD => {
                known.filter(|length| *length > 0).or_else(stated_by_head)
            }
            ResponseFraming::Length(length) => Some(length),
            ResponseFraming::Chunks | ResponseFraming::Close => None,
        };
        if has_no_body(head.status, asked) {
            framing = ResponseFraming::Length(0);
        }
        keep_alive &= framing != ResponseFraming::Close;
        push(&[lines.as_bytes()]);
        let mut has_date = lines.get("date").is_some();
        let (mut says_close, mut says_keep_alive) = (false, false);
        for (name, value) in &head.headers {
            if *name == header::CONTENT_LENGTH || *name == header::TRANSFER_ENCODING {
                continue;
            }
            let value = value.as_bytes();
            if *name == header::CONNECTION {
                says_close |= lists_token(value, b"close");
                says_keep_alive |= lists_token(value, b"keep-alive");
            }
            has_date |= *name == header::DATE;
            push(&[name.as_str().as_bytes(), b": ", value, b"\r\n"]);
        }
        keep_alive &= !says_close;
        if head.status == StatusCode::SWITCHING_PROTOCOLS {
            keep_alive = false;
        } else if !keep_alive && !old && !says_close {
            push(&[b"connection: close\r\n"]);
        } else if keep_alive && old && !says_keep_alive {
            push(&[b"connection: keep-alive\r\n"]);
        }
        if let Some(stated) = stated.filter(|_| may_state_length(head.status, asked)) {
            let mut digits = StackText::<20>::new();
            digits.number(stated);
            push(&[b"content-length: ", digits.as_bytes(), b"\r\n"]);
        } else if framing == ResponseFraming::Chunks {
            push(&[b"transfer-encoding: chunked\r\n"]);
        }
        if !has_date {
            push(&[b"date: ", &date(), b"\r\n"]);
        }
        push(&[b"\r\n"]);
        (framing, keep_alive)
    }

    /// Adds a piece of the body in its framing. `last`: none follows.
    ///
    /// # Errors
    /// It was the last one, and the head states a greater length.
    pub(crate) fn push_piece(
        &mut self,
        framing: &mut ResponseFraming,
        mut data: Bytes,
        last: bool,
    ) -> Result<(), TooShort> {
        match framing {
            ResponseFraming::Chunks => {
                if data.is_empty() {
                    self.push(if last { b"0\r\n\r\n" } else { b"" });
                    return Ok(());
                }
                self.push_size(data.len());
                self.push_data(data, if last { b"\r\n0\r\n\r\n" } else { b"\r\n" });
            }
            ResponseFraming::Close => self.push_data(data, b""),
            ResponseFraming::Length(left) => {
                data.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
                *left -= data.len() as u64;
                if last && *left > 0 {
                    return Err(TooShort);
                }
                self.push_data(data, b"");
            }
        }
        Ok(())
    }

    /// Adds the size of a chunk.
    fn push_size(&mut self, size: usize) {
        const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
        let count = size.checked_ilog2().map_or(1, |log| log / 4 + 1);
        for digit in (0..count).rev() {
            self.bytes.push(DIGITS[size >> (4 * digit) & 15]);
        }
        self.bytes.extend_from_slice(b"\r\n");
    }
}

fn has_no_body(status: StatusCode, asked: &RequestLine) -> bool {
    asked.method == Method::HEAD || !may_state_length(status, asked)
}

/// Whether a response may state a length (RFC 9110, 8.6).
fn may_state_length(status: StatusCode, asked: &RequestLine) -> bool {
    !(status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || asked.method == Method::CONNECT && status.is_success())
}
