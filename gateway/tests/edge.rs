//! The edge: headers of every request and every answer, paths, methods, CORS.

use forebay_config::Cors;
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use support::{
    ANSWER, Answer, CHAT, CHAT_STREAM, PATIENCE, Tasks, Upstream, chat, config, exchange, http2,
    start, status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

mod support;

fn get(method: &str, path: &str, headers: &str) -> String {
    format!("{method} {path} HTTP/1.1\r\nhost: g\r\nconnection: close\r\n{headers}\r\n")
}

fn post(path: &str, headers: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: g.example\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {length}\r\n{headers}\r\n{body}"
    )
}

fn header<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let head = message.split("\r\n\r\n").next()?;
    let mut found = head.lines().filter_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    });
    let first = found.next();
    assert_eq!(found.next(), None, "{name} is there twice: {message}");
    first
}

fn body(message: &str) -> &str {
    message.split_once("\r\n\r\n").map_or("", |(_, body)| body)
}

#[tokio::test]
async fn a_request_is_passed_on_with_id_trace_and_forwarded_headers_but_none_about_its_connection()
{
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&config(Some(upstream.address)));
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let headers = format!(
        "x-request-id: r-1\r\ntraceparent: {parent}\r\ntracestate: a=b\r\nx-forwarded-for: \
         1.1.1.1\r\nx-forwarded-proto: https\r\nx-private: 1\r\nconnection: x-private, \
         x-forwarded-for, x-request-id-2\r\nkeep-alive: timeout=5\r\nte: trailers\r\n"
    );
    let answer = exchange(gateway.address(), post("/v1/chat/completions", &headers, CHAT)).await;
    assert_eq!(status(&answer), 200, "{answer}");
    assert_eq!(header(&answer, "x-request-id"), Some("r-1"));
    assert_eq!(header(&answer, "x-forebay-endpoint"), None, "no replica is named");
    assert!(header(&answer, "server-timing").is_some(), "{answer}");
    let sent = upstream.request();
    for (name, value) in [
        ("x-request-id", Some("r-1")),
        ("traceparent", Some(parent)),
        ("tracestate", Some("a=b")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-host", Some("g.example")),
        ("x-private", None),
        ("keep-alive", None),
        ("te", None),
        ("connection", None),
    ] {
        assert_eq!(header(&sent, name), value, "{name} in {sent}");
    }
}

#[tokio::test]
async fn client_and_replica_see_one_id_even_if_the_client_names_it_in_connection() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&config(Some(upstream.address)));
    for headers in
        ["x-request-id: r-1\r\nconnection: x-request-id\r\n", "connection: X-Request-Id\r\n", ""]
    {
        upstream.seen.requests.lock().clear();
        let request = post("/v1/chat/completions", headers, CHAT).replace("close", "close, x");
        let answer = exchange(gateway.address(), request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        let id = header(&answer, "x-request-id").expect("an id");
        let sent = upstream.request();
        assert_eq!(header(&sent, "x-request-id"), Some(id), "{headers:?}: {sent}");
        assert_eq!(id.len(), 32, "{headers:?}: the client's own id is dropped");
    }
}

#[tokio::test]
async fn an_invalid_host_is_refused_and_a_proxys_invalid_host_is_not_passed_on() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.gateway.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    let gateway = start(&config);
    for host in ["user@g", "g/x", "g,h", "g h", "g:99999", "[::1", ""] {
        let request = get("GET", "/health", "").replace("host: g", &format!("host: {host}"));
        assert_eq!(status(&exchange(gateway.address(), request).await), 400, "{host}");
    }
    for (given, want) in [
        ("chat.example, proxy:8080", "chat.example, proxy:8080"),
        ("chat.example/x", "g.example"),
        ("user@chat.example", "g.example"),
        ("chat.example, a b", "g.example"),
    ] {
        upstream.seen.requests.lock().clear();
        let headers = format!("x-forwarded-host: {given}\r\n");
        exchange(gateway.address(), post("/v1/chat/completions", &headers, CHAT)).await;
        assert_eq!(header(&upstream.request(), "x-forwarded-host"), Some(want), "{given}");
    }
}

#[tokio::test]
async fn an_empty_model_stands_for_the_only_one() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    let gateway = start(&config);
    let json = CHAT.replace(r#""model":"m""#, r#""model":"""#);
    let form = "--X\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\n\r\n--X--\r\n";
    let forms = post("/v1/audio/transcriptions", "", form)
        .replace("application/json", "multipart/form-data; boundary=X");
    for (request, sent) in
        [(post("/v1/chat/completions", "", &json), &*json), (forms.clone(), form)]
    {
        upstream.seen.requests.lock().clear();
        let answer = exchange(gateway.address(), &request).await;
        assert_eq!(status(&answer), 200, "{answer}");
        assert_eq!(body(&upstream.request()), sent, "as the client wrote it");
    }
    // With several models there is no default.
    let mut other = forebay_config::Pool::named("q");
    other.models = vec!["n".to_owned()];
    other.endpoints = vec![upstream.address.to_string()];
    config.pools.push(other);
    let answer = exchange(start(&config).address(), &forms).await;
    assert!(status(&answer) == 400 && answer.contains("`model` is missing"), "{answer}");
}

