//! Foreign web pages: without keys, every page that a browser near the gateway opens could be a
//! client. Requests that show such a page are refused, and reach no replica.

use std::net::{IpAddr, UdpSocket};

use forebay_config::{Config, Cors, Keys};
use forebay_gateway::Gateway;
use http::StatusCode;
use support::{
    ANSWER, Answer, CHAT, Tasks, Upstream, chat, config, exchange, http2, start, status,
};

mod support;

const JSON: &str = "content-type: application/json\r\n";
const PATH: &str = "/v1/chat/completions";

/// The defaults, as `forebay dev` has them.
fn plain(upstream: &Upstream) -> Config {
    let mut config = config(Some(upstream.address));
    config.gateway.allowed_hosts.clear();
    config
}

fn post(host: &str, headers: &str) -> String {
    format!(
        "POST {PATH} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n{headers}content-length: \
         {}\r\n\r\n{CHAT}",
        CHAT.len()
    )
}

/// The status, and the message of a refusal.
async fn ask(gateway: &Gateway, request: &str) -> (u16, String) {
    let answer = exchange(gateway.address(), request).await;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    (status(&answer), json["error"]["message"].as_str().unwrap_or_default().to_owned())
}

/// An address of this machine that is not loopback's.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
    // This sends nothing. It only looks up the route.
    socket.connect(("192.0.2.1", 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

#[tokio::test]
async fn a_host_must_be_this_machines_or_listed() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = plain(&upstream);
    let gateway = start(&config);
    let own = own_address().map(|address| format!("{address}:8080"));
    let local =
        ["localhost", "LocalHost:8080", "app.localhost", "127.0.0.1", "127.8.8.8:1", "[::1]:9"];
    for host in local.into_iter().chain(own.as_deref()) {
        assert_eq!(ask(&gateway, &post(host, JSON)).await.0, 200, "{host}");
    }
    let foreign = [
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example:8080",
        "203.0.113.9",
        "[2001:db8::1]",
        "forebay.ns.svc",
        "224.0.0.1",
    ];
    upstream.seen.requests.lock().clear();
    for host in foreign {
        let (status, message) = ask(&gateway, &post(host, JSON)).await;
        assert_eq!(status, 403, "{host}");
        assert!(message.contains("`gateway.allowedHosts`"), "{message}");
        // Such a page gets no answer at all, not even this one.
        let get = format!("GET /v1/models HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
        assert_eq!(ask(&gateway, &get).await.0, 403, "{host}");
    }
    assert!(upstream.requests().is_empty());
    config.gateway.allowed_hosts =
        ["*.ns.svc", "203.0.113.0/24"].map(|host| host.parse().expect("a host")).to_vec();
    let gateway = start(&config);
    for (host, code) in [("forebay.ns.svc", 200), ("203.0.113.9:80", 200), ("evil.example", 403)] {
        assert_eq!(ask(&gateway, &post(host, JSON)).await.0, code, "{host}");
    }
    config.gateway.allowed_hosts = vec!["*".parse().expect("any")];
    assert_eq!(ask(&start(&config), &post("evil.example", JSON)).await.0, 200);
}

#[tokio::test]
async fn the_host_of_an_http2_request_is_its_authority() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&plain(&upstream));
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    for (host, code) in
        [("localhost:8080", StatusCode::OK), ("evil.example", StatusCode::FORBIDDEN)]
    {
        let mut request = chat(CHAT);
        *request.uri_mut() = format!("http://{host}{PATH}").parse().expect("valid");
        let response = client.send_request(request).await.expect("answered");
        assert_eq!(response.status(), code, "{host}");
    }
}

#[tokio::test]
async fn an_http_1_0_request_without_a_host_is_accepted_but_not_from_a_page() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&plain(&upstream));
    for (request, code) in [
        ("GET /health HTTP/1.0\r\n\r\n", 200),
        ("GET /health HTTP/1.0\r\nhost: evil.example\r\n\r\n", 403),
        ("GET /health HTTP/1.0\r\norigin: http://localhost\r\n\r\n", 403),
        ("GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
    ] {
        assert_eq!(ask(&gateway, request).await.0, code, "{request:?}");
    }
}

