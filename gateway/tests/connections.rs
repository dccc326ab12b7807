//! Connections: HTTP/1.1 and HTTP/2 on one port, clients that leave, limits of time and number.

use std::time::Duration;

use forebay_config::Config;
use http::StatusCode;
use http_body_util::BodyExt;
use support::{
    ANSWER, Answer, CHAT, CHAT_STREAM, PATIENCE, Tasks, Upstream, chat, config, eventually,
    exchange, held, http2, signals, start, status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

mod support;

const SHORT: Duration = Duration::from_millis(300);

/// Reads until the other side closes.
async fn closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "not closed: {:?}", String::from_utf8_lossy(&answer));
    String::from_utf8_lossy(&answer).into_owned()
}

async fn with_limits(answer: Answer, set: impl FnOnce(&mut Config)) -> (Upstream, Config) {
    let upstream = Upstream::start(answer).await;
    let mut config = config(Some(upstream.address));
    set(&mut config);
    (upstream, config)
}

#[tokio::test]
async fn a_client_speaks_http2_by_prior_knowledge() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let gateway = start(&config(Some(upstream.address)));
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    // Several requests at the same time on one connection.
    let (first, second) =
        tokio::join!(client.send_request(chat(CHAT)), client.clone().send_request(chat(CHAT)));
    for response in [first, second] {
        let response = response.expect("answered");
        assert_eq!(response.status(), StatusCode::OK);
        let body = response.into_body().collect().await.expect("a body").to_bytes();
        let body: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
        assert_eq!(body["choices"][0]["message"]["content"], "hello");
    }
    let requests = upstream.requests();
    assert_eq!(requests.len(), 2);
    let text = String::from_utf8_lossy(&requests[0]).to_ascii_lowercase();
    assert!(text.starts_with("post /v1/chat/completions http/1.1\r\n"), "{text}");
}

#[tokio::test]
async fn both_versions_are_served_on_one_port_and_bytes_may_come_one_by_one() {
    let gateway = start(&config(None));
    let plain =
        exchange(gateway.address(), "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await;
    assert_eq!(status(&plain), 200, "{plain}");
    // The preface of HTTP/2 begins with `PRI`, and POST begins with `P` too.
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    for byte in b"PRI /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" {
        stream.write_all(&[*byte]).await.expect("open");
        tokio::task::yield_now().await;
    }
    let answer = closed(&mut stream).await;
    assert_eq!(status(&answer), 405, "{answer}");
}

#[tokio::test]
async fn a_held_http2_request_leaves_the_queue_when_its_stream_is_reset() {
    let gateway = start(&config(None));
    let tasks = Tasks::default();
    let client = http2(gateway.address(), &tasks).await;
    let mut requests = JoinSet::new();
    let mut send = |mut client: support::H2| {
        requests.spawn(async move {
            let _ = client.send_request(chat(CHAT)).await;
        })
    };
    let one = send(client.clone());
    let _other = send(client.clone());
    held(&gateway, 2).await;
    one.abort();
    held(&gateway, 1).await;
}

#[tokio::test]
async fn held_http2_requests_leave_the_queue_when_the_connection_closes() {
    let gateway = start(&config(None));
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let mut requests = JoinSet::new();
    requests.spawn(async move {
        let _ = client.send_request(chat(CHAT)).await;
    });
    held(&gateway, 1).await;
    // The socket closes without any frame of HTTP/2.
    tasks.close();
    held(&gateway, 0).await;
}

#[tokio::test]
async fn an_http2_client_that_leaves_ends_the_work_at_the_replica() {
    let upstream = Upstream::start(Answer::Endless).await;
    let gateway = start(&config(Some(upstream.address)));
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let mut response = client.send_request(chat(CHAT_STREAM)).await.expect("answered");
    response.body_mut().frame().await.expect("a frame").expect("right");
    drop(response);
    eventually("the replica sees it", || async { *upstream.seen.left.lock() == 1 }).await;
    let at_replicas = || async { signals(&gateway, "p").await["inFlight"] == 0 };
    eventually("nothing is in flight", at_replicas).await;
}

#[tokio::test]
async fn an_http2_client_that_takes_nothing_is_cut_off() {
    let (upstream, config) = with_limits(Answer::Endless, |config| {
        config.gateway.limits.write_timeout = SHORT;
    })
    .await;
    let gateway = start(&config);
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let _kept = client.send_request(chat(CHAT_STREAM)).await.expect("answered");
    // Its window fills, and it never opens it again.
    eventually("the replica is free", || async { *upstream.seen.left.lock() == 1 }).await;
    // The connection still serves other requests.
    let request = http::Request::get("http://a/health").body(Default::default()).expect("valid");
    assert_eq!(client.send_request(request).await.expect("answered").status(), StatusCode::OK);
}

#[tokio::test]
async fn a_connection_without_a_head_in_time_is_closed() {
    let (_upstream, config) = with_limits(Answer::Json(ANSWER), |config| {
        config.gateway.limits.header_timeout = SHORT;
    })
    .await;
    let gateway = start(&config);
    for begun in ["", "P", "PRI * HTTP/2.0\r\n", "GET /health HTTP/1.1\r\nhost: a\r\n"] {
        let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
        stream.write_all(begun.as_bytes()).await.expect("open");
        assert_eq!(closed(&mut stream).await, "", "after {begun:?}");
    }
    // Single bytes of a second head do not extend the time.
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    let head = "GET /health HTTP/1.1\r\nhost: a\r\n\r\nGET /health HTTP/1.1\r\nx: ";
    stream.write_all(head.as_bytes()).await.expect("open");
    let (mut reading, mut writing) = stream.into_split();
    let mut dripping = JoinSet::new();
    dripping.spawn(async move {
        while writing.write_all(b"x").await.is_ok() {
            sleep(SHORT / 5).await;
        }
    });
    let mut answer = String::new();
    let read = timeout(PATIENCE, reading.read_to_string(&mut answer)).await;
    assert!(read.is_ok(), "not closed");
    assert_eq!(status(&answer), 200);
}

#[tokio::test]
async fn an_idle_connection_is_closed_and_one_that_is_used_or_waits_is_not() {
    let (_upstream, mut config) = with_limits(Answer::Json(ANSWER), |config| {
        config.gateway.limits.idle_timeout = SHORT;
        config.gateway.limits.header_timeout = 20 * SHORT;
    })
    .await;
    let request = "GET /health HTTP/1.1\r\nhost: a\r\n\r\n";
    let gateway = start(&config);
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    for _ in 0..3 {
        stream.write_all(request.as_bytes()).await.expect("open");
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).await.expect("open");
        assert!(read > 0, "a connection that is used stays open");
        sleep(SHORT / 3).await;
    }
    assert_eq!(closed(&mut stream).await, "", "no answer without a request");

    let tasks = Tasks::default();
    let _client = http2(gateway.address(), &tasks).await;
    tasks.ended().await;

    // A connection with a held request is not idle.
    config.pools[0].endpoints.clear();
    let gateway = start(&config);
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    stream.write_all(post(CHAT).as_bytes()).await.expect("open");
    held(&gateway, 1).await;
    sleep(3 * SHORT).await;
    held(&gateway, 1).await;
}

