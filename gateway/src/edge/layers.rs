//! The steps around every request, before and after its exchange with a replica.
//!
//! They are plain calls and not `tower` layers. A layer would be cloned for each request, would
//! wrap its future once more, and would keep the configuration that its connection began with. Here
//! one load of the settings serves all steps. `cors` and `request_id` say why tower-http's layers
//! for these don't fit. Its layer for sensitive headers hides keys in traces of headers, and no
//! header is traced here.

use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use forebay_base::open_files;
use forebay_config::{Config, Gateway, Limits, Network};
use forebay_telemetry::Telemetry;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustls::ServerConfig;

use crate::answer::api::{Api, ErrorShape, REALTIME};
use crate::answer::refusal::Refusal;
use crate::edge::allowed_paths::{Access, AllowedPaths};
use crate::edge::cors::{self, Cors, PreflightAnswer};
use crate::edge::forwarded;
use crate::edge::guard::{self, Guard, NamedHosts};
use crate::edge::head::{self, ServedHost};
use crate::exchange::answer_body::AnswerBody;
use crate::exchange::proxy::Proxy;
use crate::exchange::record::Record;
use crate::exchange::respond::{local_response, refuse};
use crate::net::activity::{RequestActivity, WatchedBody};
use crate::net::connection_limits::ConnectionLimits;
use crate::net::drain::Drain;
use crate::net::machine_limits::MachineLimits;
use crate::net::tls::{self, Tls};
use crate::net::upload::Upload;
use crate::pool::Pool;
use crate::read::body;
use crate::read::context::{Client, RequestContext};
use crate::read::head::{ClientHead, FORWARDED_HOST, FORWARDED_PROTO, Forwarding, OwnHeaders};
use crate::read::known_headers::{KnownHeader, KnownHeaders, strip_named};
use crate::read::request_id::{self, RequestId};
use crate::read::trace::RequestTrace;
use crate::realtime::handshake::UpgradeRequest;
use crate::realtime::session::ConnectionSessions;
use crate::route::Routes;
use crate::wire::lines::BringsLines;

/// The size up to which an unwanted body is read, and the time for it.
const UNWANTED: u64 = 1 << 20;
const UNWANTED_TIME: Duration = Duration::from_secs(2);
/// The characters that a query is accepted with and a URL must escape.
const QUERY: &AsciiSet = &CONTROLS.add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');
const ENDPOINT: HeaderName = HeaderName::from_static("x-forebay-endpoint");

/// The state that all connections share.
pub(crate) struct Edge {
    pub(crate) connection_limits: Arc<ConnectionLimits>,
    tls: ArcSwapOption<Tls>,
    proxy: Proxy,
    drain: Drain,
    settings: ArcSwap<Settings>,
    /// The export of traces and metrics; `None` if nothing is exported.
    telemetry: Option<Arc<Telemetry>>,
}

/// The edge's part of the configuration, swapped whole.
struct Settings {
    /// Distinguishes them from earlier ones.
    number: u64,
    limits: Arc<Limits>,
    allowed_paths: AllowedPaths,
    cors: Option<Cors>,
    /// `None` if every request needs a key.
    guard: Option<Guard>,
    trusted: Vec<Network>,
    endpoint_header: bool,
}

/// The other end of a connection.
pub(crate) struct Peer {
    pub(crate) client: Client,
    /// The address of the gateway that it connected to.
    pub(crate) local: Option<IpAddr>,
    pub(crate) encrypted: bool,
    pub(crate) served_host: ServedHost,
}

impl Peer {
    fn address(&self) -> IpAddr {
        self.client.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
    }

    fn is_at(&self, address: IpAddr) -> bool {
        self.local.is_some_and(|local| local.to_canonical() == address)
    }
}

impl Edge {
    pub(crate) fn new(
        gateway: &Gateway,
        tls: Option<Arc<Tls>>,
        proxy: Proxy,
        drain: Drain,
        telemetry: Option<Arc<Telemetry>>,
    ) -> Arc<Self> {
        let settings = ArcSwap::from_pointee(Settings::new(gateway));
        let tls = ArcSwapOption::new(tls);
        let bounds = **proxy.bounds.load();
        let connection_limits =
            ConnectionLimits::new(bounds.connections, bounds.scarce(open_files::limit()));
        Arc::new(Self { connection_limits, tls, proxy, drain, settings, telemetry })
    }

