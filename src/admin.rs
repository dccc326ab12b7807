//! The operators' port: metrics, health, the feeds, decisions, the console.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderMap, HeaderName, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use forebay_base::Heartbeats;
use forebay_base::listen::Peer;
use forebay_gateway::Draining;
use forebay_scaler::{FromEndpoint, Readiness};
use forebay_signals::Token;
use tokio::time::timeout;

mod port;
mod recorder;
mod scrape;
mod session;

pub(crate) use port::{Port, bind};
pub(crate) use recorder::Figures;
pub(crate) use scrape::{Scrape, install_metrics};

use crate::console::{self, OtherLeader};
use session::Sessions;

/// Limits on a request's body: its size and its time.
const BODY_SIZE: usize = 64 << 10;
const BODY_TIME: Duration = Duration::from_secs(10);

/// Access to the admin port: the token, or loopback.
#[derive(Clone)]
pub(crate) struct Access {
    /// `None` admits every client that reaches the port, which is allowed only on loopback.
    pub(crate) token: Option<Token>,
    pub(crate) loopback: bool,
}

/// The parts that answer on the port.
pub(crate) struct AdminParts {
    /// The feeds, the decisions, and the routes that change something.
    pub(crate) routes: Router,
    pub(crate) scrape: Scrape,
    pub(crate) access: Access,
    /// Drains the gateway; `None` if none runs.
    pub(crate) drain: Option<Draining>,
    /// Set if no gateway runs here: a gateway's readiness does not depend on a scaler.
    pub(crate) scaler: Option<Readiness>,
    /// Serves the console, if a scaler runs here.
    pub(crate) console: Option<OtherLeader>,
    pub(crate) heartbeats: Heartbeats,
}

/// Everything that the port serves.
pub(crate) fn router(parts: AdminParts) -> Router {
    let AdminParts { routes, scrape, access, drain, scaler, console, heartbeats } = parts;
    let healthy = {
        let heartbeats = heartbeats.clone();
        get(async move || health(heartbeats.silent().map(|silent| silent.to_string())))
    };
    let ready = {
        let drain = drain.clone();
        get(async move || {
            let silent = heartbeats.silent().map(|silent| silent.to_string());
            let draining = || drain.filter(Draining::has_begun).map(|_| "draining".to_owned());
            health(silent.or_else(draining).or_else(|| scaler?.lack()))
        })
    };
    // The scaler has a /drain of its own, for replicas; without a query it is this gateway's.
    let routes = if drain.is_some() {
        routes.fallback(not_found).layer(from_fn_with_state(drain, drain_gateway))
    } else {
        routes.fallback(not_found)
    };
    let sessions = access.token.clone().map(Sessions::new);
    let guard = Guard { access: access.clone(), sessions: sessions.clone() };
    let routes = routes.layer(from_fn(read_body));
    let mut guarded = routes.layer(from_fn_with_state(guard, authorize));
    if let Some(other_leader) = console {
        let page = move |request: Request, next: Next| {
            console::page(Arc::clone(&other_leader), request, next)
        };
        let login = sessions.map(|sessions| sessions.routes().layer(from_fn(read_body)));
        guarded =
            guarded.layer(from_fn(page)).merge(console::files()).merge(login.unwrap_or_default());
    }
    let local = access.loopback;
    let open = Router::new()
        .route("/metrics", get(async move || scrape.answer().await))
        .route("/healthz", healthy)
        .route("/readyz", ready);
    let open = if local { open.layer(from_fn(for_this_machine)) } else { open };
    // With a token, a proxy with a name of its own may stand before it: a page that reaches this machine by
    // another site's name has neither the token nor the cookie, which belongs to the proxy's name.
    let guarded = match access.token {
        None if local => guarded.layer(from_fn(for_this_machine)),
        _ => guarded,
    };
    open.merge(guarded).layer(from_fn(of_our_pages))
}

/// The ways to show that a request is an operator's.
#[derive(Clone)]
struct Guard {
    access: Access,
    sessions: Option<Sessions>,
}

