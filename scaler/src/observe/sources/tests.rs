//! Sources over real sockets on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use forebay_config::{GpuFigure, PromQuery};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use super::*;

/// A server with one fixed answer, which counts requests.
#[derive(Clone)]
struct Server {
    status: StatusCode,
    body: String,
    requests: Arc<AtomicUsize>,
}

impl Server {
    fn saying(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, body: body.into(), requests: Arc::default() }
    }

    async fn start(self, path: &str) -> RunningServer {
        async fn answer(State(server): State<Server>) -> (StatusCode, String) {
            server.requests.fetch_add(1, Ordering::Relaxed);
            (server.status, server.body)
        }
        serve(Router::new().route(path, get(answer)).with_state(self)).await
    }
}

/// A server that runs until it is dropped.
struct RunningServer {
    address: String,
    _task: AbortOnDropHandle<()>,
}

async fn serve(router: Router) -> RunningServer {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    let task = tokio::spawn(async move { axum::serve(listener, router).await.expect("it serves") });
    RunningServer { address, _task: AbortOnDropHandle::new(task) }
}

fn client() -> Client {
    Client::new(None).expect("no file to fail")
}

fn query(address: &str) -> PromQuery {
    let server_address = Some(format!("http://{address}/base"));
    PromQuery { server_address, query: "up".into(), ..PromQuery::default() }
}

fn one(value: &str) -> String {
    format!(
        r#"{{"status":"success","data":{{"resultType":"vector","result":[{{"metric":{{}},"value":[{},"{value}"]}}]}}}}"#,
        epoch_time().as_secs()
    )
}

#[tokio::test]
async fn a_query_carries_its_parameters_headers_and_credentials() {
    async fn answer(
        Query(query): Query<std::collections::BTreeMap<String, String>>,
        headers: HeaderMap,
    ) -> String {
        let of =
            |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("none");
        let ok = query["query"] == "sum(a{b=\"c d\"}) / 2" && query["namespace"] == "x&y";
        let ok = ok && of("authorization") == "Basic dTpzZWNyZXQ=" && of("x-scope-orgid") == "a";
        one(if ok { "1" } else { "0" })
    }
    let server = serve(Router::new().route("/base/api/v1/query", get(answer))).await;
    let file = std::env::temp_dir().join(format!("forebay-password-{}", std::process::id()));
    std::fs::write(&file, "secret\n").expect("written");
    let query = PromQuery {
        query: "sum(a{b=\"c d\"}) / 2".into(),
        parameters: vec![("namespace".into(), "x&y".into())],
        headers: vec![("X-Scope-OrgID".into(), "a".into())],
        basic_auth: Some(("u".into(), file.clone())),
        ..query(&server.address)
    };
    assert_eq!(
        prometheus::read(&client(), &query, epoch_time().get()).await,
        Ok((Some(1.0), None))
    );
    std::fs::remove_file(&file).expect("removed");
    let gone =
        prometheus::read(&client(), &query, epoch_time().get()).await.expect_err("no password");
    assert!(gone.contains("forebay-password"), "{gone}");
}

#[tokio::test]
async fn a_server_that_refuses_is_quoted_and_one_that_is_down_is_reported() {
    let server = Server {
        status: StatusCode::BAD_REQUEST,
        body: r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#.into(),
        requests: Arc::default(),
    };
    let server = server.start("/base/api/v1/query").await;
    let refused = prometheus::read(&client(), &query(&server.address), epoch_time().get()).await;
    assert_eq!(refused, Err("it answered 400 Bad Request: 1:3: parse error".into()));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("one");
    let down = prometheus::read(&client(), &query(&free.to_string()), epoch_time().get())
        .await
        .expect_err("down");
    assert!(down.contains("refused"), "{down}");
}

/// An HTTPS server with its own certificate; returns the server, its URL and the certificate in PEM.
async fn serve_tls(body: String) -> (AbortOnDropHandle<()>, String, String) {
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, PrivateKeyDer};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    let own = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a pair");
    let (cert, key) = (own.cert.pem(), own.signing_key.serialize_pem());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_slice(cert.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
        )
        .expect("they fit");
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("bound").port();
    let task = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (AbortOnDropHandle::new(task), format!("https://localhost:{port}"), cert)
}

#[tokio::test]
async fn an_https_server_is_checked_by_the_certificates_given() {
    let (_task, server, cert) = serve_tls(one("3")).await;
    let query = PromQuery { server_address: Some(server), ..query("") };
    let stranger =
        prometheus::read(&client(), &query, epoch_time().get()).await.expect_err("not known");
    assert!(stranger.to_lowercase().contains("certificate"), "{stranger}");

    let file = std::env::temp_dir().join(format!("forebay-ca-{}.pem", std::process::id()));
    std::fs::write(&file, cert).expect("written");
    let client = Client::new(Some(&file)).expect("a certificate");
    assert_eq!(prometheus::read(&client, &query, epoch_time().get()).await, Ok((Some(3.0), None)));
    std::fs::write(&file, "nothing").expect("written");
    let empty = Client::new(Some(&file)).err().expect("no certificate in it");
    assert!(empty.contains("no certificate in PEM"), "{empty}");
    std::fs::remove_file(&file).expect("removed");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let server = Server::saying("x".repeat((4 << 20) + 1));
    let server = server.start("/base/api/v1/query").await;
    let long = prometheus::read(&client(), &query(&server.address), epoch_time().get()).await;
    assert_eq!(long, Err("the answer is longer than 4 MiB".into()));
}