    /// Applies a configuration. `tls` is given if that changes.
    pub(crate) fn apply(
        &self,
        config: &Config,
        pools: Arc<Vec<Arc<Pool>>>,
        tls: Option<Option<Arc<Tls>>>,
    ) {
        if let Some(tls) = tls {
            self.tls.store(tls);
        }
        let memory = forebay_base::memory::available();
        let bounds = MachineLimits::of(&config.gateway.limits, &memory, open_files::limit());
        self.proxy.bounds.store(Arc::new(bounds));
        self.settings.store(Arc::new(Settings::new(&config.gateway)));
        self.proxy.routes.store(Arc::new(Routes::new(config, pools.to_vec())));
    }

    /// The TLS of new connections; `None` for plain text.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.load().as_ref().map(|tls| tls.current())
    }

    /// Reloads the files of TLS when they change, while it is polled.
    pub(crate) async fn follow_tls(self: Arc<Self>) {
        tls::follow(move || self.tls.load_full()).await;
    }

    pub(crate) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.settings.load().limits)
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }
}

/// A client's connection: what its requests share.
pub(crate) struct ClientConnection {
    pub(crate) edge: Arc<Edge>,
    pub(crate) peer: Peer,
    pub(crate) sessions: ConnectionSessions,
}

impl ClientConnection {
    /// Answers one request. Its head is checked at once, outside of the future: a held request
    /// keeps only the rest.
    pub(crate) fn serve(
        self: Arc<Self>,
        request: Request<Upload>,
        flight: Arc<RequestActivity>,
    ) -> impl Future<Output = Result<Response<WatchedBody<AnswerBody>>, Infallible>> {
        let Self { edge, peer, .. } = &*self;
        let settings = edge.settings.load_full();
        let (mut parts, body) = request.into_parts();
        let known = KnownHeaders::of(&parts.headers);
        let http2 = parts.version == Version::HTTP_2;
        let is_head = parts.method == Method::HEAD;
        let given = |header, name: HeaderName| {
            known.has(header).then(|| parts.headers.get(name).cloned()).flatten()
        };
        let origin = given(KnownHeader::Origin, header::ORIGIN);
        let own = settings.own_answer(&parts, known, peer).transpose().map(Box::new);
        let realtime = parts.uri.path() == REALTIME;
        let upgrade = if realtime { UpgradeRequest::take(&mut parts) } else { None };
        let (head, client) = settings.head(parts, known, peer, edge.telemetry.as_ref());
        let id = head.own.id.clone();
        async move {
            let Self { edge, sessions, .. } = &*self;
            // Boxed, so that the future of a held request does not contain the other branches.
            let mut response = match own {
                None if realtime => {
                    // A session has no body. Over HTTP/2, a body that is dropped is a reset.
                    let body = http2.then_some(body);
                    let limits = Arc::clone(&settings.limits);
                    let session = edge.proxy.session(head, upgrade, client, limits, sessions);
                    let response = Box::pin(session).await;
                    drop(body);
                    response
                }
                None => Box::pin(edge.proxy.serve(head, body, client, &settings.limits)).await,
                Some(own) => {
                    if http2 {
                        // HTTP/2 can refuse the rest of a body only by a reset, which some clients
                        // take for a failure.
                        Box::pin(body::discard(body, UNWANTED, UNWANTED_TIME)).await;
                    }
                    let record = Record::begin(RequestContext::new(&head, client));
                    let shape = ErrorShape::of(head.parts.uri.path());
                    match *own {
                        Ok(response) => local_response(response, record),
                        Err(refusal) => refuse(&refusal, record, shape),
                    }
                }
            };
            settings.finish(&mut response, &id, origin.as_ref());
            let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            if !http2 && !switches && edge.drain.has_retired() {
                // The client's next connection reaches the process that took over.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(header::CONNECTION, close);
            }
            if http2 {
                let lines = response.body_mut().take_lines();
                lines.append_to(response.headers_mut());
            }
            let response = if is_head { without_body(response) } else { response };
            Ok(response.map(|body| WatchedBody::new(body, flight)))
        }
    }
}

