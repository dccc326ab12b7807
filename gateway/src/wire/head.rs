//! The head of a response: status and headers, and the framing of the body behind it.

use std::mem::MaybeUninit;

use http::{Method, StatusCode, Version, header, response};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use crate::wire::body::MessageBody;
use crate::wire::lines::HeaderLines;
use crate::wire::{WireError, digits, has_token};

/// The bytes that a head may have, with the interim heads before it. vLLM 0.32 describes embeddings
/// that are asked for as bytes in a header (`metadata`), with about 120 bytes for each input.
const LONGEST_HEAD: usize = 416 << 10;
/// The headers that a head may have.
const MOST_HEADERS: usize = 100;
/// The room for the gateway's own headers behind a replica's, in bytes.
const OWN_HEADERS: usize = 160;
/// The bytes that a header's name may have.
const LONGEST_NAME: usize = u16::MAX as usize;

/// A response's head, and as much of its body as came with it.
#[derive(Debug)]
pub(crate) struct ResponseStart {
    pub(crate) head: ResponseHead,
    pub(crate) body: MessageBody,
    /// Whether the connection can carry another request behind this response.
    pub(crate) keep_alive: bool,
}

/// A response's head.
#[derive(Debug)]
pub(crate) struct ResponseHead {
    pub(crate) status: StatusCode,
    /// The replica's own words for the status, if they are not the usual ones.
    pub(crate) reason: Option<ReasonPhrase>,
    /// The headers that the reader passes on.
    pub(crate) headers: HeaderLines,
    /// Whether a `connection` is among all of them.
    pub(crate) has_connection: bool,
    /// Whether a length or chunks mark the body's end, and not only the end of the connection.
    pub(crate) framed: bool,
}

impl ResponseHead {
    /// The head of a response that another reader has read, with those headers for whose names
    /// `passes` is true.
    pub(crate) fn of(mut parts: response::Parts, passes: fn(&[u8]) -> bool) -> Self {
        let mut headers = HeaderLines::default();
        for (name, value) in &parts.headers {
            headers.push_if(name.as_ref(), value.as_bytes(), passes);
        }
        Self {
            status: parts.status,
            reason: parts.extensions.remove(),
            headers,
            has_connection: parts.headers.contains_key(header::CONNECTION),
            framed: true,
        }
    }

    pub(crate) fn content_type(&self) -> Option<&[u8]> {
        self.headers.get("content-type")
    }
}

/// Reads the head of one response.
#[derive(Debug)]
pub(crate) struct HeadReader {
    /// Whether a header with this name in lower case is passed on.
    passes: fn(&[u8]) -> bool,
    /// The bytes of a head that has not come whole.
    partial: Vec<u8>,
    /// The number of bytes of the interim heads and blank lines before it.
    skipped: usize,
}

impl Default for HeadReader {
    fn default() -> Self {
        Self::passing(|_| true)
    }
}

impl HeadReader {
    /// A reader that passes on those headers for whose names in lower case `passes` is true.
    pub(crate) fn passing(passes: fn(&[u8]) -> bool) -> Self {
        Self { passes, partial: Vec::new(), skipped: 0 }
    }

    /// Takes the next bytes of the response to a request of this method. Returns `None` while the
    /// head is incomplete. Interim responses (1xx) are skipped.
    ///
    /// # Errors
    /// The head is not valid or too long, or its body's end could be read in two ways.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        method: &Method,
    ) -> Result<Option<ResponseStart>, WireError> {
        // Interim heads and blank lines are read once, and not kept.
        let skipped = self.skipped;
        let start = if self.partial.is_empty() {
            let start = read(self.passes, bytes, method, &mut self.skipped)?;
            if start.is_none() {
                self.partial.extend_from_slice(&bytes[self.skipped - skipped..]);
            }
            start
        } else {
            self.partial.extend_from_slice(bytes);
            // Without the end of a line, there can't be the end of a head.
            let line = bytes.contains(&b'\n');
            let start = match line {
                true => read(self.passes, &self.partial, method, &mut self.skipped)?,
                false => None,
            };
            self.partial.drain(..self.skipped - skipped);
            start
        };
        // Behind a complete head are the body's bytes, which are not bounded here.
        if start.is_none() && self.skipped + self.partial.len() > LONGEST_HEAD {
            return Err(WireError::LongHead);
        }
        Ok(start)
    }

    /// The bytes that it keeps.
    #[cfg(test)]
    pub(super) fn kept(&self) -> usize {
        self.partial.len()
    }
}