#[tokio::test]
async fn a_compressed_body_is_refused_and_the_answer_names_the_codings_that_are_read() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&config(Some(upstream.address)));
    let (chat_path, form) = ("/v1/chat/completions", "/v1/audio/transcriptions");
    for (path, encoding, code) in [
        (chat_path, "gzip", 415),
        (chat_path, "x-gzip", 415),
        (chat_path, "deflate", 415),
        (chat_path, "br", 415),
        (chat_path, "zstd", 415),
        (chat_path, "GZIP", 415),
        (chat_path, "gzip, br", 415),
        (chat_path, "identity, gzip", 415),
        (chat_path, "identity\r\ncontent-encoding: gzip", 415),
        (chat_path, "gzip\r\nconnection: content-encoding", 415),
        (chat_path, "aws-chunked", 415),
        (chat_path, "nonsense", 415),
        (form, "gzip", 415),
        (chat_path, "identity", 200),
        (chat_path, "", 200),
    ] {
        let headers = format!("content-encoding: {encoding}\r\n");
        let answer = exchange(gateway.address(), post(path, &headers, CHAT)).await;
        assert_eq!(status(&answer), code, "{encoding}: {answer}");
        if code == 415 {
            assert_eq!(header(&answer, "accept-encoding"), Some("identity"), "{answer}");
            let error: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
            let message = error["error"]["message"].as_str().expect("text");
            assert!(message.contains("`content-encoding: "), "{message}");
            assert_eq!(error["error"]["code"], 415);
        }
    }
    assert_eq!(upstream.requests().len(), 2, "a compressed body reaches no replica");
    let request = post("/v1/messages", "content-encoding: br\r\n", CHAT);
    let answer = exchange(gateway.address(), request).await;
    let error: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
    assert_eq!(error["type"], "error", "in the form of its API");

    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let mut request = chat(CHAT);
    request.headers_mut().insert("content-encoding", "gzip".parse().expect("a value"));
    let response = client.send_request(request).await.expect("answered");
    assert_eq!(response.status(), StatusCode::UNSUPPORTED_MEDIA_TYPE);
    assert_eq!(response.headers()["accept-encoding"], "identity");
    let response = client.send_request(chat(CHAT)).await.expect("the connection goes on");
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn an_id_that_cannot_be_logged_is_replaced_for_client_and_replica() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&config(Some(upstream.address)));
    let request = post("/v1/chat/completions", "x-request-id: a b\r\n", CHAT);
    let answer = exchange(gateway.address(), request).await;
    let id = header(&answer, "x-request-id").expect("an id").to_owned();
    assert_eq!(id.len(), 32);
    let sent = upstream.request();
    assert_eq!(header(&sent, "x-request-id"), Some(id.as_str()));
    assert!(header(&sent, "traceparent").is_some_and(|parent| parent.ends_with("-01")), "{sent}");
}

#[tokio::test]
async fn a_replicas_headers_about_its_connection_and_cors_are_not_passed_on() {
    let raw = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nkeep-alive: timeout=5\r\n\
               connection: x-private\r\nx-private: 1\r\nx-request-id: theirs\r\n\
               x-forebay-endpoint: 9.9.9.9:1\r\naccess-control-allow-origin: *\r\n\
               access-control-max-age: 600\r\nx-kept: 1\r\ncontent-length: 229\r\n\r\n";
    let raw = format!("{raw}{ANSWER}").replace("229", &ANSWER.len().to_string());
    let upstream = Upstream::start(Answer::Raw(raw.leak().as_bytes())).await;
    let mut config = config(Some(upstream.address));
    let gateway = start(&config);
    let request =
        post("/v1/chat/completions", "x-request-id: ours\r\norigin: http://g.example\r\n", CHAT);
    let answer = exchange(gateway.address(), &request).await;
    assert_eq!(status(&answer), 200, "{answer}");
    for (name, value) in [
        ("keep-alive", None),
        ("x-private", None),
        ("x-request-id", Some("ours")),
        ("x-forebay-endpoint", None),
        ("access-control-allow-origin", None),
        ("x-kept", Some("1")),
    ] {
        assert_eq!(header(&answer, name), value, "{name} in {answer}");
    }
    config.gateway.endpoint_header = true;
    let gateway = start(&config);
    let answer = exchange(gateway.address(), &request).await;
    let named = upstream.address.to_string();
    assert_eq!(header(&answer, "x-forebay-endpoint"), Some(named.as_str()));
    // The replica allows every origin, the gateway only another one.
    config.gateway.cors =
        Some(serde_json::from_str(r#"{"origins": ["https://a.example"]}"#).expect("valid"));
    let gateway = start(&config);
    let answer = exchange(gateway.address(), &request).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), None, "{answer}");
    assert_eq!(header(&answer, "access-control-max-age"), None, "{answer}");
}