impl Settings {
    fn new(gateway: &Gateway) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NEXT.fetch_add(1, Relaxed),
            limits: Arc::new(gateway.limits.clone()),
            allowed_paths: AllowedPaths::new(&gateway.paths),
            cors: gateway.cors.as_ref().map(Cors::new),
            guard: Guard::new(gateway),
            trusted: gateway.trusted_proxies.clone(),
            endpoint_header: gateway.endpoint_header,
        }
    }

    /// A request's head with the headers for replicas, and its client with the client's own address.
    fn head(
        &self,
        mut parts: Parts,
        known: KnownHeaders,
        peer: &Peer,
        telemetry: Option<&Arc<Telemetry>>,
    ) -> (Box<ClientHead>, Client) {
        let headers = &mut parts.headers;
        if known.has(KnownHeader::Connection) {
            // The gateway must not read them either.
            strip_named(headers);
        }
        let id = match known.has(KnownHeader::RequestId) {
            true => RequestId::of(headers),
            false => RequestId::made(),
        };
        let trace = match known.has(KnownHeader::TraceParent) {
            true => RequestTrace::of(headers, telemetry),
            false => RequestTrace::new(telemetry),
        };
        let (address, forwarding) = self.forward(headers, peer);
        let client = Client { address: Some(address), ..peer.client };
        let own = OwnHeaders { id, trace, forwarding };
        (Box::new(ClientHead { parts, known, own }), client)
    }

    /// The client's own address, and the forwarding headers for replicas.
    fn forward(&self, headers: &HeaderMap, peer: &Peer) -> (IpAddr, Forwarding) {
        forwarded::forward(headers, peer.address(), peer.encrypted, &self.trusted)
    }

    /// Checks a head as it came. Returns the gateway's own answer, or `None` if the request goes
    /// on to a replica or a local answer.
    fn own_answer(
        &self,
        parts: &Parts,
        known: KnownHeaders,
        peer: &Peer,
    ) -> Result<Option<Response<AnswerBody>>, Refusal> {
        head::check(parts, known, self.limits.header_count)?;
        if !peer.served_host.is_of(parts, known, self.number) {
            self.check_host(parts, known, peer)?;
        }
        if let Some(preflight) = self.cors.as_ref().and_then(|cors| cors.preflight(parts)) {
            return Ok(Some(preflight));
        }
        let path = parts.uri.path();
        match self.allowed_paths.access(path, &parts.method)? {
            Access::Allowed => {}
            Access::Methods(methods) => {
                let mut response = Response::new(AnswerBody::empty());
                *response.status_mut() = StatusCode::NO_CONTENT;
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
                return Ok(Some(response));
            }
            Access::Redirect(path) => return Ok(Some(self.redirect(parts, peer, &path))),
        }
        if let Some(api) = Api::of(path) {
            if known.has(KnownHeader::ContentEncoding) {
                head::require_uncompressed(&parts.headers)?;
            }
            if !api.multipart() {
                guard::require_json(&parts.headers)?;
            }
        }
        Ok(None)
    }

    /// Checks the host that a head names, and notes it if it is one of the gateway's.
    fn check_host(&self, parts: &Parts, known: KnownHeaders, peer: &Peer) -> Result<(), Refusal> {
        let host = head::host(parts)?;
        if let Some(guard) = &self.guard {
            if !guard.applies(&parts.headers) {
                return Ok(());
            }
            let forwarded = forwarded::host(&parts.headers, peer.address(), &self.trusted);
            let hosts = NamedHosts { host, forwarded };
            let own = |address| peer.is_at(address) || is_bindable(address);
            guard.check(&hosts, &parts.headers, known, self.cors.as_ref(), own)?;
        }
        peer.served_host.set(&parts.headers, self.number);
        Ok(())
    }

    /// A redirect to another path of this gateway, as vLLM's router answers: to an absolute URL
    /// with the host that the client named. The client repeats the method and the body.
    fn redirect(&self, parts: &Parts, peer: &Peer, path: &str) -> Response<AnswerBody> {
        // The scheme and the host are those for replicas, also through trusted proxies.
        let (_, forwarding) = self.forward(&parts.headers, peer);
        let text = |name| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let scheme = forwarding.scheme.or_else(|| text(FORWARDED_PROTO));
        let hosts = match forwarding.own_host {
            true => parts.uri.authority().map(|at| at.as_str()).or_else(|| text(header::HOST)),
            false => text(FORWARDED_HOST),
        };
        let mut location = match (scheme, hosts) {
            (Some(scheme), Some(hosts)) => {
                let host = hosts.split(',').next().unwrap_or_default().trim();
                format!("{scheme}://{host}{path}")
            }
            _ => path.to_owned(),
        };
        if let Some(query) = parts.uri.query().filter(|query| !query.is_empty()) {
            location.push('?');
            location.extend(utf8_percent_encode(query, QUERY));
        }
        let mut response = Response::new(AnswerBody::empty());
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    /// Writes the headers that every answer has.
    fn finish(
        &self,
        response: &mut Response<AnswerBody>,
        id: &RequestId,
        origin: Option<&HeaderValue>,
    ) {
        let answered_by = response.body().answered_by.filter(|_| self.endpoint_header);
        let is_preflight = response.extensions().get::<PreflightAnswer>().is_some();
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        response.body_mut().lines.push(request_id::REQUEST_ID.as_str(), id.as_bytes());
        let headers = response.headers_mut();
        if switches {
            // The replica's.
            headers.remove(request_id::REQUEST_ID);
        }
        if !is_preflight {
            cors::clear(headers);
        }
        if let Some(address) = answered_by
            && let Ok(address) = HeaderValue::from_str(&address.to_string())
        {
            headers.insert(ENDPOINT, address);
        }
        if let (Some(cors), false) = (&self.cors, is_preflight) {
            cors.expose(origin, headers);
        }
    }
}

