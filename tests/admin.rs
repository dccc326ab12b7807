//! Access to the admin port, and the drain of a gateway, with the real binary.

mod support;

use std::io::Read;
use std::net::{IpAddr, SocketAddr, UdpSocket};

use support::sims::{Folder, Sim};
use support::{Forebay, chat, connect, eventually, exchange, get, status};

fn ask(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let host = headers.iter().any(|(name, _)| *name == "host");
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !host {
        head += &format!("host: {address}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    exchange(address, format!("{head}\r\n").as_bytes())
}

#[test]
fn loopback_is_open_to_this_machine_and_closed_to_pages_of_other_sites() {
    let forebay = Forebay::dev(&[]);
    let (admin, port) = (forebay.admin, forebay.admin.port());
    for path in ["/metrics", "/signals", "/replicas", "/decisions", "/healthz", "/readyz"] {
        assert_eq!(status(&ask(admin, "GET", path, &[])), 200, "{path}");
        let local = format!("localhost:{port}");
        let same = [("host", local.as_str()), ("origin", &format!("http://{local}"))];
        assert_eq!(status(&ask(admin, "GET", path, &same)), 200, "{path}");

        // DNS rebinding: a page's name that now leads to 127.0.0.1.
        let rebound = format!("evil.example:{port}");
        assert_eq!(status(&ask(admin, "GET", path, &[("host", &rebound)])), 403, "{path}");
        for origin in ["https://evil.example", "null", "http://localhost.evil.example"] {
            assert_eq!(status(&ask(admin, "GET", path, &[("origin", origin)])), 403, "{path}");
        }
    }
    assert_eq!(status(&ask(admin, "POST", "/drain", &[("origin", "https://evil.example")])), 403);
    let linked = [("sec-fetch-site", "cross-site")];
    assert_eq!(status(&ask(admin, "POST", "/drain", &linked)), 403, "even without an origin");
    assert_eq!(status(&ask(admin, "GET", "/healthz", &linked)), 200, "a link on another site");
    assert_eq!(status(&ask(admin, "GET", "/drain", &[])), 405, "it changes state, so it is POST");
    assert_eq!(
        status(&ask(admin, "GET", "/readyz", &[])),
        200,
        "none of these requests drained it"
    );
    assert_eq!(status(&ask(admin, "GET", "/nope", &[])), 404);
}

/// A gateway's admin port on loopback with a token, as behind a proxy that speaks TLS with browsers: it passes the
/// browser's `Host` on, as nginx does with `proxy_set_header Host $host`.
#[test]
fn with_a_token_a_proxy_of_another_name_may_stand_before_a_loopback_port() {
    let folder = Folder::new();
    let token = folder.write("token", "secret\n");
    let file = folder.write(
        "config.yaml",
        &format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0, tokenFile: {token}}}\n\
             pools: [{{name: p, models: [m], endpoints: ['127.0.0.1:1']}}]\n"
        ),
    );
    let forebay = Forebay::start(&["run", "--config", &file], "info");
    let admin = forebay.admin;
    let host = ("host", "console.example");
    let browser = [host, ("origin", "https://console.example"), ("sec-fetch-site", "same-origin")];
    let page = ask(admin, "GET", "/", &[host, ("accept", "text/html")]);
    assert!(status(&page) == 200 && page.contains("<!doctype html>"), "{page}");
    assert_eq!(status(&ask(admin, "GET", "/overview", &browser)), 401, "no session yet");

    let log_in = |origin: &str, site: &str| {
        let head = "POST /login HTTP/1.0\r\nhost: console.example\r\nx-forwarded-proto: https";
        let head = format!(
            "{head}\r\norigin: {origin}\r\nsec-fetch-site: {site}\r\ncontent-length: 6\r\n\r\nsecret"
        );
        exchange(admin, head.as_bytes())
    };
    assert_eq!(status(&log_in("https://evil.example", "cross-site")), 403);
    let answer = log_in("https://console.example", "same-origin");
    let (_, cookie) = answer.split_once("set-cookie: ").expect("a cookie");
    let cookie = ("cookie", cookie.split(';').next().expect("a value"));
    let with = |method, path, headers: &[(&str, &str)]| {
        status(&ask(admin, method, path, &[headers, &[cookie]].concat()))
    };
    assert_eq!(with("GET", "/overview", &browser), 200);
    assert_eq!(with("POST", "/pools/p/override?paused=true", &browser), 409, "it has no target");
    let other = [host, ("origin", "https://evil.example"), ("sec-fetch-site", "cross-site")];
    assert_eq!(with("POST", "/pools/p/override?paused=true", &other), 403);

    // DNS rebinding reaches nothing: neither the token nor the cookie comes with the other site's name, and
    // what needs no token is for this machine alone.
    let rebound = [("host", "evil.example"), ("sec-fetch-site", "same-origin")];
    for (path, want) in [("/overview", 401), ("/signals", 401), ("/metrics", 403), ("/readyz", 403)]
    {
        assert_eq!(status(&ask(admin, "GET", path, &rebound)), want, "{path}");
    }
    assert_eq!(status(&ask(admin, "GET", "/metrics", &[])), 200);
}

