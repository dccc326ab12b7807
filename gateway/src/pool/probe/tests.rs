//! Probes over real sockets.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;

const MODELS: &str = r#"{"object":"list","data":[{"id":"m"},{"id":"ad","parent":"m"}]}"#;

/// A replica that answers until it is mute: then its open connections stay open and silent.
struct Replica {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    mute: CancellationToken,
    /// Closes the listener.
    close: CancellationToken,
    _tasks: JoinSet<()>,
}

impl Replica {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let connections = Arc::new(AtomicUsize::new(0));
        let (mute, close) = (CancellationToken::new(), CancellationToken::new());
        let (count, muted, closed) = (Arc::clone(&connections), mute.clone(), close.clone());
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Some(Ok((stream, _))) = closed.run_until_cancelled(listener.accept()).await {
                count.fetch_add(1, Relaxed);
                // Those that were open before are mute, not those that come after.
                let muted =
                    if muted.is_cancelled() { CancellationToken::new() } else { muted.clone() };
                open.spawn(answer(stream, muted));
            }
            drop(listener);
            open.join_all().await;
        });
        Self { address, connections, mute, close, _tasks: tasks }
    }
}

async fn answer(mut stream: tokio::net::TcpStream, muted: CancellationToken) {
    let mut request = [0; 1024];
    while let Ok(size @ 1..) = stream.read(&mut request).await {
        if muted.is_cancelled() {
            continue;
        }
        let body = match &request[..size] {
            models if models.starts_with(b"GET /v1/models ") => MODELS,
            metrics if metrics.starts_with(b"GET /metrics ") => CACHE,
            _ => "",
        };
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        stream.write_all(head.as_bytes()).await.expect("sent");
    }
}

const CACHE: &str = "vllm:cache_config_info{kv_cache_size_tokens=\"4096\"} 1.0\n";

fn pool() -> Arc<Pool> {
    let settings = serde_json::json!({"name": "p", "pick": "prefixAffinity"});
    Pool::new(serde_json::from_value(settings).expect("a pool"), Arc::default())
}

/// A prober with a kept connection, after one probe.
async fn after_one_probe(replica: &Replica) -> Prober {
    let pool = pool();
    pool.add_endpoint(replica.address);
    let (id, _) = pool.probe_wake(replica.address).expect("it is there");
    let mut prober = Prober::new(pool, replica.address, id);
    assert!(prober.send(Probe::Health, Urgency::Young, Instant::now()).await);
    assert!(prober.kept.is_some());
    prober
}

#[tokio::test]
async fn probes_and_lists_of_models_use_one_connection() {
    let replica = Replica::start().await;
    let mut prober = after_one_probe(&replica).await;
    for _ in 0..3 {
        assert!(prober.send(Probe::Health, Urgency::Answering, Instant::now()).await);
        prober.list(Urgency::Answering).await;
    }
    assert_eq!(replica.connections.load(Relaxed), 1);
    assert_eq!(prober.pool.models.all().len(), 2);
    assert_eq!(prober.listed.as_deref(), Some("m"));
}

#[tokio::test]
async fn a_replica_is_asked_once_how_much_its_cache_takes() {
    let replica = Replica::start().await;
    let unasked = pool();
    unasked.add_endpoint(replica.address);
    assert!(unasked.wants_cache_report(replica.address));
    let prober = after_one_probe(&replica).await;
    assert!(!prober.pool.wants_cache_report(replica.address));
    assert_eq!(replica.connections.load(Relaxed), 1, "on the kept connection");
    let settings = serde_json::json!({"name": "p", "pick": "leastLoad"});
    prober.pool.reconfigure(serde_json::from_value(settings).expect("a pool"));
    assert!(!prober.pool.wants_cache_report(replica.address), "that policy learns nothing");
}

#[tokio::test]
async fn where_a_kept_connection_is_mute_a_new_one_shows_why() {
    for (case, listens, answers) in
        [("its listener is closed", false, false), ("it forgot the connection", true, true)]
    {
        let replica = Replica::start().await;
        let mut prober = after_one_probe(&replica).await;
        replica.mute.cancel();
        if !listens {
            replica.close.cancel();
            // Until nothing listens there.
            while tokio::net::TcpStream::connect(replica.address).await.is_ok() {
                tokio::task::yield_now().await;
            }
        }
        let target = prober.target();
        let outcome = prober.health(&target, Instant::now()).await;
        assert_eq!(outcome == Probed::Answered, answers, "{case}: {outcome:?}");
        assert_eq!(matches!(outcome, Probed::Unreachable(_)), !answers, "{case}: {outcome:?}");
    }
}

#[tokio::test]
async fn an_endpoint_is_ready_with_its_models_and_not_when_it_is_gone() {
    let replica = Replica::start().await;
    let pool = pool();
    pool.add_endpoint(replica.address);
    let rounds = Arc::new(Rounds::new(Instant::now()));
    let _made = JoinSet::from_iter([Arc::clone(&rounds).make()]);
    let probing = tokio::spawn(probe(Arc::clone(&pool), replica.address, rounds));
    let health = || pool.signals().endpoints.values().flatten().next().expect("one").health;
    let until = async |condition: &dyn Fn() -> bool| {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    until(&|| health() == forebay_signals::Health::Ready && pool.models.all().len() == 2).await;
    drop(replica);
    until(&|| health() == forebay_signals::Health::Ejected).await;
    pool.remove_endpoint(pool.signals().endpoints.keys().next().expect("one").parse().expect("it"));
    probing.await.expect("it ends with its endpoint");
}
