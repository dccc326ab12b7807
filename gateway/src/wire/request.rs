//! The head of a client's request: method, target and headers, and the framing of the body behind it.

use std::mem::MaybeUninit;
use std::ops::Range;
use std::sync::LazyLock;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode, Uri, Version, request};
use httparse::{ParserConfig, Status};

use crate::wire::body::MessageBody;
use crate::wire::{digits, lists_token};

/// The bytes that a target may have.
const LONGEST_TARGET: usize = u16::MAX as usize - 1;
/// The headers for which there is room without an allocation.
const USUAL_HEADERS: usize = 100;

/// The target of most requests, and the value of their `content-type`.
const CHAT: &str = "/v1/chat/completions";
const JSON: HeaderValue = HeaderValue::from_static("application/json");
static CHAT_URI: LazyLock<Uri> = LazyLock::new(|| Uri::from_static(CHAT));

/// The bounds of a head.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HeadLimits {
    pub(crate) bytes: usize,
    pub(crate) headers: usize,
}

/// A request's head, and the body that follows it.
#[derive(Debug)]
pub(crate) struct RequestStart {
    pub(crate) parts: request::Parts,
    pub(crate) body: MessageBody,
    /// The number of the head's bytes.
    pub(crate) length: usize,
    /// Whether the client allows another request behind this one.
    pub(crate) keep_alive: bool,
    /// Whether the client sends the body only after an answer with status 100.
    pub(crate) expects_continue: bool,
    /// Whether the client asks for another protocol.
    pub(crate) upgrade: bool,
}

/// The reason why a head is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeadError {
    #[error("the head of a request is not valid: {0}")]
    Invalid(&'static str),
    #[error("the head of a request is too long")]
    Long,
    #[error("the target of a request is too long")]
    LongTarget,
}

impl HeadError {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Long => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::LongTarget => StatusCode::URI_TOO_LONG,
        }
    }
}

impl From<httparse::Error> for HeadError {
    fn from(error: httparse::Error) -> Self {
        match error {
            httparse::Error::TooManyHeaders => Self::Long,
            httparse::Error::HeaderName => Self::Invalid("a header's name"),
            httparse::Error::HeaderValue => Self::Invalid("a header's value"),
            httparse::Error::NewLine => Self::Invalid("a line's end"),
            httparse::Error::Version => Self::Invalid("the version"),
            httparse::Error::Token | httparse::Error::Status => Self::Invalid("the first line"),
        }
    }
}

/// Whether the bytes from `seen` on can complete a head: they end a line, and then an empty one.
/// `seen` bytes are known to hold no whole head.
pub(crate) fn may_be_complete(bytes: &[u8], seen: usize) -> bool {
    let rest = &bytes[seen.saturating_sub(3)..];
    let empty_follows = |at| matches!(rest[at + 1..], [b'\n', ..] | [b'\r', b'\n', ..]);
    memchr::memchr_iter(b'\n', rest).any(empty_follows)
}

/// Reads a head at the beginning of `bytes`; `None` if it is incomplete. Empty lines before it are
/// passed over.
///
/// # Errors
/// The head is not valid or too long, or its body's end could be read in two ways.
pub(crate) fn read_request(
    bytes: &[u8],
    limits: HeadLimits,
) -> Result<Option<Box<RequestStart>>, HeadError> {
    let (mut usual, mut many);
    let headers = if limits.headers <= USUAL_HEADERS {
        usual = [const { MaybeUninit::uninit() }; USUAL_HEADERS];
        &mut usual[..limits.headers]
    } else {
        many = vec![MaybeUninit::uninit(); limits.headers];
        &mut many[..]
    };
    let mut head = httparse::Request::new(&mut []);
    let parser = ParserConfig::default();
    let length = match parser.parse_request_with_uninit_headers(&mut head, bytes, headers)? {
        Status::Complete(length) if length <= limits.bytes => length,
        Status::Partial if bytes.len() < limits.bytes => return Ok(None),
        _ => return Err(HeadError::Long),
    };
    let (Some(method), Some(target)) = (head.method, head.path) else {
        return Err(HeadError::Invalid("the first line"));
    };
    if target.len() > LONGEST_TARGET {
        return Err(HeadError::LongTarget);
    }
    let version = if head.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| HeadError::Invalid("the method"))?;
    // All values share one copy of the head, which keeps nothing else in memory.
    let shared = Bytes::copy_from_slice(&bytes[..length]);
    let slice = |part: &[u8]| shared.slice(place(bytes, part));
    let uri = match target {
        // Not read again for each request.
        CHAT => CHAT_URI.clone(),
        target => Uri::from_maybe_shared(slice(target.as_bytes()))
            .map_err(|_| HeadError::Invalid("the target"))?,
    };
    let mut framing = RequestFraming::new(version);
    // A map has a bound of its own.
    let mut map = HeaderMap::try_with_capacity(head.headers.len()).map_err(|_| HeadError::Long)?;
    for field in head.headers.iter() {
        let name = name(field.name)?;
        if !framing.take(&name, field.value, &mut map)? {
            continue;
        }
        let value = match field.value {
            [] => HeaderValue::from_static(""),
            b"application/json" => JSON,
            value => HeaderValue::from_maybe_shared(slice(value))
                .map_err(|_| HeadError::Invalid("a header's value"))?,
        };
        map.try_append(name, value).map_err(|_| HeadError::Long)?;
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    (parts.method, parts.uri, parts.version, parts.headers) = (method, uri, version, map);
    // Behind a request whose end is in doubt, no other protocol begins.
    let upgrade =
        (framing.upgrade || parts.method == Method::CONNECT) && !framing.has_two_lengths();
    let RequestFraming { keep_alive, expects_continue, .. } = framing;
    let body = framing.body()?;
    let keep_alive = keep_alive && !framing.has_two_lengths();
    let start = RequestStart { parts, body, length, keep_alive, expects_continue, upgrade };
    // Boxed, because it is moved through many hands.
    Ok(Some(Box::new(start)))
}

