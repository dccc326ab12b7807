//! A request as replicas get it: the client's, less what is not theirs to see.

use std::net::SocketAddr;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{Method, Request};

use crate::exchange::ours::Key;
use crate::text::rope::Pieces;

/// What vLLM would let any client decide about its own place.
const PRIORITY: [&str; 2] = ["x-vllm-priority", "x-data-parallel-rank"];

/// What a client's headers may say to a replica.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rights {
    /// Its place in the replica's queue.
    pub(crate) priority: bool,
    /// The key it sent was meant for the gateway.
    pub(crate) keyed: bool,
    /// The replicas' own key, as the value of `authorization`.
    pub(crate) authorization: Option<HeaderValue>,
}

impl Rights {
    /// Whose key goes out.
    pub(crate) fn key(&self) -> Key {
        match self {
            Self { authorization: Some(_), .. } => Key::Pools,
            Self { keyed: true, .. } => Key::Withheld,
            Self { .. } => Key::Clients,
        }
    }
}

/// Sent as often as needed.
#[derive(Debug)]
pub(crate) struct Outgoing {
    method: Method,
    path: Option<PathAndQuery>,
    headers: HeaderMap,
    body: Pieces,
}

impl Outgoing {
    pub(crate) fn new(parts: Parts, body: Pieces, rights: Rights) -> Self {
        let mut headers = parts.headers;
        strip_hop_by_hop(&mut headers);
        // The body is here whole, so the length is ours to say, and nobody waits for a 100. The
        // answer is read on its way, so it must not be compressed.
        for name in [header::CONTENT_LENGTH, header::EXPECT, header::HOST, header::ACCEPT_ENCODING]
        {
            headers.remove(name);
        }
        if !rights.priority {
            PRIORITY.into_iter().for_each(|name| drop(headers.remove(name)));
        }
        if rights.keyed || rights.authorization.is_some() {
            headers.remove(header::AUTHORIZATION);
            headers.remove("x-api-key");
        }
        if let Some(authorization) = rights.authorization {
            headers.insert(header::AUTHORIZATION, authorization);
        }
        let path = parts.uri.path_and_query().cloned();
        Self { method: parts.method, path, headers, body }
    }

    /// The request for the replica at `address`.
    pub(crate) fn to(&self, address: SocketAddr) -> Request<Pieces> {
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone().map_or_else(Default::default, Into::into);
        *request.headers_mut() = self.headers.clone();
        if let Ok(host) = HeaderValue::from_str(&address.to_string()) {
            request.headers_mut().insert(header::HOST, host);
        }
        request
    }
}

/// Headers that speak of one connection only, with those that `connection` names.
pub(crate) fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(headers: &[(&'static str, &'static str)], rights: Rights) -> HeaderMap {
        let mut request = Request::post("http://client.example/v1/completions?a=b");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (parts, ()) = request.body(()).expect("valid").into_parts();
        let outgoing = Outgoing::new(parts, Pieces::default(), rights);
        let request = outgoing.to(([10, 0, 0, 7], 8000).into());
        assert_eq!(request.uri(), "/v1/completions?a=b");
        assert_eq!(request.headers()[header::HOST], "10.0.0.7:8000");
        request.headers().clone()
    }

    #[test]
    fn what_speaks_of_the_clients_connection_stays_behind() {
        let headers = sent(
            &[
                ("host", "client.example"),
                ("connection", "close, x-private"),
                ("x-private", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("expect", "100-continue"),
                ("content-length", "7"),
                ("accept-encoding", "gzip"),
                ("x-request-id", "r1"),
                ("authorization", "Bearer theirs"),
            ],
            Rights::default(),
        );
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["authorization", "host", "x-request-id"]);
    }

    #[test]
    fn priority_and_keys_go_through_only_as_the_pool_says() {
        let given = [
            ("x-vllm-priority", "-5"),
            ("x-data-parallel-rank", "1"),
            ("authorization", "Bearer theirs"),
            ("x-api-key", "theirs"),
        ];
        let names = |rights: Rights| {
            let headers = sent(&given, rights);
            let has = |name: &str| headers.contains_key(name);
            let key =
                headers.get("authorization").map(|key| key.to_str().expect("text").to_owned());
            (has("x-vllm-priority"), has("x-data-parallel-rank"), has("x-api-key"), key)
        };
        let theirs = Some("Bearer theirs".to_owned());
        assert_eq!(names(Rights::default()), (false, false, true, theirs.clone()));
        let priority = Rights { priority: true, ..Rights::default() };
        assert_eq!(names(priority), (true, true, true, theirs));
        let keyed = Rights { keyed: true, ..Rights::default() };
        assert_eq!(names(keyed), (false, false, false, None));
        let own = HeaderValue::from_static("Bearer ours");
        let own = Rights { authorization: Some(own), ..Rights::default() };
        assert_eq!(names(own), (false, false, false, Some("Bearer ours".to_owned())));
    }
}
