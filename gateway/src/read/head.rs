//! A client's request head, with the headers that the gateway writes itself.
//!
//! The client's headers are never edited. One walk leaves out those that are not passed on, and the
//! gateway's own ones follow.

use std::net::IpAddr;

use http::header::HeaderName;
use http::request::Parts;

use crate::read::known_headers::KnownHeaders;
use crate::read::request_id::RequestId;
use crate::read::trace::RequestTrace;

pub(crate) const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(crate) const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// A head as it came, and what the edge found and decided about it.
#[derive(Clone, Debug)]
pub(crate) struct ClientHead {
    pub(crate) parts: Parts,
    pub(crate) known: KnownHeaders,
    pub(crate) own: OwnHeaders,
}

/// The headers that replicas get from the gateway.
#[derive(Clone, Debug)]
pub(crate) struct OwnHeaders {
    pub(crate) id: RequestId,
    pub(crate) trace: RequestTrace,
    pub(crate) forwarding: Forwarding,
}

/// The headers `x-forwarded-*` for replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forwarding {
    /// The chain of proxies before the last hop, as trusted proxies reported it; often empty.
    pub(crate) chain: String,
    /// The other end of the connection.
    pub(crate) peer: IpAddr,
    /// The scheme of the connection; `None` keeps the one that a trusted proxy reported.
    pub(crate) scheme: Option<&'static str>,
    /// The host that the head names is the one by which the client reached the gateway. Otherwise a
    /// trusted proxy reported it.
    pub(crate) own_host: bool,
    /// A trusted proxy's port is kept.
    pub(crate) keeps_port: bool,
}

#[cfg(test)]
impl ClientHead {
    /// A head that came through the trusted proxy 10.0.0.1, and of which everything is passed on.
    pub(crate) fn known(parts: Parts) -> Self {
        let forwarding = Forwarding {
            chain: String::new(),
            peer: IpAddr::from([10, 0, 0, 1]),
            scheme: None,
            own_host: false,
            keeps_port: true,
        };
        let id = RequestId::Client(http::HeaderValue::from_static("known"));
        let known = KnownHeaders::of(&parts.headers);
        let trace = RequestTrace::of(&parts.headers, None);
        Self { parts, known, own: OwnHeaders { id, trace, forwarding } }
    }
}