#[tokio::test]
async fn a_trusted_proxy_is_believed() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.gateway.trusted_proxies = vec!["127.0.0.0/8".parse().expect("a network")];
    let gateway = start(&config);
    let headers = "x-forwarded-for: 203.0.113.9\r\nx-forwarded-proto: https\r\n\
                   x-forwarded-host: chat.example\r\n";
    exchange(gateway.address(), post("/v1/chat/completions", headers, CHAT)).await;
    let sent = upstream.request();
    assert_eq!(header(&sent, "x-forwarded-for"), Some("203.0.113.9, 127.0.0.1"));
    assert_eq!(header(&sent, "x-forwarded-proto"), Some("https"));
    assert_eq!(header(&sent, "x-forwarded-host"), Some("chat.example"));
}

#[tokio::test]
async fn only_listed_paths_are_exposed() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.gateway.paths = ["/health", "/v1/models", "/v1/completions"].map(Into::into).to_vec();
    let gateway = start(&config);
    for path in ["/v1/chat/completions", "/metrics", "/invocations", "/v1/load_lora_adapter"] {
        let answer = exchange(gateway.address(), post(path, "", CHAT)).await;
        assert_eq!(status(&answer), 404, "{answer}");
        let error: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
        assert_eq!(error["error"]["type"], "NotFoundError");
        assert_eq!(error["error"]["code"], 404);
        assert_eq!(error["error"]["message"], format!("The path `{path}` is not served here."));
        assert!(header(&answer, "x-request-id").is_some(), "refusals have ids too");
    }
    for path in ["/v1/messages", "/v1/messages/batches"] {
        let answer = exchange(gateway.address(), post(path, "", CHAT)).await;
        let error: serde_json::Value = serde_json::from_str(body(&answer)).expect("JSON");
        assert_eq!(error["type"], "error", "in the form of its API: {answer}");
        assert_eq!(error["error"]["type"], "not_found_error", "{answer}");
    }
    assert!(upstream.requests().is_empty());
    let answer = exchange(gateway.address(), get("GET", "/v1/models", "")).await;
    assert_eq!(status(&answer), 200);
}

#[tokio::test]
async fn a_wrong_method_is_answered_with_the_allowed_ones() {
    let gateway = start(&config(None));
    for (method, path, code, allow) in [
        ("GET", "/v1/chat/completions", 405, "POST, OPTIONS"),
        ("DELETE", "/v1/models", 405, "GET, HEAD, OPTIONS"),
        ("TRACE", "/health", 405, "GET, HEAD, OPTIONS"),
        ("OPTIONS", "/v1/completions", 204, "POST, OPTIONS"),
        ("OPTIONS", "*", 204, "GET, HEAD, POST, OPTIONS"),
    ] {
        let answer = exchange(gateway.address(), get(method, path, "")).await;
        assert_eq!((status(&answer), header(&answer, "allow")), (code, Some(allow)), "{answer}");
    }
}

#[tokio::test]
async fn head_is_answered_like_get_without_the_body() {
    let gateway = start(&config(None));
    let with = exchange(gateway.address(), get("GET", "/v1/models", "")).await;
    let without = exchange(gateway.address(), get("HEAD", "/v1/models", "")).await;
    assert_eq!(status(&without), 200);
    assert_eq!(header(&with, "content-length"), header(&without, "content-length"));
    assert!(!body(&with).is_empty() && body(&without).is_empty(), "{without}");
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let request = Request::head("http://g/v1/models").body(Default::default()).expect("valid");
    let response = client.send_request(request).await.expect("answered");
    assert_eq!(
        response.headers().get("content-length").and_then(|length| length.to_str().ok()),
        header(&with, "content-length")
    );
    assert!(response.into_body().collect().await.expect("right").to_bytes().is_empty());
}

