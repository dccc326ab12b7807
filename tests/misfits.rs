//! Replicas that are not set up for what their pool serves: they refuse the gateway's own key, or
//! do not know the model or the API. No client gets an error for that.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use support::reply::{Reply, ask};
use support::upstream::{Received, Step, Upstream, plain};
use support::{Forebay, eventually, post};

const CHAT: &str = "/v1/chat/completions";
const GOOD: &str =
    r#"{"choices":[{"index":0,"message":{"content":"good"},"finish_reason":"stop"}]}"#;
const UNAUTHORIZED: &str = r#"{"error":"Unauthorized"}"#;
const NO_MODEL: &str = r#"{"error":{"message":"The model `sim` does not exist. Valid aliases: tiny.","type":"NotFoundError","param":"model","code":404}}"#;
const NO_PATH: &str = r#"{"detail":"Not Found"}"#;
const NO_METHOD: &str = r#"{"detail":"Method Not Allowed"}"#;

/// The key that a replica gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    /// The client's own.
    Clients,
    /// The pool's, from its `apiKeyFile`.
    Pools,
}

/// A gateway in front of these upstreams, once all are ready.
fn gateway(name: &str, key: Key, models: &str, upstreams: &[&Upstream]) -> Forebay {
    let folder = std::env::temp_dir().join("forebay-tests");
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = |kind: &str| folder.join(format!("misfits-{}-{name}.{kind}", std::process::id()));
    std::fs::write(path("key"), "sk-ours\n").expect("written");
    let endpoints: Vec<_> =
        upstreams.iter().map(|upstream| format!("'{}'", upstream.address)).collect();
    let own_key = match key {
        Key::Clients => String::new(),
        Key::Pools => format!("  apiKeyFile: {}\n", path("key").display()),
    };
    let config = format!(
        "gateway: {{listen: '127.0.0.1:0', threads: 1}}\nadmin: {{listen: '127.0.0.1:0'}}\npools:\n- name: p\n  \
         models: [{models}]\n  endpoints: [{}]\n{own_key}",
        endpoints.join(", ")
    );
    std::fs::write(path("yaml"), config).expect("written");
    let file = path("yaml").display().to_string();
    let forebay = Forebay::start(&["gateway", "--config", &file], "info,forebay_gateway=debug");
    ready(&forebay, upstreams.len());
    forebay
}

fn ready(forebay: &Forebay, count: usize) {
    eventually(&format!("{count} endpoints are ready"), || {
        let signals = forebay.signals();
        let endpoints = signals["endpoints"].as_object().expect("a map").values();
        endpoints.filter(|endpoint| endpoint["health"] == "ready").count() == count
    });
}

