//! The headers that mean something to the gateway. Pure.
//!
//! One walk over a head finds those that are there. Asking the map for each of them would hash more
//! names than most heads have headers.

use http::{HeaderMap, HeaderName};

use crate::wire::lines::HeaderLines;

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
    /// The times of an answer, which the gateway writes.
    ServerTiming,
    /// A header by which an answer allows other origins to read it. Only the gateway's configuration
    /// counts.
    Cors,
}

impl KnownHeader {
    /// The known header with this name in lower case.
    pub(crate) fn of(name: &[u8]) -> Option<Self> {
        // Names of another length are not compared.
        Some(match name.len() {
            2 if name == b"te" => Self::HopByHop,
            4 if name == b"host" => Self::Host,
            6 if name == b"expect" => Self::Expect,
            6 if name == b"origin" => Self::Origin,
            7 if name == b"trailer" || name == b"upgrade" => Self::HopByHop,
            9 if name == b"forwarded" || name == b"x-real-ip" => Self::OtherForwarded,
            9 if name == b"x-api-key" => Self::Key,
            10 if name == b"connection" => Self::Connection,
            10 if name == b"keep-alive" => Self::HopByHop,
            10 if name == b"tracestate" => Self::TraceState,
            11 if name == b"traceparent" => Self::TraceParent,
            12 if name == b"x-request-id" => Self::RequestId,
            12 if name == SESSION.as_bytes() => Self::Session,
            13 if name == b"server-timing" => Self::ServerTiming,
            13 if name == b"authorization" => Self::Key,
            14 if name == b"content-length" => Self::Coding,
            15 if name == b"accept-encoding" => Self::Coding,
            15 if name == b"x-forwarded-for" => Self::ForwardedFor,
            15 if name == b"x-vllm-priority" => Self::Priority,
            16 if name == b"content-encoding" => Self::ContentEncoding,
            16 if name == b"proxy-connection" => Self::HopByHop,
            16 if name == b"x-forwarded-host" => Self::ForwardedHost,
            16 if name == b"x-forwarded-port" => Self::ForwardedPort,
            17 if name == b"transfer-encoding" => Self::TransferEncoding,
            17 if name == b"x-forwarded-proto" => Self::ForwardedProto,
            18 if name == b"proxy-authenticate" => Self::HopByHop,
            18 if name == b"x-forebay-endpoint" => Self::Endpoint,
            19 if name == b"proxy-authorization" => Self::HopByHop,
            19 if name == b"x-stainless-timeout" => Self::Timeout,
            20 if name == b"x-data-parallel-rank" => Self::Priority,
            22 if name == b"access-control-max-age" => Self::Cors,
            24 if name == b"x-stainless-read-timeout" => Self::Timeout,
            27 if name == b"access-control-allow-origin" => Self::Cors,
            28 if name == b"access-control-allow-headers" => Self::Cors,
            28 if name == b"access-control-allow-methods" => Self::Cors,
            29 if name == b"access-control-expose-headers" => Self::Cors,
            30 if name == b"x-envoy-expected-rq-timeout-ms" => Self::Timeout,
            32 if name == b"access-control-allow-credentials" => Self::Cors,
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
        let known = headers.keys().filter_map(|name| KnownHeader::of(name.as_ref()));
        Self(known.fold(0, |found, header| found | 1 << header as u32))
    }

    pub(crate) fn has(self, header: KnownHeader) -> bool {
        self.0 & 1 << header as u32 != 0
    }
}

/// Whether a header of a replica's answer with this name in lower case is meant for the client.
/// `connection` names others that are not: [`strip_connection`].
pub(crate) fn is_for_client(name: &[u8]) -> bool {
    match KnownHeader::of(name) {
        None | Some(KnownHeader::Connection) => true,
        // The gateway frames the body anew, and writes the others itself.
        Some(
            KnownHeader::RequestId
            | KnownHeader::ServerTiming
            | KnownHeader::Endpoint
            | KnownHeader::Cors,
        ) => false,
        Some(_) if name == b"content-length" => false,
        Some(known) => !known.is_hop_by_hop(),
    }
}

/// Removes `connection` from the headers of an answer, and those that it names.
pub(crate) fn strip_connection(lines: &mut HeaderLines) {
    let lists = lines.iter().filter(|(name, _)| *name == b"connection");
    let listed = lists.flat_map(|(_, list)| list.split(|byte| *byte == b','));
    let mut named: Vec<_> = listed.map(|name| name.trim_ascii().to_ascii_lowercase()).collect();
    // There may be as many as fit into a head.
    named.sort_unstable();
    lines.retain(|name| {
        name != b"connection" && named.binary_search_by(|one| (**one).cmp(name)).is_err()
    });
}

/// Removes the headers of an answer that concern one connection only, those that `connection`
/// names, and the one that names a replica.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let stays_here = |name: &&HeaderName| {
        let known = KnownHeader::of(name.as_ref());
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
    use crate::wire::head::HeadReader;

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
    fn lines_go_to_the_client_without_those_that_concern_the_connection() {
        let text = b"HTTP/1.1 200 OK\r\nServer: uvicorn\r\nX-Private: 1\r\nX-Other: 2\r\n\
            keep-alive: timeout=5\r\nConnection: X-Private, close\r\nconnection:\tx-second\r\n\
            x-second: 1\r\ncontent-length: 0\r\ntransfer: x\r\nx-request-id: 7\r\n\
            x-forebay-endpoint: 10.0.0.1:1\r\naccess-control-allow-origin: *\r\n\
            server-timing: a\r\nx-second: 2\r\ndate: now\r\n\r\n";
        let start = HeadReader::passing(is_for_client).feed(text, &http::Method::POST);
        let mut head = start.expect("valid").expect("complete").head;
        assert!(head.has_connection);
        strip_connection(&mut head.headers);
        let want = b"server: uvicorn\r\nx-other: 2\r\ntransfer: x\r\ndate: now\r\n";
        assert_eq!(head.headers.as_bytes(), want);
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