fn post(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
}

#[tokio::test]
async fn an_answer_that_takes_too_long_in_all_is_cut_off() {
    let (upstream, config) = with_limits(Answer::Endless, |config| {
        config.gateway.limits.total_timeout = SHORT;
    })
    .await;
    let gateway = start(&config);
    let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
    stream.write_all(post(CHAT_STREAM).as_bytes()).await.expect("open");
    // The client reads all the time. An end with an error would be the pool's `requestTimeout`.
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
    assert!(read.is_ok(), "not cut off");
    assert!(answer.starts_with(b"HTTP/1.1 200 OK"));
    eventually("the replica is free", || async { *upstream.seen.left.lock() == 1 }).await;
}

#[tokio::test]
async fn connections_beyond_the_bound_are_closed_at_once() {
    let (_upstream, config) = with_limits(Answer::Json(ANSWER), |config| {
        config.gateway.limits.connections_per_client = 2;
    })
    .await;
    let gateway = start(&config);
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(gateway.address()).await.expect("it listens");
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: a\r\n\r\n").await.expect("open");
        let mut answer = [0; 4096];
        assert!(stream.read(&mut answer).await.expect("open") > 0);
        open.push(stream);
    }
    let mut third = TcpStream::connect(gateway.address()).await.expect("it listens");
    assert_eq!(closed(&mut third).await, "");
    open.pop();
    eventually("there is room again", || async {
        let request = "GET /health HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        status(&exchange(gateway.address(), request).await) == 200
    })
    .await;
}

#[tokio::test]
async fn heads_beyond_their_bounds_are_answered_431() {
    let (upstream, config) = with_limits(Answer::Json(ANSWER), |config| {
        config.gateway.limits.header_size = forebay_config::ByteSize::kib(2);
        config.gateway.limits.header_count = 20;
    })
    .await;
    let gateway = start(&config);
    let large = format!("x: {}\r\n", "x".repeat(3000));
    let many: String = (0..30).map(|i| format!("x-{i}: 1\r\n")).collect();
    for extra in [&large, &many] {
        let request =
            format!("GET /health HTTP/1.1\r\nhost: a\r\n{extra}connection: close\r\n\r\n");
        let answer = exchange(gateway.address(), request).await;
        assert_eq!(status(&answer), 431, "{answer}");
    }
    let tasks = Tasks::default();
    let mut client = http2(gateway.address(), &tasks).await;
    let mut request = chat(CHAT);
    for i in 0..30 {
        let name: http::HeaderName = format!("x-{i}").parse().expect("a name");
        request.headers_mut().insert(name, http::HeaderValue::from_static("1"));
    }
    let response = client.send_request(request).await.expect("answered");
    assert_eq!(response.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
    assert!(upstream.requests().is_empty());
}
