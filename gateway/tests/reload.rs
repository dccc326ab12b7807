//! A new configuration for a running gateway, while requests are held, in flight and arriving.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use forebay_config::{ByteSize, Config, Pool};
use forebay_gateway::Gateway;
use support::{
    ANSWER, Answer, CHAT, Tasks, Upstream, chat, config, eventually, exchange, held, http2,
    signals, start, status,
};
use tokio::task::JoinSet;

mod support;

fn post(body: &str) -> String {
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: g\r\nconnection: close\r\n\
         content-type: application/json\r\ncontent-length: {}\
         \r\n\r\n{body}",
        body.len()
    )
}

async fn reload(gateway: &Gateway, config: &Config) -> Vec<String> {
    gateway.reload(config).await.unwrap_or_else(|error| panic!("{error}"))
}

/// A request in its own task.
fn send(gateway: &Gateway, body: &'static str) -> JoinSet<String> {
    let (address, mut tasks) = (gateway.address(), JoinSet::new());
    tasks.spawn(async move { exchange(address, post(body)).await });
    tasks
}

async fn answer(tasks: &mut JoinSet<String>) -> String {
    tasks.join_next().await.expect("one").expect("no panic")
}

#[tokio::test]
async fn no_request_fails_while_the_configuration_changes_again_and_again() {
    let (one, two) =
        (Upstream::start(Answer::Json(ANSWER)).await, Upstream::start(Answer::Json(ANSWER)).await);
    let mut config = config(Some(one.address));
    let gateway = Arc::new(start(&config));
    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let mut clients = JoinSet::new();
    for i in 0..8 {
        let (stop, sent, address) = (Arc::clone(&stop), Arc::clone(&sent), gateway.address());
        clients.spawn(async move {
            let tasks = Tasks::default();
            let mut http2 = http2(address, &tasks).await;
            while !stop.load(SeqCst) {
                if i % 2 == 0 {
                    let answer = exchange(address, post(CHAT)).await;
                    assert_eq!(status(&answer), 200, "{answer}");
                } else {
                    let response = http2.send_request(chat(CHAT)).await.expect("answered");
                    assert_eq!(response.status(), 200);
                }
                sent.fetch_add(1, SeqCst);
            }
        });
    }
    for round in 0..20_u32 {
        let before = sent.load(SeqCst);
        let address = if round % 2 == 0 { two.address } else { one.address };
        config.pools[0].endpoints = vec![address.to_string()];
        config.pools[0].max_in_flight = 1 + round % 5;
        config.gateway.limits.body_size = ByteSize::kib(1 + u64::from(round));
        // Another pool comes and goes beside it.
        config.pools.truncate(1);
        if round % 3 == 0 {
            let mut other = Pool::named("other");
            other.models = vec!["other".to_owned()];
            config.pools.push(other);
        }
        reload(&gateway, &config).await;
        let more = || async { sent.load(SeqCst) > before + 20 };
        eventually("requests go on", more).await;
    }
    stop.store(true, SeqCst);
    while let Some(client) = clients.join_next().await {
        client.expect("no request failed");
    }
    assert!(!one.requests().is_empty() && !two.requests().is_empty());
}

#[tokio::test]
async fn a_held_request_stays_held_and_is_released_to_a_new_endpoint() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(None);
    let gateway = start(&config);
    let mut request = send(&gateway, CHAT);
    held(&gateway, 1).await;
    config.pools[0].hold.max_requests = 5;
    assert!(reload(&gateway, &config).await.is_empty());
    held(&gateway, 1).await;
    config.pools[0].endpoints = vec![upstream.address.to_string()];
    reload(&gateway, &config).await;
    let answer = answer(&mut request).await;
    assert_eq!(status(&answer), 200, "{answer}");
}

#[tokio::test]
async fn more_room_releases_held_requests_at_once() {
    let upstream = Upstream::start(Answer::Never).await;
    let mut config = config(Some(upstream.address));
    config.pools[0].max_in_flight = 1;
    let gateway = start(&config);
    let (_first, _second) = (send(&gateway, CHAT), send(&gateway, CHAT));
    held(&gateway, 1).await;
    config.pools[0].max_in_flight = 2;
    reload(&gateway, &config).await;
    held(&gateway, 0).await;
    eventually("both requests reach the replica", || async { upstream.requests().len() == 2 })
        .await;
}