fn health(fault: Option<String>) -> (StatusCode, String) {
    match fault {
        Some(fault) => (StatusCode::SERVICE_UNAVAILABLE, format!("{fault}\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

/// Reads a request's body first, so a client that sends it slowly or without end delays nothing.
async fn read_body(request: Request, next: Next) -> Response {
    let (head, body) = request.into_parts();
    let refused =
        |status, why: &'static str| (status, [(header::CONNECTION, "close")], why).into_response();
    match timeout(BODY_TIME, to_bytes(body, BODY_SIZE)).await {
        Ok(Ok(body)) => next.run(Request::from_parts(head, body.into())).await,
        Ok(Err(_)) => refused(StatusCode::PAYLOAD_TOO_LARGE, "send less than 64 KiB\n"),
        Err(_) => refused(StatusCode::REQUEST_TIMEOUT, "the body did not come in time\n"),
    }
}

/// Names what is served here.
const INDEX: &str = "\
Forebay's admin port

/metrics              figures for Prometheus
/healthz, /readyz     health
/signals              what the gateway holds and measures, by pool
/queue?pool=NAME      what the gateway holds, one by one, and when each will start
/endpoints?pool=NAME  the endpoints: probes, failures, speed, and what their caches remember
/replicas             replicas, and how many are wanted
/decisions?pool=NAME  the scaler's decisions, each with its reason
POST /drain           takes no more requests, and answers once none is left
/overview             every pool in short
/pools/NAME           a pool in detail; below it /queue, /endpoints, /output?replica=ID
/history?pool=NAME    the last hour of a pool
/gateways             the gateways that the scaler reads
POST /pools/NAME/override
                      an operator's count; also /pools/NAME/wake and /pools/NAME/zero
";

async fn not_found(uri: Uri) -> (StatusCode, &'static str) {
    match uri.path() {
        "/" => (StatusCode::OK, INDEX),
        _ => (StatusCode::NOT_FOUND, "there is nothing at this path; `/` names what is served\n"),
    }
}

/// `POST /drain`: answers when no request is held or in flight.
async fn drain_gateway(
    State(drain): State<Option<Draining>>,
    request: Request,
    next: Next,
) -> Response {
    let ours = request.uri().path() == "/drain" && request.uri().query().is_none();
    let Some(drain) = drain.filter(|_| ours) else { return next.run(request).await };
    if request.method() != Method::POST {
        let allow = [(header::ALLOW, "POST")];
        let usage = "use POST: it stops this gateway from taking requests\n";
        return (StatusCode::METHOD_NOT_ALLOWED, allow, usage).into_response();
    }
    tracing::info!("draining, by a request on the admin port");
    drain.begin();
    drain.idle().await;
    "drained\n".into_response()
}

async fn authorize(State(guard): State<Guard>, mut request: Request, next: Next) -> Response {
    let Guard { access, sessions } = guard;
    let headers = request.headers();
    let allowed = match &access.token {
        Some(token) => token.is_in(headers),
        None => access.loopback,
    };
    if allowed {
        return next.run(request).await;
    }
    if let Some(session) = sessions.and_then(|sessions| sessions.of(headers)) {
        return session.answer(next.run(request).await);
    }
    let caller = request.extensions().get::<Peer>().map(|peer| peer.address);
    if caller.is_some_and(|caller| drains_itself(&request, caller)) {
        request.extensions_mut().insert(FromEndpoint);
        return next.run(request).await;
    }
    let headers = [(header::WWW_AUTHENTICATE, "Bearer")];
    let why = "send the token of admin.tokenFile as `authorization: Bearer …`\n";
    (StatusCode::UNAUTHORIZED, headers, why).into_response()
}

/// Refuses all requests that a page of another site makes a browser on this machine send: with the site's own
/// name as host, or across sites.
async fn for_this_machine(request: Request, next: Next) -> Response {
    let headers = request.headers();
    let texts = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    let mut hosts =
        texts(header::HOST).chain(request.uri().authority().map(|authority| authority.as_str()));
    let foreign_host = hosts.any(|host| !is_local(host));
    let foreign_origin = texts(header::ORIGIN)
        .any(|origin| origin.split_once("://").is_none_or(|(_, authority)| !is_local(authority)));
    if foreign_host || foreign_origin {
        let why = "this port answers only requests for localhost, and from pages of localhost; for a proxy \
                   with another name, set admin.tokenFile\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    next.run(request).await
}

/// Refuses changes by a page that is not of this port itself. A link on another site may show one of ours.
async fn of_our_pages(request: Request, next: Next) -> Response {
    if !request.method().is_safe() && is_from_another_page(request.headers()) {
        let why = "only a page of this port itself may change something\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    next.run(request).await
}

/// Whether a browser sends a request for a page of another origin. By `sec-fetch-site`, which also
/// stands behind a proxy that changes the host; a browser that does not send it sends an origin. Other
/// clients send neither. The order is that of Go's `http.CrossOriginProtection`.
fn is_from_another_page(headers: &HeaderMap) -> bool {
    let text = |name: HeaderName| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    if let Some(site) = text(HeaderName::from_static("sec-fetch-site")) {
        return site != "same-origin" && site != "none";
    }
    let Some(origin) = text(header::ORIGIN) else { return false };
    let page = origin.split_once("://").map(|(_, authority)| authority);
    page.is_none_or(|page| text(header::HOST).is_none_or(|host| !host.eq_ignore_ascii_case(page)))
}

/// Whether an authority, `HOST[:PORT]`, can only be this machine.
fn is_local(authority: &str) -> bool {
    let port = |rest: &str| rest.strip_prefix(':').is_none_or(|port| port.parse::<u16>().is_ok());
    let (host, rest) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, rest)) => (host, rest),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    (rest.is_empty() || rest.starts_with(':') && port(rest))
        && (loopback || host.eq_ignore_ascii_case("localhost"))
}

/// Whether the caller drains the endpoint at its own address. A pod may do so without the token, which
/// pods of models don't have; the scaler checks that it knows the pod. Not on loopback, where all
/// callers have the same address, nor for a browser, which sends requests on behalf of other sites.
fn drains_itself(request: &Request, caller: SocketAddr) -> bool {
    let query = Query::<HashMap<String, String>>::try_from_uri(request.uri()).ok();
    let endpoint = query.and_then(|query| query.get("endpoint")?.parse::<SocketAddr>().ok());
    request.method() == Method::POST
        && request.uri().path() == "/drain"
        && !request.headers().contains_key(header::ORIGIN)
        && endpoint.is_some_and(|endpoint| {
            let (endpoint, caller) = (endpoint.ip().to_canonical(), caller.ip().to_canonical());
            endpoint == caller && !caller.is_loopback()
        })
}

/// The URL at which this process reaches its own admin port.
pub(crate) fn own_url(address: SocketAddr) -> String {
    let mut address = address;
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
        });
    }
    format!("http://{address}")
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tower::ServiceExt;

    use super::*;

    fn parts(heartbeats: Heartbeats) -> AdminParts {
        let figures = recorder::Figures::new([]);
        AdminParts {
            routes: Router::new().route("/echo", axum::routing::post(async |body: String| body)),
            scrape: Scrape::new(figures, |_| {}),
            access: Access { token: None, loopback: true },
            drain: None,
            scaler: None,
            console: Some(Arc::new(|| None)),
            heartbeats,
        }
    }

    async fn ask(router: &Router, request: Request) -> (StatusCode, String) {
        let Ok(answer) = router.clone().oneshot(request).await;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.expect("whole").to_bytes();
        (head.status, String::from_utf8_lossy(&body).into_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn health_is_the_health_of_every_thread() {
        let heartbeats = Heartbeats::default();
        let router = router(parts(heartbeats.clone()));
        let health = async |path| {
            let request = Request::get(path).body(axum::body::Body::empty());
            ask(&router, request.expect("a request")).await
        };
        let watch = tokio::spawn(heartbeats.clone().watch());
        let _beats = tokio::spawn(heartbeats.beat("gateway-0"));
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert_eq!(health("/healthz").await, (StatusCode::OK, "ok\n".to_owned()));
        // Its future is never polled.
        let hangs = heartbeats.beat("gateway-1");
        tokio::time::sleep(Duration::from_secs(60)).await;
        for path in ["/healthz", "/readyz"] {
            let (status, why) = health(path).await;
            assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert!(why.starts_with("thread gateway-1 has been silent for "), "{path}: {why}");
        }
        drop(hangs);
        assert_eq!(health("/readyz").await.0, StatusCode::OK);
        watch.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_is_bounded_in_bytes_and_time() {
        let router = router(parts(Heartbeats::default()));
        let post =
            async |body| ask(&router, Request::post("/echo").body(body).expect("a request")).await;
        let most = "x".repeat(BODY_SIZE);
        assert_eq!(post(most.clone().into()).await, (StatusCode::OK, most.clone()));
        assert_eq!(post((most + "x").into()).await.0, StatusCode::PAYLOAD_TOO_LARGE);
        let endless = futures_util::stream::pending::<Result<String, std::io::Error>>();
        let endless = axum::body::Body::from_stream(endless);
        assert_eq!(post(endless).await.0, StatusCode::REQUEST_TIMEOUT);
    }

    #[tokio::test]
    async fn the_root_names_what_is_served_and_other_paths_name_the_root() {
        let router = router(parts(Heartbeats::default()));
        let of = async |path: &str| {
            ask(&router, Request::get(path).body(axum::body::Body::empty()).expect("a request"))
                .await
        };
        let (status, index) = of("/").await;
        assert!(status == StatusCode::OK && index.contains("/decisions?pool=NAME"), "{index}");
        let request = Request::get("/").header("accept", "text/html,*/*;q=0.8");
        let (status, page) =
            ask(&router, request.body(axum::body::Body::empty()).expect("valid")).await;
        assert!(status == StatusCode::OK && page.starts_with("<!doctype html>"), "{page}");
        let (status, why) = of("/decision").await;
        assert!(status == StatusCode::NOT_FOUND && why.contains("`/` names"), "{why}");
    }

    #[test]
    fn only_a_pods_own_address_stands_for_the_token_and_only_to_drain_it() {
        let caller = "10.0.0.1:40000";
        for (case, method, uri, origin, caller, want) in [
            ("itself", "POST", "/drain?endpoint=10.0.0.1:8000", None, caller, true),
            ("encoded", "POST", "/drain?endpoint=10.0.0.1%3A8000", None, caller, true),
            ("v6", "POST", "/drain?endpoint=[fd00::1]:8000", None, "[fd00::1]:1", true),
            ("mapped", "POST", "/drain?endpoint=10.0.0.1:8000", None, "[::ffff:10.0.0.1]:1", true),
            ("another", "POST", "/drain?endpoint=10.0.0.2:8000", None, caller, false),
            ("loopback", "POST", "/drain?endpoint=127.0.0.1:8000", None, "127.0.0.1:1", false),
            ("loopback v6", "POST", "/drain?endpoint=[::1]:8000", None, "[::1]:1", false),
            (
                "mapped loopback",
                "POST",
                "/drain?endpoint=127.0.0.1:8000",
                None,
                "[::ffff:127.0.0.1]:1",
                false,
            ),
            ("a page", "POST", "/drain?endpoint=10.0.0.1:8000", Some("null"), caller, false),
            ("a look", "GET", "/drain?endpoint=10.0.0.1:8000", None, caller, false),
            ("the gateway", "POST", "/drain", None, caller, false),
            ("a name", "POST", "/drain?endpoint=me:8000", None, caller, false),
            ("else", "POST", "/pools/p/override?endpoint=10.0.0.1:8000", None, caller, false),
        ] {
            let mut request = axum::http::Request::builder().method(method).uri(uri);
            if let Some(origin) = origin {
                request = request.header(header::ORIGIN, origin);
            }
            let request = request.body(axum::body::Body::empty()).expect("a request");
            let caller = caller.parse().expect("an address");
            assert_eq!(drains_itself(&request, caller), want, "{case}");
        }
    }

    #[test]
    fn a_change_comes_from_a_page_of_this_port_or_from_no_page() {
        for (case, sent, want) in [
            ("curl", &[("host", "10.0.0.1:9900")][..], false),
            (
                "our page, an older browser",
                &[("host", "f.example:9900"), ("origin", "http://F.example:9900")],
                false,
            ),
            (
                "our page",
                &[("host", "f"), ("origin", "http://f"), ("sec-fetch-site", "same-origin")],
                false,
            ),
            (
                "our page, behind a proxy that changes the host",
                &[("host", "pod"), ("origin", "https://f"), ("sec-fetch-site", "same-origin")],
                false,
            ),
            ("the address bar", &[("host", "f"), ("sec-fetch-site", "none")], false),
            ("another site", &[("host", "f"), ("sec-fetch-site", "cross-site")], true),
            (
                "another port",
                &[("host", "f:1"), ("origin", "http://f:2"), ("sec-fetch-site", "same-site")],
                true,
            ),
            ("another port, an older browser", &[("host", "f:1"), ("origin", "http://f:2")], true),
            ("a sandboxed frame", &[("host", "f"), ("origin", "null")], true),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in sent {
                headers.append(*name, value.parse().expect("text"));
            }
            assert_eq!(is_from_another_page(&headers), want, "{case}");
        }
    }

    #[test]
    fn only_this_machine_is_local() {
        for (authority, want) in [
            ("localhost", true),
            ("LOCALHOST:9900", true),
            ("127.0.0.1:9900", true),
            ("127.9.9.9", true),
            ("[::1]:9900", true),
            ("[::1]", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("localhost.evil.example:9900", false),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1:9900", false),
            ("[::2]:9900", false),
            ("localhost:9900@evil.example", false),
            ("[::1]evil", false),
            ("", false),
            ("?", false),
        ] {
            assert_eq!(is_local(authority), want, "{authority}");
        }
    }
}
