//! Sources over real sockets on loopback.

use std::sync::atomic::{AtomicUsize, Ordering};

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::get;
use forebay_config::{GpuFigure, PromQuery};
use tokio::net::TcpListener;

use super::*;

/// What a server is to answer.
#[derive(Clone)]
struct Server {
    status: StatusCode,
    body: String,
    asked: Arc<AtomicUsize>,
}

impl Server {
    fn saying(body: impl Into<String>) -> Self {
        Self { status: StatusCode::OK, body: body.into(), asked: Arc::default() }
    }

    async fn start(self, path: &str) -> String {
        async fn answer(State(server): State<Server>) -> (StatusCode, String) {
            server.asked.fetch_add(1, Ordering::Relaxed);
            (server.status, server.body)
        }
        serve(Router::new().route(path, get(answer)).with_state(self)).await
    }
}

async fn serve(router: Router) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
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
        epoch_ms() / 1000
    )
}

#[tokio::test]
async fn a_query_carries_its_parameters_headers_and_credentials() {
    async fn answer(
        Query(query): Query<std::collections::BTreeMap<String, String>>,
        headers: HeaderMap,
    ) -> String {
        let of = |name: &str| headers.get(name).and_then(|it| it.to_str().ok()).unwrap_or("none");
        let ok = query["query"] == "sum(a{b=\"c d\"}) / 2" && query["namespace"] == "x&y";
        let ok = ok && of("authorization") == "Basic dTpzZWNyZXQ=" && of("x-scope-orgid") == "a";
        one(if ok { "1" } else { "0" })
    }
    let address = serve(Router::new().route("/base/api/v1/query", get(answer))).await;
    let file = std::env::temp_dir().join(format!("forebay-password-{}", std::process::id()));
    std::fs::write(&file, "secret\n").expect("written");
    let query = PromQuery {
        query: "sum(a{b=\"c d\"}) / 2".into(),
        parameters: vec![("namespace".into(), "x&y".into())],
        headers: vec![("X-Scope-OrgID".into(), "a".into())],
        basic_auth: Some(("u".into(), file.clone())),
        ..query(&address)
    };
    assert_eq!(prometheus::read(&client(), &query, epoch_ms()).await, Ok((Some(1.0), None)));
    std::fs::remove_file(&file).expect("removed");
    let gone = prometheus::read(&client(), &query, epoch_ms()).await.expect_err("no password");
    assert!(gone.contains("forebay-password"), "{gone}");
}

#[tokio::test]
async fn a_server_that_refuses_is_quoted_and_one_that_is_down_is_told() {
    let server = Server {
        status: StatusCode::BAD_REQUEST,
        body: r#"{"status":"error","errorType":"bad_data","error":"1:3: parse error"}"#.into(),
        asked: Arc::default(),
    };
    let address = server.start("/base/api/v1/query").await;
    let refused = prometheus::read(&client(), &query(&address), epoch_ms()).await;
    assert_eq!(refused, Err("it answered 400 Bad Request: 1:3: parse error".into()));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("one");
    let down =
        prometheus::read(&client(), &query(&free.to_string()), epoch_ms()).await.expect_err("down");
    assert!(down.contains("refused"), "{down}");
}

/// A server of HTTPS with a certificate of its own, which is returned in PEM.
async fn serve_tls(body: String) -> (String, String) {
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
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let _ = stream.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    (format!("https://localhost:{port}"), cert)
}

#[tokio::test]
async fn an_https_server_is_checked_by_the_certificates_given() {
    let (server, cert) = serve_tls(one("3")).await;
    let query = PromQuery { server_address: Some(server), ..query("") };
    let stranger = prometheus::read(&client(), &query, epoch_ms()).await.expect_err("not known");
    assert!(stranger.to_lowercase().contains("certificate"), "{stranger}");

    let file = std::env::temp_dir().join(format!("forebay-ca-{}.pem", std::process::id()));
    std::fs::write(&file, cert).expect("written");
    let client = Client::new(Some(&file)).expect("a certificate");
    assert_eq!(prometheus::read(&client, &query, epoch_ms()).await, Ok((Some(3.0), None)));
    std::fs::write(&file, "nothing").expect("written");
    let empty = Client::new(Some(&file)).err().expect("no certificate in it");
    assert!(empty.contains("no certificate in PEM"), "{empty}");
    std::fs::remove_file(&file).expect("removed");
}

#[tokio::test]
async fn an_answer_without_end_is_cut_off() {
    let server = Server::saying("x".repeat((4 << 20) + 1));
    let address = server.start("/base/api/v1/query").await;
    let long = prometheus::read(&client(), &query(&address), epoch_ms()).await;
    assert_eq!(long, Err("the answer is longer than 4 MiB".into()));
}

