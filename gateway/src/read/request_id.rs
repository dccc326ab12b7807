//! The identifier of a request: `x-request-id`. Pure, apart from the random numbers.
//!
//! By hand: `tower_http::request_id` keeps any id that a client sends, also one that can't be
//! logged or comes twice; and in the answer it lets the replica's `x-request-id` win over the
//! client's.

use http::header::{HeaderMap, HeaderName, HeaderValue};

use crate::text::stack::StackText;

pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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
            assert_eq!(kept.as_bytes(), id.as_bytes());
        }
    }

    #[test]
    fn any_other_id_is_replaced() {
        let too_long = "x".repeat(129);
        for ids in [&[][..], &[""], &["a b"], &["a\tb"], &["é"], &[&too_long], &["a", "b"]] {
            let id = RequestId::of(&with(REQUEST_ID, ids));
            assert!(matches!(id, RequestId::Made(_)), "{ids:?}");
            assert!(id.as_bytes().iter().all(u8::is_ascii_hexdigit));
        }
        assert_ne!(RequestId::made(), RequestId::made());
    }
}