#[tokio::test]
async fn a_page_of_another_origin_needs_cors() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = plain(&upstream);
    let gateway = start(&config);
    let from = |origin: &str| post("localhost:8080", &format!("{JSON}origin: {origin}\r\n"));
    assert_eq!(ask(&gateway, &from("http://localhost:8080")).await.0, 200);
    upstream.seen.requests.lock().clear();
    let foreign = [
        "https://evil.example",
        "null",
        "http://localhost:3000",
        "https://localhost:8081",
        "file://",
    ];
    for origin in foreign {
        let (status, message) = ask(&gateway, &from(origin)).await;
        assert_eq!(status, 403, "{origin}");
        assert!(message.contains("`gateway.cors`") && message.contains(origin), "{message}");
    }
    let session = |origin: &str| {
        format!(
            "GET /v1/realtime?model=m HTTP/1.1\r\nhost: localhost:8080\r\nconnection: upgrade, close\r\n\
             upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: \
             AAAAAAAAAAAAAAAAAAAAAA==\r\norigin: {origin}\r\n\r\n"
        )
    };
    assert_eq!(ask(&gateway, &session("https://evil.example")).await.0, 403);
    assert!(upstream.requests().is_empty());
    let cors = |origin: &str| -> Cors {
        serde_json::from_value(serde_json::json!({"origins": [origin]})).expect("valid")
    };
    config.gateway.cors = Some(cors("https://ui.example"));
    let gateway = start(&config);
    for (origin, code) in [("https://ui.example", 200), ("https://evil.example", 403)] {
        assert_eq!(ask(&gateway, &from(origin)).await.0, code, "{origin}");
    }
    config.gateway.cors = Some(cors("*"));
    assert_eq!(ask(&start(&config), &from("null")).await.0, 200);
}

#[tokio::test]
async fn a_page_served_by_a_trusted_proxy_is_the_gateways_own() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = plain(&upstream);
    let request = post(
        "127.0.0.1:8080",
        &format!("{JSON}origin: https://chat.example\r\nx-forwarded-host: chat.example\r\n"),
    );
    assert_eq!(ask(&start(&config), &request).await.0, 403, "any client can send the header");
    config.gateway.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    // A page's own name may point to the proxy as well as to the gateway.
    let (status, message) = ask(&start(&config), &request).await;
    assert_eq!(status, 403);
    assert!(message.contains("`chat.example`") && message.contains("`gateway.allowedHosts`"));
    config.gateway.allowed_hosts = vec!["chat.example".parse().expect("a host")];
    let gateway = start(&config);
    assert_eq!(ask(&gateway, &request).await.0, 200);
    let chain = request.replace("host: chat.example\r", "host: chat.example, proxy:8080\r");
    assert_ne!(chain, request);
    assert_eq!(ask(&gateway, &chain).await.0, 200, "through two proxies");
    let evil = request.replace("chat.example", "evil.example");
    assert_eq!(ask(&gateway, &evil).await.0, 403);
}

#[tokio::test]
async fn a_json_body_must_be_declared_as_json() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&plain(&upstream));
    for (kind, code) in [
        ("content-type: application/json; charset=utf-8\r\n", 200),
        ("content-type: application/vnd.api+json\r\n", 200),
        ("content-type: text/plain\r\n", 400),
        ("content-type: application/x-www-form-urlencoded\r\n", 400),
        ("content-type: multipart/form-data; boundary=X\r\n", 400),
        ("", 400),
    ] {
        upstream.seen.requests.lock().clear();
        let (status, message) = ask(&gateway, &post("localhost", kind)).await;
        assert_eq!(status, code, "{kind}");
        assert_eq!(upstream.requests().is_empty(), code == 400, "{kind}");
        assert!(code == 200 || message.contains("content-type: application/json"), "{message}");
    }
}

#[tokio::test]
async fn a_request_with_a_key_is_judged_by_the_key() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = plain(&upstream);
    let file = std::env::temp_dir().join(format!("forebay-trust-{}.keys", std::process::id()));
    let hash = "2c70e12b7a0646f92279f427c7b38e7334d8e5389cff167a1dc30e73f826b683"; // of `key`
    std::fs::write(&file, format!("- {{tenant: t, sha256: {hash}}}\n")).expect("written");
    config.gateway.tenants = vec![forebay_config::Tenant::named("t")];
    let key = "authorization: Bearer key\r\n";
    for (required, headers, code) in [
        (true, key, 200),
        (true, "", 401),
        (false, key, 200),
        (false, "", 403),
        (false, "authorization: Bearer wrong\r\n", 401),
    ] {
        config.gateway.keys = Some(Keys { file: file.clone(), required });
        let gateway = start(&config);
        for foreign in ["", "origin: https://evil.example\r\n"] {
            let headers = format!("{JSON}{foreign}{headers}");
            let answer = ask(&gateway, &post("evil.example", &headers)).await.0;
            assert_eq!(answer, code, "{required}: {headers}");
        }
        let plain = post("localhost", &format!("content-type: text/plain\r\n{headers}"));
        assert_eq!(ask(&gateway, &plain).await.0, 400, "with keys as without: {headers}");
    }
    let _ = std::fs::remove_file(file);
}
