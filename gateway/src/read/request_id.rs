//! The identifiers of a request: `x-request-id` and the W3C's `traceparent`. Pure, apart from the
//! random numbers.
//!
//! By hand: `tower_http::request_id` keeps any id that a client sends, also one that can't be
//! logged or comes twice; and in the answer it lets the replica's `x-request-id` win over the
//! client's.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::text::stack::StackText;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
pub(crate) const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// The longest id of a client's own that is kept.
const MAX_ID: usize = 128;

/// The id of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RequestId {
    /// The client's own.
    Client(HeaderValue),
    /// Made at the edge: random, in hex.
    Made([u8; 32]),
}

/// A `traceparent` that begins a trace.
pub(crate) type TraceParent = [u8; 55];

impl RequestId {
    /// The client's id if it can be written to logs, or else a new one.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let mut given = headers.get_all(&REQUEST_ID).iter();
        if let (Some(id), None) = (given.next(), given.next())
            && (1..=MAX_ID).contains(&id.len())
            && id.as_bytes().iter().all(u8::is_ascii_graphic)
        {
            return Self::Client(id.clone());
        }
        Self::made()
    }

    pub(crate) fn made() -> Self {
        let mut text = StackText::<32>::new();
        text.hex(&rand::random::<u128>().to_ne_bytes());
        Self::Made(*text.whole())
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Client(id) => id.as_bytes(),
            Self::Made(id) => id,
        }
    }

    /// The value for the answer's header.
    pub(crate) fn value(&self) -> HeaderValue {
        match self {
            Self::Client(id) => id.clone(),
            Self::Made(id) => {
                HeaderValue::from_bytes(id).unwrap_or_else(|_| HeaderValue::from_static("0"))
            }
        }
    }
}

/// The beginning of a trace that is sampled; `None` if the client's own is valid, and so kept.
pub(crate) fn trace(headers: &HeaderMap) -> Option<TraceParent> {
    let mut given = headers.get_all(&TRACE_PARENT).iter();
    if let (Some(parent), None) = (given.next(), given.next())
        && is_trace_parent(parent.as_bytes())
    {
        return None;
    }
    Some(new_trace())
}

/// The beginning of a new trace, with random numbers that are not zero.
pub(crate) fn new_trace() -> TraceParent {
    let (trace, span) = (rand::random::<u128>().max(1), rand::random::<u64>().max(1));
    let mut text = StackText::<55>::new();
    text.push(b"00-");
    text.hex(&trace.to_be_bytes());
    text.push(b"-");
    text.hex(&span.to_be_bytes());
    text.push(b"-01");
    *text.whole()
}

/// `version-trace-parent-flags` in lower case hex; only the flags may be all zero. Later versions
/// may add fields.
fn is_trace_parent(text: &[u8]) -> bool {
    let hex = |text: &[u8]| text.iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    let zero = |text: &[u8]| text.iter().all(|b| *b == b'0');
    let fields: Vec<&[u8]> = text.split(|b| *b == b'-').collect();
    let [version, trace, parent, flags, more @ ..] = fields.as_slice() else { return false };
    hex(version)
        && hex(trace)
        && hex(parent)
        && hex(flags)
        && (version.len(), trace.len(), parent.len(), flags.len()) == (2, 32, 16, 2)
        && *version != b"ff"
        && !zero(trace)
        && !zero(parent)
        && (more.is_empty() || *version != b"00")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: HeaderName, values: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            let value = HeaderValue::from_bytes(value.as_bytes()).expect("a value");
            headers.append(name.clone(), value);
        }
        headers
    }

    #[test]
    fn an_id_that_can_be_logged_is_kept() {
        let longest = "x".repeat(128);
        for id in ["r-1", "a/b:c=d", longest.as_str()] {
            let kept = RequestId::of(&with(REQUEST_ID, &[id]));
            assert_eq!(kept, RequestId::Client(HeaderValue::from_str(id).expect("a value")));
            assert_eq!((kept.as_bytes(), kept.value().as_bytes()), (id.as_bytes(), id.as_bytes()));
        }
    }

    #[test]
    fn any_other_id_is_replaced() {
        let too_long = "x".repeat(129);
        for ids in [&[][..], &[""], &["a b"], &["a\tb"], &["é"], &[&too_long], &["a", "b"]] {
            let id = RequestId::of(&with(REQUEST_ID, ids));
            assert!(matches!(id, RequestId::Made(_)), "{ids:?}");
            assert!(id.as_bytes().iter().all(u8::is_ascii_hexdigit));
            assert_eq!(id.value().as_bytes(), id.as_bytes());
        }
        assert_ne!(RequestId::made(), RequestId::made());
    }

    #[test]
    fn a_valid_trace_is_kept_and_any_other_is_replaced() {
        let known = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more";
        for parent in [known, later] {
            assert_eq!(trace(&with(TRACE_PARENT, &[parent])), None);
        }
        for parents in [
            &[][..],
            &["nonsense"],
            &["00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01"],
            &["00-00000000000000000000000000000000-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01"],
            &["ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"],
            &["00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"],
            &[known, known],
        ] {
            let made = trace(&with(TRACE_PARENT, parents)).expect("a new one");
            assert!(is_trace_parent(&made), "{made:?}");
            assert!(parents.iter().all(|parent| parent.as_bytes() != made));
        }
    }
}