/// The name of a header. Those that most clients send are known in their usual spellings.
fn name(name: &str) -> Result<HeaderName, HeadError> {
    Ok(match name {
        "host" | "Host" => header::HOST,
        "accept" | "Accept" => header::ACCEPT,
        "accept-encoding" | "Accept-Encoding" => header::ACCEPT_ENCODING,
        "authorization" | "Authorization" => header::AUTHORIZATION,
        "connection" | "Connection" => header::CONNECTION,
        "content-length" | "Content-Length" => header::CONTENT_LENGTH,
        "content-type" | "Content-Type" => header::CONTENT_TYPE,
        "user-agent" | "User-Agent" => header::USER_AGENT,
        _ => HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| HeadError::Invalid("a header's name"))?,
    })
}

/// The place of a part within the whole.
fn place(whole: &[u8], part: &[u8]) -> Range<usize> {
    let at = part.as_ptr().addr() - whole.as_ptr().addr();
    at..at + part.len()
}

/// The facts about the message itself that a head's headers give (RFC 9112, 6.3 and 9.3).
struct RequestFraming {
    version: Version,
    keep_alive: bool,
    /// `connection` says `close`.
    closes: bool,
    expects_continue: bool,
    upgrade: bool,
    length: Option<u64>,
    has_length: bool,
    /// Whether the last coding is `chunked`; `None` without a coding.
    chunked: Option<bool>,
}

impl RequestFraming {
    fn new(version: Version) -> Self {
        Self {
            version,
            keep_alive: version == Version::HTTP_11,
            closes: false,
            expects_continue: false,
            upgrade: false,
            length: None,
            has_length: false,
            chunked: None,
        }
    }

    /// Takes one header; false if the head is the same without it. Those before it are in `before`.
    fn take(
        &mut self,
        name: &HeaderName,
        value: &[u8],
        before: &mut HeaderMap,
    ) -> Result<bool, HeadError> {
        if *name == header::CONTENT_LENGTH {
            self.has_length = true;
            if self.chunked.is_some() {
                return Ok(false);
            }
            let length = digits(value).filter(|length| *length < u64::MAX - 1);
            let length = length.ok_or(HeadError::Invalid("`content-length`"))?;
            return match self.length.replace(length) {
                None => Ok(true),
                Some(other) if other == length => Ok(false),
                Some(_) => Err(HeadError::Invalid("`content-length` occurs twice and differs")),
            };
        }
        if *name == header::TRANSFER_ENCODING {
            if self.version == Version::HTTP_10 {
                return Err(HeadError::Invalid("`transfer-encoding` in HTTP/1.0"));
            }
            // The chunks alone count. A reader before this one may have counted the length, so
            // nothing may follow on the same connection.
            if self.length.take().is_some() {
                before.remove(header::CONTENT_LENGTH);
            }
            let last = value.rsplit(|byte| *byte == b',').next().unwrap_or_default();
            let is_chunked = last.trim_ascii().eq_ignore_ascii_case(b"chunked");
            self.chunked = Some(is_chunked && value.is_ascii());
        } else if *name == header::CONNECTION {
            self.closes |= lists_token(value, b"close");
            self.keep_alive |= lists_token(value, b"keep-alive");
            self.keep_alive &= !self.closes;
        } else if *name == header::EXPECT {
            self.expects_continue =
                self.version == Version::HTTP_11 && value.eq_ignore_ascii_case(b"100-continue");
        } else if *name == header::UPGRADE {
            self.upgrade = self.version == Version::HTTP_11;
        }
        Ok(true)
    }

    /// Whether both a length and a coding tell where the body ends.
    fn has_two_lengths(&self) -> bool {
        self.has_length && self.chunked.is_some()
    }

    fn body(&self) -> Result<MessageBody, HeadError> {
        match self.chunked {
            Some(true) => Ok(MessageBody::chunked()),
            Some(false) => Err(HeadError::Invalid("`transfer-encoding` does not end in `chunked`")),
            None => Ok(MessageBody::sized(self.length.unwrap_or(0))),
        }
    }
}
