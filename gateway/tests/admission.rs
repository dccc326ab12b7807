//! Admission: the limits that a request meets before it takes memory, and its cost to its tenant.

use forebay_config::{ByteSize, Config, Tenant};
use support::{
    ANSWER, Answer, CHAT, PATIENCE, Upstream, config, eventually, exchange, start, status,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

mod support;

fn post(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\ncontent-type: \
         application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

fn header<'a>(message: &'a str, name: &str) -> Option<&'a str> {
    let head = message.split("\r\n\r\n").next()?;
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value)
}

/// Makes all clients one tenant with these limits.
fn limited(config: &mut Config, limit: impl FnOnce(&mut Tenant)) {
    let mut tenant = Tenant::named("anonymous");
    limit(&mut tenant);
    config.gateway.tenants = vec![tenant];
}

async fn open(address: std::net::SocketAddr, bytes: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("it listens");
    stream.write_all(bytes).await.expect("open");
    stream
}

#[tokio::test]
async fn the_memory_of_all_bodies_is_bounded_until_they_are_dropped() {
    let upstream = Upstream::start(Answer::Never).await;
    let mut config = config(Some(upstream.address));
    config.gateway.limits.body_size = ByteSize::kib(48);
    config.gateway.limits.bodies_size = Some(ByteSize::kib(64));
    let gateway = start(&config);
    let long = CHAT.replacen('{', &format!("{{{}", " ".repeat(40_000)), 1);
    let first = open(gateway.address(), post(&long).as_bytes()).await;
    eventually("the replica has the first", || async { upstream.requests().len() == 1 }).await;

    // It is not a valid request, but the gateway sees that only when it has room to read it.
    let other = post(&"x".repeat(40_000));
    let answer = exchange(gateway.address(), &other).await;
    assert_eq!(status(&answer), 503, "{answer}");
    assert_eq!(header(&answer, "retry-after"), Some("1"), "{answer}");
    assert!(answer.contains("ServiceUnavailableError"), "{answer}");
    assert_eq!(status(&exchange(gateway.address(), post("x")).await), 400, "a short one fits");

    drop(first);
    eventually("the first body is dropped with its client", || async {
        status(&exchange(gateway.address(), &other).await) == 400
    })
    .await;
}

#[tokio::test]
async fn a_request_counts_for_its_tenant_while_its_body_comes() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    limited(&mut config, |tenant| tenant.max_concurrent = Some(1));
    let gateway = start(&config);
    let request = post(CHAT);
    let slow = open(gateway.address(), &request.as_bytes()[..request.len() - 5]).await;
    eventually("the first request counts while it is read", || async {
        status(&exchange(gateway.address(), &request).await) == 429
    })
    .await;
    drop(slow);
    eventually("its place is free", || async {
        status(&exchange(gateway.address(), &request).await) == 200
    })
    .await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_token_pays_for_its_prompt() {
    let upstream = Upstream::start(Answer::Never).await;
    let mut config = config(Some(upstream.address));
    limited(&mut config, |tenant| tenant.tokens_per_minute = Some(100_000));
    let gateway = start(&config);
    let remaining = |answer: &str| -> u64 {
        header(answer, "x-ratelimit-remaining-tokens")
            .and_then(|left| left.parse().ok())
            .expect("a number")
    };
    let text = "word ".repeat(64_000);
    let body = format!(
        r#"{{"model":"m","max_tokens":10000,"messages":[{{"role":"user","content":"{text}"}}]}}"#
    );
    let client = open(gateway.address(), post(&body).as_bytes()).await;
    eventually("the replica has it", || async { upstream.requests().len() == 1 }).await;
    drop(client);
    eventually("it is gone there", || async { *upstream.seen.left.lock() == 1 }).await;
    // The tokens reserved for the answer come back, the prompt's 80000 do not.
    eventually("the answer's tokens are back", || async {
        remaining(&exchange(gateway.address(), post("x")).await) > 15_000
    })
    .await;
    let left = remaining(&exchange(gateway.address(), post("x")).await);
    assert!(left < 60_000, "{left}");
}

#[tokio::test]
async fn a_model_name_that_is_too_long_is_refused_and_counts_as_a_request() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    limited(&mut config, |tenant| tenant.requests_per_minute = Some(3));
    let gateway = start(&config);
    let of = |model: &str| post(&format!(r#"{{"model":"{model}","messages":[]}}"#));
    let answer = exchange(gateway.address(), of(&"m".repeat(257))).await;
    assert_eq!(status(&answer), 400, "{answer}");
    assert!(answer.contains("longer than 256 bytes") && !answer.contains("mmm"), "{answer}");
    let answer = exchange(gateway.address(), of(&"m".repeat(256))).await;
    assert_eq!(status(&answer), 404, "{answer}");
    assert_eq!(status(&exchange(gateway.address(), of("guess")).await), 404);
    assert_eq!(status(&exchange(gateway.address(), of("guess")).await), 429);
}

/// More bytes than all buffers between two sockets take.
const HUGE: usize = 24 << 20;
const JSON: &str = "content-type: application/json\r\n";

/// The answer to a client that reads nothing before it has sent everything.
async fn send_then_read(address: std::net::SocketAddr, head: String, body: Vec<u8>) -> String {
    let mut stream = open(address, head.as_bytes()).await;
    let sent = timeout(PATIENCE, stream.write_all(&body)).await.expect("it is taken");
    let mut answer = Vec::new();
    let read = timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("an end");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(sent.is_ok() && read.is_ok(), "{sent:?}, then {read:?} after {answer:?}");
    answer
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_only_when_it_has_sent_all_gets_its_refusal() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.gateway.limits.body_size = ByteSize::kib(1);
    let small = start(&config);
    config.gateway.limits.body_size = ByteSize::mib(64);
    config.gateway.limits.bodies_size = Some(ByteSize::kib(1));
    let full = start(&config);
    let head = |path: &str, framing: &str| {
        format!("POST {path} HTTP/1.1\r\nhost: g\r\n{JSON}{framing}\r\n\r\n")
    };
    let sized = format!("content-length: {HUGE}");
    let (chat, chunks) = ("/v1/chat/completions", "transfer-encoding: chunked");
    let plain = vec![b' '; HUGE];
    let chunked = [format!("{HUGE:x}\r\n").as_bytes(), &plain, b"\r\n0\r\n\r\n"].concat();
    let long = "x: y\r\n".repeat(HUGE / 6).into_bytes();
    let endless = format!("POST {chat} HTTP/1.1\r\nhost: g\r\n{JSON}");
    for (case, gateway, head, body, want) in [
        ("too long by its length", &small, head(chat, &sized), &plain, 413),
        ("too long as it comes", &small, head(chat, chunks), &chunked, 413),
        ("no memory left", &full, head(chat, &sized), &plain, 503),
        ("no such path", &small, head("/v1/none", &sized), &plain, 404),
        ("a head without an end", &small, endless, &long, 431),
    ] {
        let mut clients = JoinSet::new();
        for _ in 0..8 {
            clients.spawn(send_then_read(gateway.address(), head.clone(), body.clone()));
        }
        while let Some(answer) = clients.join_next().await {
            let answer = answer.expect("no panic");
            assert_eq!(status(&answer), want, "{case}: {answer}");
        }
    }
}