fn chat(forebay: &Forebay, stream: bool) -> Reply {
    let body = format!(r#"{{"model":"sim","stream":{stream},"max_tokens":4,"messages":[]}}"#);
    ask(forebay.address, &post(CHAT, &body))
}

/// The requests of clients that it received, without the gateway's probes.
fn chats(upstream: &Upstream) -> Vec<Received> {
    upstream.received().into_iter().filter(|request| request.path() == CHAT).collect()
}

fn refusing(status: u16, body: &'static str) -> Upstream {
    Upstream::start(move |_| vec![Step::Send(plain(status, body))])
}

#[test]
fn a_refusal_that_is_the_pools_fault_is_answered_by_another_replica() {
    for (case, key, cause, status, body) in [
        ("key-401", Key::Pools, "key_refused", 401, UNAUTHORIZED),
        ("key-403", Key::Pools, "key_refused", 403, ""),
        ("model", Key::Clients, "not_served", 404, NO_MODEL),
        ("method", Key::Clients, "not_served", 405, NO_METHOD),
        ("misdirected", Key::Clients, "not_served", 421, ""),
    ] {
        let (bad, good) = (refusing(status, body), refusing(200, GOOD));
        let mut forebay = gateway(case, key, "sim", &[&bad, &good]);
        for stream in [false, true, false, true] {
            let got = chat(&forebay, stream);
            assert_eq!((got.status, got.text().as_str()), (200, GOOD), "{case}");
        }
        let refused = chats(&bad);
        assert!(!refused.is_empty(), "{case}: the other replica was tried");
        let answered: Vec<_> = chats(&good).iter().map(Received::text).collect();
        assert!(answered.contains(&refused[0].text()), "{case}: both got the same body");
        let series = format!("forebay_failures_total{{pool=\"p\",cause=\"{cause}\"}}");
        eventually(case, || forebay.metric(&series) == Some(refused.len() as f64));
        let line = forebay.wait_for("failed a request");
        assert!(line.contains(&bad.address.to_string()), "{case}: {line}");
        assert!(line.contains(&status.to_string()) || line.contains("`sim`"), "{case}: {line}");
    }
}

#[test]
fn a_request_that_every_replica_refuses_gets_the_gateways_own_error() {
    for (case, key, status, body) in [
        ("all-401", Key::Pools, 401, UNAUTHORIZED),
        ("all-404", Key::Clients, 404, NO_MODEL),
        ("all-405", Key::Clients, 405, NO_METHOD),
    ] {
        let all = [refusing(status, body), refusing(status, body), refusing(status, body)];
        let forebay = gateway(case, key, "sim", &[&all[0], &all[1], &all[2]]);
        let got = chat(&forebay, false);
        assert_eq!(got.status, 502, "{case}: {}", got.text());
        let error: serde_json::Value = serde_json::from_str(&got.text()).expect("JSON");
        assert_eq!(error["error"]["type"], "BadGatewayError", "{case}: {error}");
        assert!(error["error"]["message"].as_str().expect("text").starts_with("The replica"));
        assert_eq!(got.header("www-authenticate"), None, "{case}");
        let tries: Vec<_> = all.iter().map(|upstream| chats(upstream).len()).collect();
        assert_eq!(tries, [1, 1, 1], "{case}: each is tried once");
        let series = "forebay_requests_total{pool=\"p\",outcome=\"failed\"}";
        eventually(case, || forebay.metric(series) == Some(1.0));
    }
}

#[test]
fn a_refusal_that_is_the_clients_fault_goes_to_the_client() {
    for (case, key, models, status, body) in [
        ("clients-key", Key::Clients, "sim", 401, UNAUTHORIZED),
        ("clients-path", Key::Pools, "sim", 404, NO_PATH),
        ("unprocessable", Key::Pools, "sim", 422, NO_MODEL),
    ] {
        let all = [refusing(status, body), refusing(status, body)];
        let forebay = gateway(case, key, models, &[&all[0], &all[1]]);
        let got = chat(&forebay, false);
        assert_eq!((got.status, got.text().as_str()), (status, body), "{case}");
        assert_eq!(chats(&all[0]).len() + chats(&all[1]).len(), 1, "{case}: tried once");
        let series = "forebay_requests_total{pool=\"p\",outcome=\"client_error\"}";
        eventually(case, || forebay.metric(series) == Some(1.0));
    }
    // A pool without known names gets every name; a wrong one is the client's fault.
    let any = Upstream::serving("{}", |_| vec![Step::Send(plain(404, NO_MODEL))]);
    let forebay = gateway("any-model", Key::Clients, "", &[&any]);
    let got = chat(&forebay, false);
    assert_eq!((got.status, got.text().as_str()), (404, NO_MODEL));
}

#[test]
fn a_replica_that_refuses_the_key_is_ejected_until_it_accepts_it() {
    let accepts = Arc::new(AtomicBool::new(false));
    let key_is_right = Arc::clone(&accepts);
    let bad = Upstream::start(move |_| match key_is_right.load(SeqCst) {
        true => vec![Step::Send(plain(200, GOOD))],
        false => vec![Step::Send(plain(401, UNAUTHORIZED))],
    });
    let good = refusing(200, GOOD);
    let mut forebay = gateway("out", Key::Pools, "sim", &[&bad, &good]);
    for _ in 0..8 {
        assert_eq!(chat(&forebay, false).text(), GOOD);
    }
    forebay.wait_for(" is out: ");
    eventually("one-token requests probe it", || {
        bad.received().iter().filter(|request| request.path() == "/v1/completions").count() > 1
    });
    ready(&forebay, 1);
    accepts.store(true, SeqCst);
    ready(&forebay, 2);
}

#[test]
fn a_handshake_that_is_refused_by_the_pools_fault_goes_to_another_replica() {
    let agreed = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-accept: x\r\n\r\n";
    let bad = refusing(401, UNAUTHORIZED);
    let good = Upstream::start(move |_| {
        // The answer, and a close that ends the session.
        vec![Step::Send([agreed.as_bytes(), b"\x88\x02\x03\xe8"].concat()), Step::Close]
    });
    let forebay = gateway("realtime", Key::Pools, "sim", &[&bad, &good]);
    let handshake = "GET /v1/realtime?model=sim HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\n\
                     upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";
    for _ in 0..2 {
        let got = ask(forebay.address, handshake.as_bytes());
        assert_eq!(got.status, 101, "{}", got.text());
    }
    let tried = bad.received().iter().any(|request| request.path().starts_with("/v1/realtime"));
    assert!(tried, "the other replica was tried");
}
