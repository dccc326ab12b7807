//! A request as replicas receive it: the client's, without the headers that are for the gateway
//! alone, and with the gateway's own. Pure.

use std::net::SocketAddr;
use std::ops::Deref;

use forebay_telemetry::context::TraceContext;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::PathAndQuery;
use http::{Method, Request, Uri};

use crate::exchange::misfit::KeyOwner;
use crate::read::head::{ClientHead, FORWARDED_FOR, FORWARDED_HOST, FORWARDED_PROTO, Forwarding};
use crate::read::known_headers::KnownHeader;
use crate::read::request_id::{REQUEST_ID, RequestId};
use crate::read::trace::{TRACE_PARENT, TraceParent};
use crate::text::rope::Rope;
use crate::text::stack::StackText;

/// The rights of a client's headers at a replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rights {
    /// The client may choose its place in the replica's queue.
    pub(crate) priority: bool,
    /// The client's key was for the gateway, and goes no further.
    pub(crate) keyed: bool,
    /// The replicas' own key, as the value of `authorization`.
    pub(crate) authorization: Option<HeaderValue>,
}

impl Rights {
    pub(crate) fn key_owner(&self) -> KeyOwner {
        match self {
            Self { authorization: Some(_), .. } => KeyOwner::Pool,
            Self { keyed: true, .. } => KeyOwner::Withheld,
            Self { .. } => KeyOwner::Client,
        }
    }
}

/// The head of a request, as small as a reference: a held request keeps it.
#[derive(Debug)]
pub(crate) enum OutgoingHead<'a> {
    /// The client's.
    Client(&'a ClientHead),
    /// One that the gateway has made.
    Own(Box<ClientHead>),
}

impl OutgoingHead<'_> {
    pub(crate) fn own(head: ClientHead) -> Self {
        Self::Own(Box::new(head))
    }
}

impl Deref for OutgoingHead<'_> {
    type Target = ClientHead;

    fn deref(&self) -> &ClientHead {
        match self {
            Self::Client(head) => head,
            Self::Own(head) => head,
        }
    }
}

/// A request that can be sent any number of times.
#[derive(Debug)]
pub(crate) struct Outgoing<'a> {
    head: OutgoingHead<'a>,
    body: Rope,
    rights: Rights,
    /// `None` keeps the client's.
    trace_parent: Option<TraceParent>,
}

impl<'a> Outgoing<'a> {
    pub(crate) fn new(head: OutgoingHead<'a>, body: Rope, rights: Rights) -> Self {
        let trace_parent = head.own.trace.trace_parent();
        Self { head, body, rights, trace_parent }
    }

    /// Sets the span that the replica's own spans get as their parent.
    pub(crate) fn set_parent(&mut self, parent: &TraceContext) {
        self.trace_parent = Some(parent.trace_parent());
    }

    /// Sets the replicas' own key, and returns the owner of the key that they receive.
    pub(crate) fn set_authorization(&mut self, authorization: Option<HeaderValue>) -> KeyOwner {
        self.rights.authorization = authorization;
        self.rights.key_owner()
    }