#[test]
fn other_addresses_require_the_current_token_except_for_metrics_and_health() {
    let folder = Folder::new();
    let token = folder.write("token", "first\n");
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 0.0.0.0:0, tokenFile: {token}}}\n\
         pools: [{{name: p, models: [m], endpoints: ['127.0.0.1:1']}}]\n"
    ));
    let admin = SocketAddr::from(([127, 0, 0, 1], forebay.admin.port()));
    let with = |method: &str, path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        status(&ask(
            admin,
            method,
            path,
            &[("authorization", &bearer), ("host", "forebay.example")],
        ))
    };
    for path in ["/metrics", "/healthz", "/readyz"] {
        assert_eq!(status(&ask(admin, "GET", path, &[("host", "10.0.0.7:9900")])), 200, "{path}");
    }
    for (method, path) in [("GET", "/signals"), ("POST", "/drain"), ("GET", "/nope")] {
        for wrong in [&[][..], &[("authorization", "Bearer x")], &[("authorization", "first")]] {
            let answer = ask(admin, method, path, wrong);
            assert_eq!(status(&answer), 401, "{method} {path}: {answer}");
            assert!(answer.contains("admin.tokenFile"), "{answer}");
        }
    }
    assert_eq!(with("GET", "/signals", "first"), 200);
    for scheme in ["bearer", "BEARER"] {
        let sent = format!("{scheme} first");
        assert_eq!(status(&ask(admin, "GET", "/signals", &[("authorization", &sent)])), 200);
    }
    folder.write("token", "second\n");
    eventually("the new token is read", || with("GET", "/signals", "second") == 200);
    assert_eq!(with("GET", "/signals", "first"), 401);
    folder.write("token", "\n");
    assert_eq!((with("GET", "/signals", ""), with("GET", "/signals", "second")), (401, 200));
    assert_eq!(with("GET", "/readyz", ""), 200, "no request drained it");
}

#[test]
fn a_browser_logs_in_with_the_token_and_its_cookie_is_no_token() {
    let folder = Folder::new();
    let token = folder.write("token", "secret\n");
    let file = folder.write(
        "config.yaml",
        &format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 0.0.0.0:0, tokenFile: {token}}}\n\
             pools: [{{name: p, models: [m], endpoints: ['127.0.0.1:1']}}]\n"
        ),
    );
    let forebay = Forebay::start(&["run", "--config", &file], "info");
    let admin = SocketAddr::from(([127, 0, 0, 1], forebay.admin.port()));
    let page = ask(admin, "GET", "/", &[("accept", "text/html")]);
    assert!(status(&page) == 200 && page.contains("default-src 'none'"), "{page}");
    assert!(!page.contains("secret"), "the page holds no data");
    assert_eq!(status(&ask(admin, "GET", "/console/main.js", &[])), 200);
    assert_eq!(status(&ask(admin, "GET", "/console/none.js", &[])), 404);
    assert_eq!(status(&ask(admin, "GET", "/overview", &[])), 401);

    let login = |token: &str, origin: &str| {
        let head = format!(
            "POST /login HTTP/1.1\r\nhost: {admin}\r\norigin: {origin}\r\nconnection: close\r\n\
             content-length: {}\r\n\r\n{token}",
            token.len()
        );
        exchange(admin, head.as_bytes())
    };
    let own = format!("http://{admin}");
    assert_eq!(status(&login("wrong", &own)), 401);
    assert_eq!(status(&login("secret", "http://evil.example")), 403);
    let answer = login("secret", &own);
    assert_eq!(status(&answer), 200, "{answer}");
    let (_, cookie) = answer.split_once("set-cookie: ").expect("a cookie");
    let cookie = cookie.lines().next().expect("a line");
    assert!(cookie.ends_with("HttpOnly; SameSite=Strict"), "{cookie}");
    let value = cookie.split(';').next().expect("a value");
    assert_eq!(status(&ask(admin, "GET", "/overview", &[("cookie", value)])), 200);
    let path = "/pools/p/override?paused=true";
    let stranger = [("cookie", value), ("origin", "http://localhost:3000")];
    assert_eq!(status(&ask(admin, "POST", path, &stranger)), 403, "another page's request");
    // The pool has no target, so the command itself is refused.
    let ours = [("cookie", value), ("origin", &own)];
    assert_eq!(status(&ask(admin, "POST", path, &ours)), 409);
    let (_, bare) = value.split_once('=').expect("a name");
    let bearer = format!("Bearer {bare}");
    assert_eq!(status(&ask(admin, "GET", "/overview", &[("authorization", &bearer)])), 401);
    assert_eq!(status(&ask(admin, "POST", "/logout", &ours)), 200);
    assert_eq!(status(&ask(admin, "GET", "/overview", &[("cookie", value)])), 401);
}

