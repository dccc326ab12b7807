//! What is done for every request of a client before and after its own way.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use forebay_config::{Config, Gateway, Limits, Network};
use forebay_system::files;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use rustls::ServerConfig;
use tokio::time::{MissedTickBehavior, interval};

use crate::answer::api::{Api, ErrorShape};
use crate::answer::refusal::Refusal;
use crate::edge::allowed_paths::{self, Door, Exposed};
use crate::edge::cors::{self, Cors};
use crate::edge::forwarded::{self, Hop};
use crate::edge::guard::{self, Guard, Places};
use crate::edge::head;
use crate::exchange::answer_body::Body;
use crate::exchange::answered_by::AnsweredBy;
use crate::exchange::outgoing::strip_hop_by_hop;
use crate::exchange::proxy::Proxy;
use crate::exchange::record::Record;
use crate::exchange::respond::{local_response, refuse};
use crate::net::bounds::Bounds;
use crate::net::connection_limits::Clients;
use crate::net::drain::Drain;
use crate::net::tls::{self, Tls};
use crate::net::upload::Upload;
use crate::pool::Pool;
use crate::read::body;
use crate::read::context::{Client, RequestContext};
use crate::read::request_id;
use crate::realtime::{Sessions, Wish};
use crate::route::Routes;

/// How much of a body that nobody wants is taken all the same, and for how long.
const UNWANTED: u64 = 1 << 20;
const UNWANTED_TIME: Duration = Duration::from_secs(2);
/// What may come in a query and does not stand in a URL as it is.
const QUERY: &AsciiSet = &CONTROLS.add(b'\\').add(b'^').add(b'`').add(b'{').add(b'|').add(b'}');
const ENDPOINT: HeaderName = HeaderName::from_static("x-forebay-endpoint");

/// Everything that connections share.
pub(crate) struct Edge {
    pub(crate) clients: Arc<Clients>,
    tls: ArcSwapOption<Tls>,
    proxy: Proxy,
    drain: Drain,
    settings: ArcSwap<Settings>,
}

/// The configuration's part in it, swapped whole.
struct Settings {
    limits: Arc<Limits>,
    exposed: Exposed,
    cors: Option<Cors>,
    /// `None` where keys are required.
    guard: Option<Guard>,
    trusted: Vec<Network>,
    endpoint_header: bool,
}

/// The other end of a connection.
pub(crate) struct Peer {
    pub(crate) client: Client,
    /// The address that it connected to.
    pub(crate) local: Option<IpAddr>,
    pub(crate) encrypted: bool,
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
    ) -> Arc<Self> {
        let settings = ArcSwap::from_pointee(Settings::new(gateway));
        let tls = ArcSwapOption::new(tls);
        let bounds = **proxy.bounds.load();
        let clients = Clients::new(bounds.connections, bounds.scarce(files::limit()));
        Arc::new(Self { clients, tls, proxy, drain, settings })
    }

    /// Takes a configuration over. `tls` is given where that is to change.
    pub(crate) fn apply(
        &self,
        config: &Config,
        pools: Arc<Vec<Arc<Pool>>>,
        tls: Option<Option<Arc<Tls>>>,
    ) {
        if let Some(tls) = tls {
            self.tls.store(tls);
        }
        let memory = forebay_system::memory::available();
        let bounds = Bounds::of(&config.gateway.limits, &memory, files::limit());
        self.proxy.bounds.store(Arc::new(bounds));
        self.proxy.limits.store(Arc::new(config.gateway.limits.clone()));
        self.settings.store(Arc::new(Settings::new(&config.gateway)));
        self.proxy.routes.store(Arc::new(Routes::new(config, pools.to_vec())));
    }

    /// What new connections are greeted with; `None` for plain text.
    pub(crate) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.tls.load().as_ref().map(|tls| tls.current())
    }

    /// Looks after the files of TLS for as long as it is polled.
    pub(crate) async fn follow_tls(self: Arc<Self>) {
        let mut ticks = interval(tls::POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(tls) = self.tls.load_full() {
                let _ = tokio::task::spawn_blocking(move || tls.poll()).await;
            }
        }
    }

    pub(crate) fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.settings.load().limits)
    }

    pub(crate) fn drain(&self) -> &Drain {
        &self.drain
    }

    /// Answers one request, whatever it is.
    pub(crate) async fn serve(
        &self,
        request: Request<Upload>,
        peer: &Peer,
        sessions: &Sessions,
    ) -> Response<Body> {
        let settings = self.settings.load_full();
        let (mut parts, body) = request.into_parts();
        let http2 = parts.version == Version::HTTP_2;
        let head = parts.method == Method::HEAD;
        let origin = parts.headers.get(header::ORIGIN).cloned();
        let mut client = peer.client;
        let own = settings.own_answer(&parts, peer).transpose();
        let wish = Wish::take(&mut parts);
        // Before anything of ours is written, or a client could have it taken out by naming it in
        // `connection`.
        strip_hop_by_hop(&mut parts.headers);
        let id = request_id::request_id(&mut parts.headers);
        request_id::trace(&mut parts.headers);
        client.address = Some(settings.forward(&mut parts, peer));
        let realtime = parts.uri.path() == allowed_paths::REALTIME;
        let mut response = match own {
            None if realtime => {
                let limits = Arc::clone(&settings.limits);
                Box::pin(self.proxy.session(parts, wish, client, limits, sessions)).await
            }
            // Boxed, so that a held request is no larger than its own way.
            None => Box::pin(self.proxy.serve(Request::from_parts(parts, body), client)).await,
            Some(own) => {
                if http2 {
                    // Its only word for "the rest is not wanted" is a reset, which some clients take
                    // for a failure.
                    body::discard(body, UNWANTED, UNWANTED_TIME).await;
                }
                let record = Record::begin(RequestContext::new(&parts, client));
                let shape = record.context.api.map_or(ErrorShape::OpenAi, Api::errors);
                match own {
                    Ok(response) => local_response(response, record),
                    Err(refusal) => refuse(&refusal, record, shape),
                }
            }
        };
        settings.finish(&mut response, id, origin.as_ref());
        let switches = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !http2 && !switches && self.drain.has_retired() {
            // The client's next connection reaches the process that took over.
            let close = HeaderValue::from_static("close");
            response.headers_mut().insert(header::CONNECTION, close);
        }
        if head { without_body(response) } else { response }
    }
}