#[tokio::test]
async fn kv_cache_is_the_mean_over_replicas_and_a_lower_bound_if_one_is_down() {
    let at =
        |value: f64| Server::saying(format!("vllm:kv_cache_usage_perc{{engine=\"0\"}} {value}\n"));
    let (one, other) = (at(0.9).start("/metrics").await, at(0.5).start("/metrics").await);
    let both = [one.address.clone(), other.address.clone()];
    assert_eq!(vllm::kv_cache(&client(), &both, 0).await, Ok((Some(0.7), None)));
    assert_eq!(vllm::kv_cache(&client(), &[], 0).await, Ok((None, None)));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("one");
    let (value, partial) =
        vllm::kv_cache(&client(), &[one.address.clone(), free.to_string()], 0).await.expect("one");
    assert_eq!(value, Some(0.45));
    let partial = partial.expect("one is down");
    assert!(partial.starts_with("1 of 2 replicas can't be read (127.0.0.1:"), "{partial}");
    assert!(vllm::kv_cache(&client(), &[free.to_string()], 0).await.is_err(), "none answers");
}

#[tokio::test]
async fn gpus_are_read_from_every_exporter_or_not_at_all() {
    let exporter = Server::saying("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 80\n").start("/metrics").await;
    let urls = [format!("http://{}", exporter.address)];
    let read = dcgm::read(&client(), GpuFigure::Utilization, &urls, &[], 0).await;
    assert_eq!(read, Ok((Some(80.0), None)));
    let with_a_stranger = [urls[0].clone(), "http://127.0.0.1:1".to_owned()];
    let read = dcgm::read(&client(), GpuFigure::Utilization, &with_a_stranger, &[], 0).await;
    assert!(read.is_err(), "{read:?}");
}

/// Polls a state that other tasks change until it is there, for at most 10 s.
async fn until<T>(what: &str, mut state: impl FnMut() -> Option<T>) -> T {
    let poll = async {
        loop {
            match state() {
                Some(found) => return found,
                None => tokio::task::yield_now().await,
            }
        }
    };
    timeout(Duration::from_secs(10), poll).await.unwrap_or_else(|_| panic!("{what}: not in 10 s"))
}

/// The first reading that `wants`.
async fn reading(sources: &Sources, wants: impl Fn(&Reading) -> bool) -> Reading {
    until("a reading", || sources.readings().into_iter().next().flatten().filter(&wants)).await
}

/// Returns once the server got `times` requests.
async fn requested(requests: &AtomicUsize, times: usize) {
    until("requests", || (requests.load(Ordering::Relaxed) >= times).then_some(())).await;
}

#[tokio::test]
async fn a_source_survives_a_slow_server_and_keeps_its_last_reading() {
    /// Answers at once, then never again.
    async fn answer(State(requests): State<Arc<AtomicUsize>>) -> String {
        if requests.fetch_add(1, Ordering::Relaxed) > 0 {
            std::future::pending::<()>().await;
        }
        one("7")
    }
    let requests = Arc::new(AtomicUsize::new(0));
    let router =
        Router::new().route("/base/api/v1/query", get(answer)).with_state(Arc::clone(&requests));
    let server = serve(router).await;
    let mut pool = Pool::named("a");
    pool.scaling.polling_interval = Duration::from_millis(20);
    let query = PromQuery { timeout: Some(Duration::from_millis(500)), ..query(&server.address) };
    let wanted = vec![Some(Wanted::Query(query))];
    let sources = Sources::start(&pool, wanted, &client(), Clock::start());
    let first = reading(&sources, |_| true).await;
    assert_eq!(first.value, Ok(Some(7.0)));
    // While the second read is under way the first reading stands, with its time.
    requested(&requests, 2).await;
    let late = reading(&sources, |reading| reading.value.is_err()).await;
    assert_eq!(late.value, Err("no answer within 500ms".into()));
    assert!(late.at > first.at);
    requested(&requests, 3).await;
}

#[tokio::test]
async fn new_replicas_are_read_at_once() {
    let server = Server::saying("vllm:kv_cache_usage_perc 0.25\n").start("/metrics").await;
    let mut pool = Pool::named("a");
    pool.scaling.polling_interval = Duration::from_secs(3600);
    let sources = Sources::start(&pool, vec![Some(Wanted::KvCache)], &client(), Clock::start());
    reading(&sources, |reading| reading.value == Ok(None)).await;
    sources.set_endpoints(std::iter::once(server.address.clone()));
    reading(&sources, |reading| reading.value == Ok(Some(0.25))).await;
}

#[test]
fn a_source_that_is_down_is_read_less_often() {
    let pauses: Vec<_> = (0..8).map(|n| pause(Duration::from_secs(5), n).as_secs()).collect();
    assert_eq!(pauses, [5, 5, 5, 10, 20, 30, 30, 30]);
    assert_eq!(pause(Duration::from_secs(60), 9).as_secs(), 60, "never more often than configured");
}