#[tokio::test]
async fn kv_cache_is_the_mean_over_replicas_and_no_less_where_one_is_down() {
    let at =
        |value: f64| Server::saying(format!("vllm:kv_cache_usage_perc{{engine=\"0\"}} {value}\n"));
    let (one, other) = (at(0.9).start("/metrics").await, at(0.5).start("/metrics").await);
    let both = [one.clone(), other];
    assert_eq!(vllm::kv_cache(&client(), &both, 0).await, Ok((Some(0.7), None)));
    assert_eq!(vllm::kv_cache(&client(), &[], 0).await, Ok((None, None)));

    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("one");
    let (value, partial) =
        vllm::kv_cache(&client(), &[one, free.to_string()], 0).await.expect("one");
    assert_eq!(value, Some(0.45));
    let partial = partial.expect("one is down");
    assert!(partial.starts_with("1 of 2 replicas can't be read (127.0.0.1:"), "{partial}");
    assert!(vllm::kv_cache(&client(), &[free.to_string()], 0).await.is_err(), "nobody answers");
}

#[tokio::test]
async fn gpus_are_read_of_every_exporter_or_not_at_all() {
    let exporter = Server::saying("DCGM_FI_DEV_GPU_UTIL{gpu=\"0\"} 80\n");
    let urls = [format!("http://{}", exporter.start("/metrics").await)];
    let read = dcgm::read(&client(), GpuFigure::Utilization, &urls, &[], 0).await;
    assert_eq!(read, Ok((Some(80.0), None)));
    let with_a_stranger = [urls[0].clone(), "http://127.0.0.1:1".to_owned()];
    let read = dcgm::read(&client(), GpuFigure::Utilization, &with_a_stranger, &[], 0).await;
    assert!(read.is_err(), "{read:?}");
}

/// The first reading that `wants`, within bounds.
async fn reading(sources: &Sources, wants: impl Fn(&Reading) -> bool) -> Reading {
    for _ in 0..1000 {
        if let Some(Some(reading)) = sources.readings().first()
            && wants(reading)
        {
            return reading.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not read in 10 s: {:?}", sources.readings());
}

/// Until the server was asked so many times, within bounds.
async fn asked_times(asked: &AtomicUsize, times: usize) {
    for _ in 0..1000 {
        if asked.load(Ordering::Relaxed) >= times {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not asked {times} times in 10 s");
}

#[tokio::test]
async fn a_source_goes_on_over_a_slow_server_and_keeps_what_it_last_read() {
    /// Answers at once, then never again.
    async fn answer(State(asked): State<Arc<AtomicUsize>>) -> String {
        if asked.fetch_add(1, Ordering::Relaxed) > 0 {
            std::future::pending::<()>().await;
        }
        one("7")
    }
    let asked = Arc::new(AtomicUsize::new(0));
    let router =
        Router::new().route("/base/api/v1/query", get(answer)).with_state(Arc::clone(&asked));
    let address = serve(router).await;
    let mut pool = Pool::named("a");
    pool.scaling.polling_interval = Duration::from_millis(20);
    let query = PromQuery { timeout: Some(Duration::from_millis(500)), ..query(&address) };
    let wanted = vec![Some(Wanted::Query(query))];
    let sources = Sources::start(&pool, wanted, &client(), Clock::start());
    let first = reading(&sources, |_| true).await;
    assert_eq!(first.value, Ok(Some(7.0)));
    // While the second is under way the first stands, with its time.
    asked_times(&asked, 2).await;
    let late = reading(&sources, |reading| reading.value.is_err()).await;
    assert_eq!(late.value, Err("no answer within 500ms".into()));
    assert!(late.at_ms > first.at_ms);
    asked_times(&asked, 3).await;
}

#[tokio::test]
async fn replicas_that_come_are_asked_at_once() {
    let server = Server::saying("vllm:kv_cache_usage_perc 0.25\n");
    let address = server.start("/metrics").await;
    let mut pool = Pool::named("a");
    pool.scaling.polling_interval = Duration::from_secs(3600);
    let sources = Sources::start(&pool, vec![Some(Wanted::KvCache)], &client(), Clock::start());
    reading(&sources, |reading| reading.value == Ok(None)).await;
    sources.ask(std::iter::once(address));
    reading(&sources, |reading| reading.value == Ok(Some(0.25))).await;
}

#[test]
fn a_source_that_is_down_is_asked_less_often() {
    let pauses: Vec<_> = (0..8).map(|n| pause(Duration::from_secs(5), n).as_secs()).collect();
    assert_eq!(pauses, [5, 5, 5, 10, 20, 30, 30, 30]);
    assert_eq!(pause(Duration::from_secs(60), 9).as_secs(), 60, "never more often than asked for");
}