/// An address of this machine that is not on loopback, if it has one.
fn own_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    // Nothing is sent: the system only chooses the address that it would use.
    socket.connect("192.0.2.1:9").ok()?;
    let ip = socket.local_addr().ok()?.ip();
    (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
}

#[test]
fn only_a_pods_address_stands_for_the_token() {
    let own = own_address();
    let ip = own.unwrap_or(IpAddr::from([127, 0, 0, 1]));
    let (local, there) = (Sim::start(&["sim"]), Sim::start(&["sim", "--host", "0.0.0.0"]));
    let there = SocketAddr::new(ip, there.address.port());
    let folder = Folder::new();
    let token = folder.write("token", "secret\n");
    let file = folder.write(
        "config.yaml",
        &format!(
            "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 0.0.0.0:0, tokenFile: {token}}}\n\
             pools: [{{name: p, models: [m], endpoints: ['{}', '{there}']}}]\n",
            local.address
        ),
    );
    let forebay = Forebay::start(&["run", "--config", &file], "info");
    let port = forebay.admin.port();
    let admin = |ip: IpAddr| SocketAddr::new(ip, port);
    let drain = |endpoint: SocketAddr, headers: &[(&str, &str)]| {
        let path = format!("/drain?endpoint={endpoint}");
        status(&ask(admin(endpoint.ip()), "POST", &path, headers))
    };
    let with_token = [("authorization", "Bearer secret")];
    let ready = || {
        let answer = ask(admin(local.address.ip()), "GET", "/signals", &with_token);
        answer.matches(r#""health":"ready""#).count()
    };
    eventually("both are ready", || ready() == 2);
    let page = [("origin", "https://evil.example")];
    assert_eq!((drain(local.address, &[]), drain(local.address, &page)), (401, 403), "loopback");
    if own.is_some() {
        assert_eq!((drain(there, &[]), drain(there, &page)), (403, 403), "a static endpoint");
    }
    assert_eq!(ready(), 2, "none of these requests drained an endpoint");
    assert_eq!(drain(local.address, &with_token), 200);
    assert_eq!(ready(), 1);
}

#[test]
fn a_drained_gateway_finishes_its_requests_and_refuses_new_ones() {
    let sim = Sim::start(&["sim", "--decode-step-ms", "30"]);
    let folder = Folder::new();
    let forebay = folder.gateway(&format!(
        "gateway: {{listen: 127.0.0.1:0}}\nadmin: {{listen: 127.0.0.1:0}}\n\
         pools: [{{name: p, models: [sim], endpoints: ['{}']}}]\n",
        sim.address
    ));
    eventually("the endpoint is ready", || {
        let signals = forebay.signals();
        signals["endpoints"]
            .as_object()
            .is_some_and(|all| all.values().any(|endpoint| endpoint["health"] == "ready"))
    });
    let idle = connect(forebay.address);
    let address = forebay.address;
    let long = std::thread::spawn(move || exchange(address, &chat(true, 60)));
    eventually("the request is in flight", || forebay.signals()["inFlight"] == 1);

    let admin = forebay.admin;
    let drained = std::thread::spawn(move || ask(admin, "POST", "/drain", &[]));
    eventually("the gateway is not ready", || status(&get(admin, "/readyz")) == 503);
    assert_eq!(status(&get(admin, "/healthz")), 200, "the gateway is healthy");
    let refused = exchange(address, &chat(false, 1));
    assert_eq!(status(&refused), 503, "{refused}");
    let refused = refused.to_ascii_lowercase();
    assert!(
        refused.contains("retry-after: 1") && refused.contains("connection: close"),
        "{refused}"
    );

    let answer = long.join().expect("answered");
    assert!(answer.contains("data: [DONE]"), "the stream is finished: {answer}");
    assert_eq!(status(&drained.join().expect("answered")), 200, "answered once nothing is left");
    let mut rest = Vec::new();
    let _ = (&idle).read_to_end(&mut rest);
    assert!(rest.is_empty(), "an idle connection is closed");
}