/// Whether an address is one of this machine's: only to those can a socket be bound.
fn is_bindable(address: IpAddr) -> bool {
    !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok()
}

/// The answer to HEAD: the head that GET would get.
fn without_body(mut response: Response<AnswerBody>) -> Response<AnswerBody> {
    use http_body::Body as _;
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    response.map(AnswerBody::without_content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::socket::ClientSocket;

    #[test]
    fn a_connections_host_is_checked_again_when_it_or_the_settings_change() {
        let client = Client { socket: ClientSocket::unwatched(), address: None };
        let served_host = ServedHost::default();
        let peer = Peer { client, local: None, encrypted: false, served_host };
        let is_served = |settings: &Settings, headers: &[(&str, &str)]| {
            let mut request = Request::get("/v1/models");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            let parts = request.body(()).expect("valid").into_parts().0;
            settings.own_answer(&parts, KnownHeaders::of(&parts.headers), &peer).is_ok()
        };
        let hosts = vec!["a.example".parse().expect("a host")];
        let keys = forebay_config::Keys { file: "f".into(), required: false };
        let gateway = Gateway { allowed_hosts: hosts, keys: Some(keys), ..Gateway::default() };
        let settings = Settings::new(&gateway);
        let (own, foreign) = (("host", "a.example"), ("host", "b.example"));
        for (headers, want) in [
            (&[own][..], true),
            (&[own], true),
            (&[foreign], false),
            (&[own, foreign], false),
            (&[own, own], false),
            (&[own, ("origin", "https://b.example")], false),
            (&[foreign, ("x-api-key", "k")], true),
            (&[foreign], false),
            (&[own, ("x-api-key", "k")], true),
            (&[own], true),
        ] {
            assert_eq!(is_served(&settings, headers), want, "{headers:?}");
        }
        assert!(!is_served(&Settings::new(&Gateway::default()), &[own]), "no longer configured");
    }

    #[test]
    fn a_preflight_that_is_not_allowed_names_each_header_once_in_vary() {
        let cors = serde_json::from_str(r#"{"origins": ["https://a.example"]}"#).expect("valid");
        let gateway = Gateway { cors: Some(cors), ..Gateway::default() };
        let settings = Settings::new(&gateway);
        for origin in ["https://a.example", "https://b.example"] {
            let request = Request::options("/v1/completions")
                .header("origin", origin)
                .header("access-control-request-method", "POST");
            let parts = request.body(()).expect("valid").into_parts().0;
            let cors = settings.cors.as_ref().expect("configured");
            let mut response = cors.preflight(&parts).expect("a preflight");
            let id = RequestId::made();
            settings.finish(&mut response, &id, parts.headers.get(header::ORIGIN));
            let vary: Vec<_> = response.headers().get_all(header::VARY).iter().collect();
            let want =
                ["origin", "access-control-request-method", "access-control-request-headers"];
            assert_eq!(vary, want, "{origin}");
        }
    }
}