/// Reads a head and the body's bytes behind it. Adds the bytes of the interim heads and blank lines
/// before it to `skipped`.
fn read(
    passes: fn(&[u8]) -> bool,
    mut bytes: &[u8],
    method: &Method,
    skipped: &mut usize,
) -> Result<Option<ResponseStart>, WireError> {
    loop {
        let blank = blank_lines(bytes);
        *skipped += blank;
        bytes = &bytes[blank..];
        let mut headers = [const { MaybeUninit::uninit() }; MOST_HEADERS];
        let mut head = httparse::Response::new(&mut []);
        let parsed = ParserConfig::default().parse_response_with_uninit_headers(
            &mut head,
            bytes,
            &mut headers,
        );
        let length = match parsed {
            Ok(Status::Complete(length)) => length,
            Ok(Status::Partial) => return Ok(None),
            Err(httparse::Error::TooManyHeaders) => return Err(WireError::LongHead),
            Err(error) => return Err(WireError::Head(error)),
        };
        if *skipped + length > LONGEST_HEAD {
            return Err(WireError::LongHead);
        }
        let rest = &bytes[length..];
        let code = head.code.unwrap_or_default();
        match code {
            101 => return Err(WireError::Switched),
            100..=199 => {
                *skipped += length;
                bytes = rest;
                continue;
            }
            _ => {}
        }
        let status = httparse::Error::Status;
        let status = StatusCode::from_u16(code).map_err(|_| WireError::Head(status))?;
        let version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
        let mut headers = HeaderLines::with_capacity(length + OWN_HEADERS);
        let mut found = FramingHeaders::default();
        for field in head.headers.iter() {
            if field.name.len() > LONGEST_NAME {
                return Err(WireError::Head(httparse::Error::HeaderName));
            }
            headers.push_if(field.name.as_bytes(), field.value, |name| {
                found.take(name, field.value);
                passes(name)
            });
        }
        let mut body = found.framing(status, version, method)?;
        let framed = !body.ends_with_connection();
        let keep_alive = version == Version::HTTP_11 && framed && !found.closes;
        body.feed(rest);
        // The client gets the replica's own words.
        let own = head.reason.filter(|reason| Some(*reason) != status.canonical_reason());
        let reason = own.and_then(|reason| ReasonPhrase::try_from(reason.as_bytes()).ok());
        let has_connection = found.connection;
        let head = ResponseHead { status, reason, headers, has_connection, framed };
        return Ok(Some(ResponseStart { head, body, keep_alive }));
    }
}

/// The number of bytes of the blank lines at the beginning. They have no meaning (RFC 9112, 2.2).
fn blank_lines(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while let Some(behind) = rest.strip_prefix(b"\r\n").or_else(|| rest.strip_prefix(b"\n")) {
        rest = behind;
    }
    bytes.len() - rest.len()
}

/// The facts about the message itself that a head's headers give.
#[derive(Clone, Copy, Default)]
struct FramingHeaders {
    connection: bool,
    /// `connection` says `close`.
    closes: bool,
    coding: StatedCoding,
    length: StatedLength,
}

/// The coding that `transfer-encoding` states.
#[derive(Clone, Copy, Default)]
enum StatedCoding {
    #[default]
    None,
    Chunked,
    /// Another one, or several.
    Other,
}

/// The length that `content-length` states.
#[derive(Clone, Copy, Default)]
enum StatedLength {
    #[default]
    None,
    Known(u64),
    /// Not a number, or several that differ.
    Invalid,
}

impl StatedLength {
    /// The length after one more header with this value. A list of equal numbers is one length that
    /// was repeated on the way (RFC 9110, 8.6).
    fn with(self, value: &[u8]) -> Self {
        let numbers = value.split(|byte| *byte == b',').map(|number| digits(number.trim_ascii()));
        numbers.fold(self, |length, number| match (length, number) {
            (Self::None, Some(number)) => Self::Known(number),
            (Self::Known(length), Some(number)) if length == number => Self::Known(length),
            _ => Self::Invalid,
        })
    }
}

impl FramingHeaders {
    /// Takes one header, whose name is in lower case.
    fn take(&mut self, name: &[u8], value: &[u8]) {
        match name {
            b"connection" => {
                self.connection = true;
                self.closes |= has_token(value, b"close");
            }
            b"content-length" => self.length = self.length.with(value),
            b"transfer-encoding" => {
                let is_chunked = value.trim_ascii().eq_ignore_ascii_case(b"chunked");
                self.coding = match self.coding {
                    StatedCoding::None if is_chunked => StatedCoding::Chunked,
                    _ => StatedCoding::Other,
                };
            }
            _ => {}
        }
    }

    /// The body that follows this head.
    fn framing(
        self,
        status: StatusCode,
        version: Version,
        method: &Method,
    ) -> Result<MessageBody, WireError> {
        if matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || method == Method::HEAD
        {
            return Ok(MessageBody::sized(0));
        }
        match (self.coding, self.length) {
            // The gateway asks for no other coding (`te`), and can't undo any.
            (StatedCoding::Other, _) => Err(WireError::TransferEncoding),
            (StatedCoding::Chunked, _) if version == Version::HTTP_10 => {
                Err(WireError::TransferEncoding)
            }
            (StatedCoding::Chunked, StatedLength::None) => Ok(MessageBody::chunked()),
            (StatedCoding::Chunked, _) => Err(WireError::TwoLengths),
            (StatedCoding::None, StatedLength::None) => Ok(MessageBody::until_close()),
            (StatedCoding::None, StatedLength::Known(length)) => Ok(MessageBody::sized(length)),
            (StatedCoding::None, StatedLength::Invalid) => Err(WireError::Length),
        }
    }
}
