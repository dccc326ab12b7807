//! The operators' port: metrics, health, the feeds, decisions.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::{Query, Request, State};
use axum::http::{HeaderName, Method, StatusCode, header};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use forebay_bounds::{Heartbeats, Peer};
use forebay_gateway::Draining;
use forebay_scaler::{ByItself, Readiness};
use forebay_signals::Token;
use tokio::time::timeout;

mod port;
mod scrape;

pub(crate) use port::{Port, bind};
pub(crate) use scrape::{Scrape, install_metrics};

/// What a request's body may have, and how long it may take.
const BODY_SIZE: usize = 64 << 10;
const BODY_TIME: Duration = Duration::from_secs(10);

/// Who may ask what: DESIGN's "admin access" in one place.
#[derive(Clone)]
pub(crate) struct Access {
    /// `None`: whoever reaches the port, which is allowed on loopback alone.
    pub(crate) token: Option<Token>,
    pub(crate) loopback: bool,
}

/// What the port answers from.
pub(crate) struct Parts {
    /// The feeds, decisions and what changes something.
    pub(crate) routes: Router,
    pub(crate) scrape: Scrape,
    pub(crate) access: Access,
    /// To drain the gateway; `None` where none runs.
    pub(crate) drain: Option<Draining>,
    /// Where nothing but a scaler runs: a gateway's readiness does not depend on one.
    pub(crate) scaler: Option<Readiness>,
    pub(crate) heartbeats: Heartbeats,
}

/// Everything that the port serves.
pub(crate) fn router(parts: Parts) -> Router {
    let Parts { routes, scrape, access, drain, scaler, heartbeats } = parts;
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
    let routes = routes.layer(from_fn(read_body));
    let guarded = routes.layer(from_fn_with_state(access.clone(), authorize));
    Router::new()
        .route("/metrics", get(async move || scrape.answer().await))
        .route("/healthz", healthy)
        .route("/readyz", ready)
        .merge(guarded)
        .layer(from_fn_with_state(access, same_site))
}

fn health(lack: Option<String>) -> (StatusCode, String) {
    match lack {
        Some(lack) => (StatusCode::SERVICE_UNAVAILABLE, format!("{lack}\n")),
        None => (StatusCode::OK, "ok\n".to_owned()),
    }
}

/// Reads a request's body before anything is done: a client that sends it slowly, or without end,
/// holds up nothing.
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

async fn not_found() -> (StatusCode, &'static str) {
    (StatusCode::NOT_FOUND, "nothing is served here\n")
}

/// `POST /drain`: answers when nothing is held or in flight any more.
async fn drain_gateway(
    State(drain): State<Option<Draining>>,
    request: Request,
    next: Next,
) -> Response {
    let ours = request.uri().path() == "/drain" && request.uri().query().is_none();
    let Some(drain) = drain.filter(|_| ours) else { return next.run(request).await };
    if request.method() != Method::POST {
        let allow = [(header::ALLOW, "POST")];
        let usage = "POST it: it stops this gateway from taking work\n";
        return (StatusCode::METHOD_NOT_ALLOWED, allow, usage).into_response();
    }
    tracing::info!("draining: asked to on the admin port");
    drain.begin();
    drain.idle().await;
    "drained\n".into_response()
}

async fn authorize(State(access): State<Access>, mut request: Request, next: Next) -> Response {
    let allowed = match &access.token {
        Some(token) => token.is_in(request.headers()),
        None => access.loopback,
    };
    if allowed {
        return next.run(request).await;
    }
    let caller = request.extensions().get::<Peer>().map(|peer| peer.address);
    if caller.is_some_and(|caller| drains_itself(&request, caller)) {
        request.extensions_mut().insert(ByItself);
        return next.run(request).await;
    }
    let headers = [(header::WWW_AUTHENTICATE, "Bearer")];
    let why = "send the token of admin.tokenFile as `authorization: Bearer …`\n";
    (StatusCode::UNAUTHORIZED, headers, why).into_response()
}

/// On loopback, what a page of another site makes a browser on this machine ask is refused: by a
/// name of its own that it let point here, or across sites.
async fn same_site(State(access): State<Access>, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let texts = |name| headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    let mut hosts = texts(header::HOST).chain(request.uri().authority().map(|it| it.as_str()));
    let foreign_host = hosts.any(|host| !is_local(host));
    let foreign_origin = texts(header::ORIGIN)
        .any(|origin| origin.split_once("://").is_none_or(|(_, authority)| !is_local(authority)));
    // Of browsers that leave the origin out. A link from elsewhere may show a page of ours.
    let elsewhere = texts(HeaderName::from_static("sec-fetch-site")).any(|it| it == "cross-site");
    let changes = !request.method().is_safe();
    if access.loopback && (foreign_host || foreign_origin || elsewhere && changes) {
        let why = "this port answers to localhost and to pages from there alone\n";
        return (StatusCode::FORBIDDEN, why).into_response();
    }
    next.run(request).await
}

/// Whether an authority, `HOST[:PORT]`, can only be this machine.
fn is_local(authority: &str) -> bool {
    let port = |rest: &str| rest.strip_prefix(':').is_none_or(|port| port.parse::<u16>().is_ok());
    let (host, rest) = match authority.strip_prefix('[').and_then(|it| it.split_once(']')) {
        Some((host, rest)) => (host, rest),
        None => authority.split_at(authority.find(':').unwrap_or(authority.len())),
    };
    let loopback = host.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical().is_loopback());
    (rest.is_empty() || rest.starts_with(':') && port(rest))
        && (loopback || host.eq_ignore_ascii_case("localhost"))
}

/// Whether somebody asks to drain the endpoint at its own address. A pod may, without the token,
/// which no model's pod holds; whether it is one the scaler knows. On loopback everybody has the
/// same address, and a browser asks for the pages of others.
fn drains_itself(request: &Request, caller: SocketAddr) -> bool {
    let asked = Query::<HashMap<String, String>>::try_from_uri(request.uri()).ok();
    let endpoint = asked.and_then(|it| it.get("endpoint")?.parse::<SocketAddr>().ok());
    request.method() == Method::POST
        && request.uri().path() == "/drain"
        && !request.headers().contains_key(header::ORIGIN)
        && endpoint.is_some_and(|endpoint| {
            let (endpoint, caller) = (endpoint.ip().to_canonical(), caller.ip().to_canonical());
            endpoint == caller && !caller.is_loopback()
        })
}

/// How this process reaches its own admin port.
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

    fn parts(heartbeats: Heartbeats) -> Parts {
        let figures = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        Parts {
            routes: Router::new().route("/echo", axum::routing::post(async |body: String| body)),
            scrape: Scrape::new(figures.handle(), String::new),
            access: Access { token: None, loopback: true },
            drain: None,
            scaler: None,
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
        // Its runtime never comes to it.
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