    /// The same request with another body.
    pub(crate) fn with_body(&self, body: Rope) -> Outgoing<'_> {
        let (head, rights) = (OutgoingHead::Client(&self.head), self.rights.clone());
        Outgoing { head, body, rights, trace_parent: self.trace_parent }
    }

    pub(crate) fn into_rights(self) -> Rights {
        self.rights
    }

    pub(crate) fn method(&self) -> &Method {
        &self.head.parts.method
    }

    /// The path with the query.
    pub(crate) fn path(&self) -> &str {
        self.head.parts.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    pub(crate) fn body(&self) -> &Rope {
        &self.body
    }

    /// Calls `write` with each header, in one walk. `host` and the headers that frame the body are
    /// not among them: they belong to the connection that the request is sent on.
    pub(crate) fn each_header(&self, mut write: impl FnMut(&HeaderName, &[u8])) {
        let ClientHead { parts, own, .. } = &*self.head;
        let Forwarding { chain, peer, scheme, own_host, keeps_port } = &own.forwarding;
        let Rights { priority, keyed, authorization } = &self.rights;
        let mut host = None;
        for (name, value) in &parts.headers {
            let passes = match KnownHeader::of(name.as_ref()) {
                None
                | Some(
                    KnownHeader::ContentEncoding
                    | KnownHeader::Endpoint
                    | KnownHeader::ServerTiming
                    | KnownHeader::Cors
                    | KnownHeader::Origin
                    | KnownHeader::Timeout
                    | KnownHeader::Session,
                ) => true,
                Some(KnownHeader::Key) => !keyed && authorization.is_none(),
                Some(KnownHeader::Priority) => *priority,
                Some(KnownHeader::RequestId) => matches!(own.id, RequestId::Client(_)),
                Some(KnownHeader::TraceParent) => self.trace_parent.is_none(),
                Some(KnownHeader::TraceState) => own.trace.keeps_state(),
                Some(KnownHeader::ForwardedProto) => scheme.is_none(),
                Some(KnownHeader::ForwardedHost) => !own_host,
                Some(KnownHeader::ForwardedPort) => *keeps_port,
                Some(KnownHeader::Host) => {
                    host = Some(value.as_bytes());
                    false
                }
                // The body is complete: the gateway does not wait for a 100.
                Some(
                    KnownHeader::Connection
                    | KnownHeader::TransferEncoding
                    | KnownHeader::HopByHop
                    | KnownHeader::Coding
                    | KnownHeader::Expect
                    | KnownHeader::ForwardedFor
                    | KnownHeader::OtherForwarded,
                ) => false,
            };
            if passes {
                write(name, value.as_bytes());
            }
        }
        if let Some(authorization) = authorization {
            write(&header::AUTHORIZATION, authorization.as_bytes());
        }
        if let RequestId::Made(id) = &own.id {
            write(&REQUEST_ID, id);
        }
        if let Some(trace_parent) = &self.trace_parent {
            write(&TRACE_PARENT, trace_parent);
        }
        let mut last = StackText::<39>::new();
        last.ip(*peer);
        if chain.is_empty() {
            write(&FORWARDED_FOR, last.as_bytes());
        } else {
            write(&FORWARDED_FOR, &[chain.as_bytes(), b", ", last.as_bytes()].concat());
        }
        if let Some(scheme) = scheme {
            write(&FORWARDED_PROTO, scheme.as_bytes());
        }
        let target = parts.uri.authority().map(|authority| authority.as_str().as_bytes());
        if let (true, Some(host)) = (own_host, target.or(host)) {
            write(&FORWARDED_HOST, host);
        }
    }

    /// The request for the replica at `address`.
    pub(crate) fn to(&self, address: SocketAddr) -> Request<Rope> {
        let mut headers = HeaderMap::with_capacity(self.head.parts.headers.len() + 6);
        self.each_header(|name, value| {
            if let Ok(value) = HeaderValue::from_bytes(value) {
                headers.append(name, value);
            }
        });
        let mut host = StackText::<64>::new();
        host.socket(address);
        if let Ok(host) = HeaderValue::from_bytes(host.as_bytes()) {
            headers.insert(header::HOST, host);
        }
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = self.method().clone();
        let path = self.head.parts.uri.path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        *request.headers_mut() = headers;
        request
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::read::head::OwnHeaders;
    use crate::read::known_headers::KnownHeaders;
    use crate::read::trace::RequestTrace;

    fn own() -> OwnHeaders {
        let peer = Ipv4Addr::new(203, 0, 113, 9).into();
        let scheme = Some("http");
        let forwarding =
            Forwarding { chain: String::new(), peer, scheme, own_host: true, keeps_port: false };
        let trace = RequestTrace::of(&HeaderMap::new(), None);
        OwnHeaders { id: RequestId::Made([b'0'; 32]), trace, forwarding }
    }

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    /// The headers that a replica gets, after those of `own` that a client's trace changes.
    fn sent(
        headers: &[(&'static str, &'static str)],
        own: OwnHeaders,
        rights: Rights,
    ) -> Vec<String> {
        let mut request = Request::post("/v1/completions?a=b");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        let known = KnownHeaders::of(&parts.headers);
        let own = OwnHeaders { trace: RequestTrace::of(&parts.headers, None), ..own };
        let head = ClientHead { parts, known, own };
        let outgoing = Outgoing::new(OutgoingHead::own(head), Rope::default(), rights);
        let request = outgoing.to(([10, 0, 0, 7], 8000).into());
        assert_eq!(request.uri(), "/v1/completions?a=b");
        assert_eq!(request.method(), Method::POST);
        let line = |(name, value): (&HeaderName, &HeaderValue)| {
            format!("{name}: {}", value.to_str().expect("text"))
        };
        let mut lines: Vec<_> = request.headers().iter().map(line).collect();
        lines.sort_unstable();
        lines
    }

    #[test]
    fn headers_for_the_gateway_are_not_passed_on_and_its_own_are_added() {
        let mut lines = sent(
            &[
                ("host", "client.example"),
                ("connection", "close"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("expect", "100-continue"),
                ("content-length", "7"),
                ("accept-encoding", "gzip"),
                ("x-request-id", "a b"),
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-proto", "ftp"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-port", "1"),
                ("x-real-ip", "1.1.1.1"),
                ("forwarded", "for=1.1.1.1"),
                ("traceparent", "00-1-2-01"),
                ("tracestate", "a=b"),
                ("x-mine", "1"),
                ("x-mine", "2"),
                ("authorization", "Bearer theirs"),
            ],
            own(),
            Rights::default(),
        );
        let want = [
            "authorization: Bearer theirs".to_owned(),
            "host: 10.0.0.7:8000".to_owned(),
            "x-forwarded-for: 203.0.113.9".to_owned(),
            "x-forwarded-host: client.example".to_owned(),
            "x-forwarded-proto: http".to_owned(),
            "x-mine: 1".to_owned(),
            "x-mine: 2".to_owned(),
            format!("x-request-id: {}", "0".repeat(32)),
        ];
        let made = lines.remove(2);
        assert!(made.starts_with("traceparent: 00-") && made.ends_with("-01"), "{made}");
        assert_eq!(lines, want);
    }

    #[test]
    fn the_headers_of_the_client_and_of_trusted_proxies_are_kept() {
        let given = [
            ("host", "10.0.0.1"),
            ("traceparent", PARENT),
            ("tracestate", "a=b"),
            ("x-forwarded-host", "chat.example"),
            ("x-forwarded-port", "443"),
            ("x-forwarded-proto", "https"),
            ("x-request-id", "r1"),
        ];
        let forwarding = Forwarding {
            chain: "9.9.9.9".to_owned(),
            peer: Ipv4Addr::new(10, 1, 1, 1).into(),
            scheme: None,
            own_host: false,
            keeps_port: true,
        };
        let id = RequestId::Client(HeaderValue::from_static("r1"));
        let lines = sent(&given, OwnHeaders { id, forwarding, ..own() }, Rights::default());
        let want = [
            "host: 10.0.0.7:8000",
            &*format!("traceparent: {PARENT}"),
            "tracestate: a=b",
            "x-forwarded-for: 9.9.9.9, 10.1.1.1",
            "x-forwarded-host: chat.example",
            "x-forwarded-port: 443",
            "x-forwarded-proto: https",
            "x-request-id: r1",
        ];
        assert_eq!(lines, want);
    }

    #[test]
    fn a_span_of_the_gateway_replaces_the_clients_and_keeps_the_state_of_its_trace() {
        let request = Request::post("/v1/completions");
        let request = request.header("traceparent", PARENT).header("tracestate", "a=b");
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        let head = ClientHead::known(parts);
        let mut outgoing =
            Outgoing::new(OutgoingHead::own(head), Rope::default(), Rights::default());
        let span = TraceContext { sampled: true, ..TraceContext::random(false) };
        outgoing.set_parent(&span);
        let sent = outgoing.to(([10, 0, 0, 7], 8000).into());
        let all = |name| sent.headers().get_all(name).iter().collect::<Vec<_>>();
        assert_eq!(all("traceparent"), [&span.to_string()]);
        assert_eq!(all("tracestate"), ["a=b"]);
    }

    #[test]
    fn priority_and_keys_are_passed_on_only_if_the_pool_allows_it() {
        let given = [
            ("authorization", "Bearer theirs"),
            ("x-api-key", "theirs"),
            ("x-data-parallel-rank", "1"),
            ("x-vllm-priority", "-5"),
        ];
        let lines = |rights: Rights| {
            let mut lines = sent(&given, own(), rights);
            let gateways = ["host", "traceparent", "x-forwarded-", "x-request-id"];
            lines.retain(|line| !gateways.iter().any(|own| line.starts_with(own)));
            lines
        };
        let (theirs, key) = ("authorization: Bearer theirs", "x-api-key: theirs");
        assert_eq!(lines(Rights::default()), [theirs, key]);
        let priority = Rights { priority: true, ..Rights::default() };
        let both = [theirs, key, "x-data-parallel-rank: 1", "x-vllm-priority: -5"];
        assert_eq!(lines(priority), both);
        let keyed = Rights { keyed: true, ..Rights::default() };
        assert_eq!(lines(keyed), [""; 0]);
        let own = HeaderValue::from_static("Bearer ours");
        let own = Rights { authorization: Some(own), ..Rights::default() };
        assert_eq!(lines(own), ["authorization: Bearer ours"]);
    }
}
