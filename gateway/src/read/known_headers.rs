//! The headers that mean something to the gateway. Pure.
//!
//! One walk over a head finds those that are there. Asking the map for each of them would hash more
//! names than most heads have headers.

use http::{HeaderMap, HeaderName};

/// The header by which a client names its session.
pub(crate) const SESSION: &str = "x-session-id";

/// A header that the gateway reads, writes, or does not pass on. Headers that are treated alike
/// share a variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KnownHeader {
    Connection,
    TransferEncoding,
    /// Any other header that concerns one connection only.
    HopByHop,
    /// `content-length`, and `accept-encoding`: the gateway reads the answer itself.
    Coding,
    ContentEncoding,
    Expect,
    Host,
    Origin,
    /// A client's key: `authorization` or `x-api-key`.
    Key,
    /// A header by which vLLM lets any client choose its place in the queue.
    Priority,
    RequestId,
    TraceParent,
    TraceState,
    ForwardedFor,
    ForwardedProto,
    ForwardedHost,
    ForwardedPort,
    /// `forwarded` or `x-real-ip`, which the gateway does not read.
    OtherForwarded,
    /// How long the client waits.
    Timeout,
    /// `x-session-id`, by which a client names its session.
    Session,
    /// The header of an answer in which the edge may name the replica.
    Endpoint,
}

impl KnownHeader {
    pub(crate) fn of(name: &HeaderName) -> Option<Self> {
        let name = name.as_str();
        // Names of another length are not compared.
        Some(match name.len() {
            2 if name == "te" => Self::HopByHop,
            4 if name == "host" => Self::Host,
            6 if name == "expect" => Self::Expect,
            6 if name == "origin" => Self::Origin,
            7 if name == "trailer" || name == "upgrade" => Self::HopByHop,
            9 if name == "forwarded" || name == "x-real-ip" => Self::OtherForwarded,
            9 if name == "x-api-key" => Self::Key,
            10 if name == "connection" => Self::Connection,
            10 if name == "keep-alive" => Self::HopByHop,
            10 if name == "tracestate" => Self::TraceState,
            11 if name == "traceparent" => Self::TraceParent,
            12 if name == "x-request-id" => Self::RequestId,
            12 if name == SESSION => Self::Session,
            13 if name == "authorization" => Self::Key,
            14 if name == "content-length" => Self::Coding,
            15 if name == "accept-encoding" => Self::Coding,
            15 if name == "x-forwarded-for" => Self::ForwardedFor,
            15 if name == "x-vllm-priority" => Self::Priority,
            16 if name == "content-encoding" => Self::ContentEncoding,
            16 if name == "proxy-connection" => Self::HopByHop,
            16 if name == "x-forwarded-host" => Self::ForwardedHost,
            16 if name == "x-forwarded-port" => Self::ForwardedPort,
            17 if name == "transfer-encoding" => Self::TransferEncoding,
            17 if name == "x-forwarded-proto" => Self::ForwardedProto,
            18 if name == "proxy-authenticate" => Self::HopByHop,
            18 if name == "x-forebay-endpoint" => Self::Endpoint,
            19 if name == "proxy-authorization" => Self::HopByHop,
            19 if name == "x-stainless-timeout" => Self::Timeout,
            20 if name == "x-data-parallel-rank" => Self::Priority,
            24 if name == "x-stainless-read-timeout" => Self::Timeout,
            30 if name == "x-envoy-expected-rq-timeout-ms" => Self::Timeout,
            _ => return None,
        })
    }

    /// Whether it concerns one connection only.
    pub(crate) fn is_hop_by_hop(self) -> bool {
        matches!(self, Self::Connection | Self::TransferEncoding | Self::HopByHop)
    }
}

/// The known headers that a head has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct KnownHeaders(u32);

impl KnownHeaders {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let known = headers.keys().filter_map(KnownHeader::of);
        Self(known.fold(0, |found, header| found | 1 << header as u32))
    }

    pub(crate) fn has(self, header: KnownHeader) -> bool {
        self.0 & 1 << header as u32 != 0
    }
}

/// Removes the headers of an answer that concern one connection only, those that `connection`
/// names, and the one that names a replica.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let stays_here = |name: &&HeaderName| {
        let known = KnownHeader::of(name);
        known.is_some_and(|known| known.is_hop_by_hop() || known == KnownHeader::Endpoint)
    };
    // Most heads have none or one.
    while let Some(name) = headers.keys().find(stays_here).cloned() {
        if name == http::header::CONNECTION {
            strip_named(headers);
        }
        headers.remove(name);
    }
}

/// Removes the headers that `connection` names.
pub(crate) fn strip_named(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(http::header::CONNECTION)
        .iter()
        .filter(|value| !matches!(value.as_bytes(), b"keep-alive" | b"close"))
        // As bytes: a value that is not text names headers too.
        .flat_map(|value| value.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .filter(|name| *name != http::header::CONNECTION)
        .collect();
    for name in named {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn known_headers_are_found_by_their_names_alone() {
        let mut headers = HeaderMap::new();
        assert_eq!(KnownHeaders::of(&headers), KnownHeaders::default());
        for name in ["x-real-id", "expected", "x-forwarded-for", "Host", "x-forwarded-prot"] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_static("a"));
        }
        let known = KnownHeaders::of(&headers);
        assert!(known.has(KnownHeader::Host) && known.has(KnownHeader::ForwardedFor));
        for absent in [KnownHeader::OtherForwarded, KnownHeader::Expect, KnownHeader::Connection] {
            assert!(!known.has(absent), "{absent:?}");
        }
    }

    #[test]
    fn hop_by_hop_headers_go_with_those_that_connection_names() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("keep-alive", "timeout=5"),
            ("connection", "close, x-private"),
            ("connection", "x-second"),
            ("x-private", "1"),
            ("x-second", "1"),
            ("x-second", "2"),
            ("te", "trailers"),
            ("upgrade", "h2c"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("proxy-authenticate", "Basic"),
            ("proxy-authorization", "Basic"),
            ("proxy-connection", "close"),
            ("x-forebay-endpoint", "10.0.0.1:1"),
            ("date", "now"),
        ] {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            headers.append(name, HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        assert_eq!(headers.keys().collect::<Vec<_>>(), ["date"]);
    }

    #[test]
    fn connection_names_headers_whatever_else_its_value_holds() {
        for value in [
            &b"x-private, \xff"[..],
            b"\xff,\tX-Private\t",
            b"caf\xc3\xa9, X-Private",
            b"a b, , connection, x-private",
        ] {
            let mut headers = HeaderMap::new();
            headers.append("connection", HeaderValue::from_bytes(value).expect("a value"));
            headers.append("x-private", HeaderValue::from_static("1"));
            headers.append("date", HeaderValue::from_static("now"));
            strip_hop_by_hop(&mut headers);
            assert_eq!(headers.keys().collect::<Vec<_>>(), ["date"], "{}", value.escape_ascii());
        }
    }
}