#[tokio::test]
async fn a_removed_pool_refuses_held_requests_and_finishes_those_in_flight() {
    let upstream = Upstream::start(Answer::Slow(Duration::from_secs(2), ANSWER)).await;
    let mut config = config(Some(upstream.address));
    config.pools[0].max_in_flight = 1;
    let gateway = start(&config);
    let mut in_flight = send(&gateway, CHAT);
    // The signals may lag, and this request could still count as the held one.
    eventually("one is in flight", || async {
        let signals = signals(&gateway, "p").await;
        signals["inFlight"] == 1 && signals["queueDepth"] == 0
    })
    .await;
    let mut waiting = send(&gateway, CHAT);
    held(&gateway, 1).await;
    let mut other = Pool::named("other");
    other.models = vec!["n".to_owned()];
    other.endpoints = config.pools[0].endpoints.clone();
    config.pools = vec![other];
    reload(&gateway, &config).await;
    let refused = answer(&mut waiting).await;
    assert_eq!(status(&refused), 503, "{refused}");
    assert!(
        refused.contains("The model is no longer served here.") && refused.contains("retry-after")
    );
    let finished = answer(&mut in_flight).await;
    assert_eq!(status(&finished), 200, "{finished}");
    let unknown = exchange(gateway.address(), post(CHAT)).await;
    assert_eq!(status(&unknown), 404, "{unknown}");
    let served = exchange(gateway.address(), post(&CHAT.replace("\"m\"", "\"n\""))).await;
    assert_eq!(status(&served), 200, "{served}");
    eventually("the signals follow", || async {
        signals(&gateway, "p").await.is_null() && !signals(&gateway, "other").await.is_null()
    })
    .await;
}

#[tokio::test]
async fn an_unusable_configuration_changes_nothing() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let config = config(Some(upstream.address));
    let gateway = start(&config);
    let mut wrong = Vec::new();
    let mut tls = config.clone();
    tls.gateway.tls = Some(
        serde_json::from_str(r#"{"certFile": "/nowhere/a", "keyFile": "/nowhere/b"}"#)
            .expect("TLS"),
    );
    wrong.push((tls, "gateway.tls.certFile: cannot read /nowhere/a"));
    let mut endpoint = config.clone();
    endpoint.pools[0].endpoints = vec!["no-such-host.invalid:1".to_owned()];
    wrong.push((endpoint, "pools: endpoint `no-such-host.invalid:1` of pool `p`"));
    let mut key = config.clone();
    key.pools[0].api_key_file = Some("/nowhere/key".into());
    wrong.push((key, "pools: apiKeyFile of pool `p`: /nowhere/key"));
    for (mut config, message) in wrong {
        config.gateway.paths = vec!["/health".to_owned()];
        let error = gateway.reload(&config).await.expect_err("wrong").to_string();
        assert!(error.starts_with(message), "{error}");
        let answer = exchange(gateway.address(), post(CHAT)).await;
        assert_eq!(status(&answer), 200, "{answer}");
    }
}

#[tokio::test]
async fn the_client_side_is_reloaded_and_fields_that_need_a_restart_are_named() {
    let upstream = Upstream::start(Answer::Json(ANSWER)).await;
    let mut config = config(Some(upstream.address));
    let gateway = start(&config);
    let tasks = Tasks::default();
    // A connection from before sees the new settings, too.
    let mut client = http2(gateway.address(), &tasks).await;
    assert_eq!(client.send_request(chat(CHAT)).await.expect("answered").status(), 200);
    config.gateway.limits.body_size = ByteSize::new(10);
    config.gateway.endpoint_header = true;
    assert!(reload(&gateway, &config).await.is_empty());
    assert_eq!(client.send_request(chat(CHAT)).await.expect("answered").status(), 413);
    config.gateway.paths = vec!["/health".to_owned()];
    config.gateway.listen.set_port(1);
    config.gateway.threads = Some(7);
    assert_eq!(reload(&gateway, &config).await, ["gateway.listen", "gateway.threads"]);
    assert_eq!(client.send_request(chat(CHAT)).await.expect("answered").status(), 404);
}