#[tokio::test]
async fn pages_of_other_origins_have_the_rights_that_are_configured() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    let preflight = "origin: https://a.example\r\naccess-control-request-method: POST\r\n\
                 access-control-request-headers: authorization\r\n";
    let preflight = get("OPTIONS", "/v1/chat/completions", preflight);
    let gateway = start(&config);
    let answer = exchange(gateway.address(), &preflight).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), None, "nothing unless configured");

    config.gateway.cors = Some(Cors {
        origins: vec!["https://a.example".into()],
        methods: vec!["POST".into()],
        headers: vec!["authorization".into(), "content-type".into()],
        expose_headers: vec!["x-request-id".into()],
        credentials: true,
        max_age: std::time::Duration::from_secs(600),
    });
    let gateway = start(&config);
    let answer = exchange(gateway.address(), &preflight).await;
    assert_eq!(status(&answer), 204, "{answer}");
    for (name, value) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-methods", "POST"),
        ("access-control-allow-headers", "authorization, content-type"),
        ("access-control-allow-credentials", "true"),
        ("access-control-max-age", "600"),
    ] {
        assert_eq!(header(&answer, name), Some(value), "{answer}");
    }
    assert!(upstream.requests().is_empty(), "no replica gets a request");
    // A page can read refusals too: otherwise it could not see what is wrong.
    for (body, code) in [(CHAT, 200), ("{}", 400)] {
        let body = if code == 400 { r#"{"model":1}"# } else { body };
        let request = post("/v1/chat/completions", "origin: https://a.example\r\n", body);
        let answer = exchange(gateway.address(), request).await;
        assert_eq!(status(&answer), code, "{answer}");
        assert_eq!(header(&answer, "access-control-allow-origin"), Some("https://a.example"));
        assert_eq!(header(&answer, "access-control-expose-headers"), Some("x-request-id"));
        assert_eq!(header(&answer, "vary"), Some("origin"));
    }
    let request = post("/v1/chat/completions", "origin: https://b.example\r\n", CHAT);
    let answer = exchange(gateway.address(), request).await;
    assert_eq!(header(&answer, "access-control-allow-origin"), None, "{answer}");
}

#[tokio::test]
async fn a_client_that_expects_100_gets_it_unless_its_request_is_refused() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.gateway.limits.body_size = forebay_config::ByteSize::kib(1);
    let gateway = start(&config);
    let head = |path: &str, expect: &str, length: usize| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: g\r\ncontent-type: application/json\r\n\
             expect: {expect}\r\ncontent-length: {length}\r\n\r\n"
        )
    };
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    let request = head("/v1/chat/completions", "100-Continue", CHAT.len());
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut buffer = vec![0; 4096];
    let read = stream.read(&mut buffer).await.expect("open");
    assert_eq!(&buffer[..read], b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(CHAT.as_bytes()).await.expect("open");
    let read = stream.read(&mut buffer).await.expect("open");
    assert!(buffer[..read].starts_with(b"HTTP/1.1 200 OK\r\n"));
    assert_eq!(header(&upstream.request(), "expect"), None, "the gateway has the body already");

    for (path, expect, length, code) in [
        ("/v1/chat/completions", "100-continue", 4096, 413),
        ("/nowhere", "100-continue", 10, 404),
        ("/v1/chat/completions", "miracles", 10, 417),
    ] {
        let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
        stream.write_all(head(path, expect, length).as_bytes()).await.expect("open");
        let read = stream.read(&mut buffer).await.expect("open");
        let answer = String::from_utf8_lossy(&buffer[..read]);
        assert_eq!(status(&answer), code, "no 100 before a refusal: {answer}");
    }
}

#[tokio::test]
async fn a_request_without_a_host_is_refused() {
    let gateway = start(&config(None));
    for (request, code) in [
        ("GET /health HTTP/1.1\r\nconnection: close\r\n\r\n", 400),
        ("GET /health HTTP/1.1\r\nhost: a\r\nhost: b\r\nconnection: close\r\n\r\n", 400),
        ("GET /health HTTP/1.0\r\n\r\n", 200),
        ("GET http://a/health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", 200),
    ] {
        let answer = exchange(gateway.address(), request).await;
        assert_eq!(status(&answer), code, "{request:?}: {answer}");
    }
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let request = Request::get("http://g/health").body(Default::default()).expect("valid");
    let response = client.send_request(request).await.expect("answered");
    assert_eq!(response.status(), StatusCode::OK);
    let request = chat("{");
    let response = client.send_request(request).await.expect("answered");
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_streams_last_chunk_does_not_wait_for_a_usage_that_never_comes() {
    let event = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"a\"},\
                 \"finish_reason\":\"stop\"}]}\n\n";
    let raw = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n\
         {:x}\r\n{event}\r\n",
        event.len()
    );
    let upstream = Upstream::start(Answer::Raw(raw.leak().as_bytes())).await;
    let gateway = start(&config(Some(upstream.address)));
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    let request = post("/v1/chat/completions", "", CHAT_STREAM);
    stream.write_all(request.as_bytes()).await.expect("open");
    let mut heard = Vec::new();
    while !String::from_utf8_lossy(&heard).contains(event) {
        let read = timeout(PATIENCE, stream.read_buf(&mut heard)).await.expect("it goes on");
        assert_ne!(read.expect("open"), 0, "{}", String::from_utf8_lossy(&heard));
    }
}
