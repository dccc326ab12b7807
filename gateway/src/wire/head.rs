//! The head of a response: status and headers, and the framing of the body behind it.

use std::mem::MaybeUninit;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode, Version, response};
use httparse::{ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use crate::wire::body::MessageBody;
use crate::wire::{WireError, digits, has_token};

/// The bytes that a head may have, with the interim heads before it. vLLM 0.32 describes embeddings
/// that are asked for as bytes in a header (`metadata`), with about 120 bytes for each input.
const LONGEST_HEAD: usize = 416 << 10;
/// The headers that a head may have.
const MOST_HEADERS: usize = 100;

/// A response's head, and as much of its body as came with it.
#[derive(Debug)]
pub(crate) struct ResponseStart {
    pub(crate) parts: response::Parts,
    pub(crate) body: MessageBody,
    /// Whether the connection can carry another request behind this response.
    pub(crate) keep_alive: bool,
}

/// Reads the head of one response.
#[derive(Debug, Default)]
pub(crate) struct HeadReader {
    /// The bytes of a head that has not come whole.
    partial: Vec<u8>,
    /// The number of bytes of the interim heads and blank lines before it.
    skipped: usize,
}

impl HeadReader {
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
            let start = read(bytes, method, &mut self.skipped)?;
            if start.is_none() {
                self.partial.extend_from_slice(&bytes[self.skipped - skipped..]);
            }
            start
        } else {
            self.partial.extend_from_slice(bytes);
            // Without the end of a line, there can't be the end of a head.
            let line = bytes.contains(&b'\n');
            let start = if line { read(&self.partial, method, &mut self.skipped)? } else { None };
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
        let (head_bytes, rest) = bytes.split_at(length);
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
        let (parts, found) = parts(&head, code, head_bytes)?;
        let mut body = framing(&parts, found, method)?;
        let keep_alive = parts.version == Version::HTTP_11
            && !body.ends_with_connection()
            && !(found.connection && closes(&parts.headers));
        body.feed(rest);
        return Ok(Some(ResponseStart { parts, body, keep_alive }));
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

/// The headers about the message itself that a head has.
#[derive(Clone, Copy, Default)]
struct FramingHeaders {
    connection: bool,
    coding: bool,
    length: StatedLength,
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

/// The name of a header. The usual ones are known in the spelling of uvicorn.
fn name(name: &str) -> Result<HeaderName, WireError> {
    Ok(match name {
        "connection" => header::CONNECTION,
        "content-length" => header::CONTENT_LENGTH,
        "content-type" => header::CONTENT_TYPE,
        "date" => header::DATE,
        "server" => header::SERVER,
        "transfer-encoding" => header::TRANSFER_ENCODING,
        _ => HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| WireError::Head(httparse::Error::HeaderName))?,
    })
}

/// The head as values. They share one copy of the head's bytes.
fn parts(
    head: &httparse::Response<'_, '_>,
    code: u16,
    bytes: &[u8],
) -> Result<(response::Parts, FramingHeaders), WireError> {
    let invalid = httparse::Error::Status;
    let status = StatusCode::from_u16(code).map_err(|_| WireError::Head(invalid))?;
    let (mut parts, ()) = Response::new(()).into_parts();
    parts.status = status;
    if head.version == Some(0) {
        parts.version = Version::HTTP_10;
    }
    let shared = Bytes::copy_from_slice(bytes);
    let mut map = HeaderMap::with_capacity(head.headers.len());
    let mut found = FramingHeaders::default();
    for field in head.headers.iter() {
        let name = name(field.name)?;
        found.connection |= name == header::CONNECTION;
        found.coding |= name == header::TRANSFER_ENCODING;
        if name == header::CONTENT_LENGTH {
            found.length = found.length.with(field.value);
        }
        let value = match field.value {
            [] => HeaderValue::from_static(""),
            value => {
                let at = value.as_ptr().addr() - bytes.as_ptr().addr();
                HeaderValue::from_maybe_shared(shared.slice(at..at + value.len()))
                    .map_err(|_| WireError::Head(httparse::Error::HeaderValue))?
            }
        };
        map.append(name, value);
    }
    parts.headers = map;
    // The client gets the replica's own words.
    if let Some(reason) = head.reason
        && Some(reason) != status.canonical_reason()
        && let Ok(reason) = ReasonPhrase::try_from(reason.as_bytes())
    {
        parts.extensions.insert(reason);
    }
    Ok((parts, found))
}

/// The body that follows this head.
fn framing(
    head: &response::Parts,
    found: FramingHeaders,
    method: &Method,
) -> Result<MessageBody, WireError> {
    let headers = &head.headers;
    if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || method == Method::HEAD
    {
        return Ok(MessageBody::sized(0));
    }
    if found.coding {
        // The gateway asks for no other coding (`te`), and can't undo any.
        let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
        let is_chunked = codings
            .next()
            .is_some_and(|coding| coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"));
        if head.version == Version::HTTP_10 || !is_chunked || codings.next().is_some() {
            return Err(WireError::TransferEncoding);
        }
        if !matches!(found.length, StatedLength::None) {
            return Err(WireError::TwoLengths);
        }
        return Ok(MessageBody::chunked());
    }
    match found.length {
        StatedLength::None => Ok(MessageBody::until_close()),
        StatedLength::Known(length) => Ok(MessageBody::sized(length)),
        StatedLength::Invalid => Err(WireError::Length),
    }
}

/// Whether the replica closes the connection behind this response.
fn closes(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION);
    values.into_iter().any(|value| has_token(value.as_bytes(), b"close"))
}