impl Settings {
    fn new(gateway: &Gateway) -> Self {
        Self {
            limits: Arc::new(gateway.limits.clone()),
            exposed: Exposed::new(&gateway.paths),
            cors: gateway.cors.as_ref().map(Cors::new),
            guard: Guard::new(gateway),
            trusted: gateway.trusted_proxies.clone(),
            endpoint_header: gateway.endpoint_header,
        }
    }

    /// Writes a request's way here into its headers; the address is the client's own.
    fn forward(&self, parts: &mut Parts, peer: &Peer) -> IpAddr {
        let host = match parts.uri.authority() {
            Some(authority) => HeaderValue::from_str(authority.as_str()).ok(),
            None => parts.headers.get(header::HOST).cloned(),
        };
        let hop = Hop { peer: peer.address(), encrypted: peer.encrypted, host };
        forwarded::forward(&mut parts.headers, hop, &self.trusted)
    }

    /// What is answered before anything else is looked at, to a head as it came; `None` for what is
    /// to go on.
    fn own_answer(&self, parts: &Parts, peer: &Peer) -> Result<Option<Response<Body>>, Refusal> {
        let host = head::check(parts, self.limits.header_count)?;
        let guard = self.guard.as_ref().filter(|guard| guard.applies(&parts.headers));
        if let Some(guard) = guard {
            let forwarded = forwarded::host(&parts.headers, peer.address(), &self.trusted);
            let places = Places { host, forwarded };
            let own = |address| peer.is_at(address) || is_bindable(address);
            guard.check(&places, &parts.headers, self.cors.as_ref(), own)?;
        }
        if let Some(preflight) = self.cors.as_ref().and_then(|cors| cors.preflight(parts)) {
            return Ok(Some(preflight));
        }
        let path = parts.uri.path();
        match self.exposed.door(path, &parts.method)? {
            Door::Open => {}
            Door::Methods(methods) => {
                let mut response = Response::new(Body::full(bytes::Bytes::new()));
                *response.status_mut() = StatusCode::NO_CONTENT;
                response.headers_mut().insert(header::ALLOW, HeaderValue::from_static(methods));
                return Ok(Some(response));
            }
            Door::Elsewhere(path) => return Ok(Some(self.redirect(parts.clone(), peer, &path))),
        }
        if let Some(api) = Api::of(path) {
            head::uncompressed(&parts.headers)?;
            if guard.is_some() && !api.multipart() {
                guard::says_json(&parts.headers)?;
            }
        }
        Ok(None)
    }

    /// To another path of this gateway, as vLLM's router answers: absolute, by the host that the
    /// client named, with the method and the body to be sent again.
    fn redirect(&self, mut parts: Parts, peer: &Peer, path: &str) -> Response<Body> {
        // What the connection and the proxies in front make of the scheme and the host.
        self.forward(&mut parts, peer);
        let text = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
        let mut location = match (text("x-forwarded-proto"), text("x-forwarded-host")) {
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
        let mut response = Response::new(Body::full(bytes::Bytes::new()));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        if let Ok(location) = HeaderValue::from_str(&location) {
            response.headers_mut().insert(header::LOCATION, location);
        }
        response
    }

    /// What every answer has, whoever gave it.
    fn finish(&self, response: &mut Response<Body>, id: HeaderValue, origin: Option<&HeaderValue>) {
        let answered_by = response.extensions().get::<AnsweredBy>().copied();
        let headers = response.headers_mut();
        headers.insert(request_id::REQUEST_ID, id);
        headers.remove(ENDPOINT);
        if self.endpoint_header
            && let Some(AnsweredBy(address)) = answered_by
            && let Ok(address) = HeaderValue::from_str(&address.to_string())
        {
            headers.insert(ENDPOINT, address);
        }
        match &self.cors {
            // The answer to a preflight is whole.
            Some(_) if headers.contains_key(header::ACCESS_CONTROL_MAX_AGE) => {}
            Some(cors) => cors.expose(origin, headers),
            None => cors::clear(headers),
        }
    }
}

/// Whether an address is one of this machine's: only to those can a socket be bound.
fn is_bindable(address: IpAddr) -> bool {
    !address.is_multicast() && UdpSocket::bind((address, 0)).is_ok()
}

/// To HEAD: the head that GET would have.
fn without_body(mut response: Response<Body>) -> Response<Body> {
    use http_body::Body as _;
    if let Some(length) = response.body().size_hint().exact() {
        response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(HeaderValue::from(length));
    }
    response.map(|_| Body::full(bytes::Bytes::new()))
}
