//! The server over a socket, with a client of the same protocol in the place of KEDA's operator.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use forebay_config::{Config, Keda, KedaTls, Pool, TRIGGER_TYPES, Target, inspect_scaled_object};
use forebay_signals::{Figure, PoolReplicas, Replica, ReplicaState};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use super::KedaServer;
use super::proto::external_scaler_client::ExternalScalerClient;
use super::proto::{GetMetricsRequest, ScaledObjectRef};

/// More than any step takes here, even on a busy machine.
const LONG: Duration = Duration::from_secs(30);

fn config(tls: Option<KedaTls>) -> Arc<Config> {
    let mut config = Config::default();
    config.scaler.keda.listen = ([127, 0, 0, 1], 0).into();
    config.scaler.keda.tls = tls;
    let mut pool = Pool::named("llama");
    pool.target = Some(Target::Keda(Keda {
        scaled_object: "llama".into(),
        namespace: Some("models".into()),
        boost: false,
    }));
    config.pools = vec![pool, Pool::named("other")];
    Arc::new(config)
}

/// A pool with `count` ready replicas.
fn state(active: bool, desired: u32, count: u32) -> PoolReplicas {
    let replica = |n| {
        let replica = Replica {
            address: None,
            state: ReplicaState::Ready,
            reason: String::new(),
            last_end: None,
        };
        (format!("r{n}"), Some(replica))
    };
    PoolReplicas {
        active,
        desired,
        replicas: (0..count).map(replica).collect(),
        ..PoolReplicas::default()
    }
}

fn publish(server: &KedaServer, pool: PoolReplicas) {
    server.publish(&BTreeMap::from([("llama".to_owned(), pool)]));
}

fn object(metadata: &[(&str, &str)]) -> ScaledObjectRef {
    let pairs = metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    ScaledObjectRef {
        name: "llama".into(),
        namespace: "models".into(),
        scaler_metadata: pairs.collect::<HashMap<_, _>>(),
    }
}

async fn start() -> (KedaServer, ExternalScalerClient<Channel>) {
    let server = KedaServer::start(&config(None)).expect("free port").expect("a keda target");
    let channel = Endpoint::from_shared(format!("http://{}", server.address())).expect("a URL");
    let client = ExternalScalerClient::new(channel.connect().await.expect("it listens"));
    (server, client)
}

async fn value(
    client: &mut ExternalScalerClient<Channel>,
    metadata: &[(&str, &str)],
) -> Result<(i64, f64), tonic::Status> {
    let request = GetMetricsRequest {
        scaled_object_ref: Some(object(metadata)),
        metric_name: "desiredReplicas".into(),
    };
    let answer = client.get_metrics(request).await?.into_inner();
    let value = &answer.metric_values[0];
    Ok((value.metric_value, value.metric_value_float))
}

#[tokio::test]
async fn idle_connections_are_closed_and_do_not_keep_keda_out() {
    let (server, mut client) = start().await;
    publish(&server, state(true, 3, 1));
    let mut stream = client.stream_is_active(object(&[])).await.expect("known").into_inner();
    assert!(stream.message().await.expect("no error").expect("an answer").result);
    let mut idle = Vec::new();
    for n in 0..300 {
        let mut connection = TcpStream::connect(server.address()).await.expect("it listens");
        let begun: &[u8] = if n % 2 == 0 { b"" } else { b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" };
        // The server may have closed it already.
        let _ = connection.write_all(begun).await;
        idle.push(connection);
    }
    let (_, mut another) = (value(&mut client, &[]).await.expect("known"), {
        let channel = Endpoint::from_shared(format!("http://{}", server.address()));
        ExternalScalerClient::new(channel.expect("a URL").connect().await.expect("room"))
    });
    assert_eq!(value(&mut another, &[]).await.expect("known"), (3, 3.0));
    for mut connection in idle {
        let mut rest = Vec::new();
        timeout(LONG, connection.read_to_end(&mut rest)).await.expect("closed").ok();
    }
    publish(&server, state(false, 0, 0));
    let last = stream.message().await.expect("no error").expect("an answer");
    assert!(!last.result, "its stream continues");
}

#[tokio::test]
async fn the_desired_count_is_a_metric_with_threshold_one() {
    let (server, mut client) = start().await;
    publish(&server, state(true, 3, 1));
    let spec = client.get_metric_spec(object(&[])).await.expect("known").into_inner();
    let spec = &spec.metric_specs[0];
    assert_eq!(spec.metric_name, "desiredReplicas");
    assert_eq!((spec.target_size, spec.target_size_float), (1, 1.0));
    assert_eq!(value(&mut client, &[("pool", "llama")]).await.expect("known"), (3, 3.0));
    publish(&server, state(false, 0, 0));
    let zero = value(&mut client, &[]).await.expect("known");
    assert_eq!(zero, (0, 0.0), "both left at zero for zero");
}

#[tokio::test]
async fn signals_are_metrics_of_their_own() {
    let (server, mut client) = start().await;
    let figures = [(Figure::QueueDepth, 30.0), (Figure::Ttft, 0.42), (Figure::Concurrency, 31.0)];
    let mut pool = state(true, 3, 1);
    pool.figures = figures.into();
    pool.target_concurrency = Some(102.4);
    publish(&server, pool);

    let queue = [("metric", "queueDepth"), ("threshold", "5"), ("pool", "llama")];
    assert_eq!(value(&mut client, &queue).await.expect("known"), (30, 30.0));
    let ttft = [("metric", "ttft"), ("threshold", "0.5")];
    assert_eq!(value(&mut client, &ttft).await.expect("known"), (1, 0.42), "rounded up");
    let spec = client.get_metric_spec(object(&ttft)).await.expect("known").into_inner();
    let spec = &spec.metric_specs[0];
    assert_eq!(spec.metric_name, "ttft");
    assert_eq!((spec.target_size, spec.target_size_float), (1, 0.5));

    let without = [("metric", "gpuUtilization"), ("threshold", "80")];
    let refused = value(&mut client, &without).await.expect_err("nothing measures this");
    assert!(refused.message().contains("gpuUtilization"), "{refused}");

    // By default the threshold is the pool's target concurrency.
    let concurrency = object(&[("metric", "concurrency")]);
    let spec = client.get_metric_spec(concurrency).await.expect("known").into_inner();
    assert_eq!(spec.metric_specs[0].target_size, 103);
}

#[tokio::test]
async fn a_signal_that_was_not_measured_yet_leaves_the_hpas_count_as_it_is() {
    let mut config = Config::clone(&config(None));
    let trigger = serde_json::json!({"type": "kvCache", "metadata": {"threshold": "0.7"}});
    config.pools[0].scaling.triggers = vec![serde_json::from_value(trigger).expect("a trigger")];
    let server = KedaServer::start(&Arc::new(config)).expect("free port").expect("a keda target");
    let channel = Endpoint::from_shared(format!("http://{}", server.address())).expect("a URL");
    let mut client = ExternalScalerClient::new(channel.connect().await.expect("it listens"));
    // Three replicas, with requests held and none answered so far.
    publish(&server, state(true, 3, 3));
    for (metric, threshold, want) in [
        ("ttft", "0.5", 0.5),
        ("itl", "0.05", 0.05),
        ("kvCache", "0.8", 0.8),
        ("tokensPerSecond", "100", 300.0),
    ] {
        let metadata = [("metric", metric), ("threshold", threshold)];
        let (_, got) = value(&mut client, &metadata).await.expect("no error, and no zero");
        assert!((got - want).abs() < 1e-9, "{metric}: {got}");
    }
}

#[tokio::test]
async fn every_metric_is_active_while_the_pool_is_in_use_and_over_its_own_threshold_too() {
    let (server, mut client) = start().await;
    let mut idle = state(false, 0, 0);
    idle.figures = [(Figure::GpuUtilization, 7.0), (Figure::Ttft, 0.0)].into();
    let mut held = state(true, 1, 0);
    held.figures = [(Figure::Ttft, 0.0), (Figure::GpuUtilization, 0.0)].into();
    let ttft = [("metric", "ttft"), ("threshold", "0.5"), ("activationThreshold", "0.2")];
    let gpu = [("metric", "gpuUtilization"), ("threshold", "80")];
    let gpu_5 = [gpu[0], gpu[1], ("activationThreshold", "7")];
    for (case, pool, metadata, want) in [
        ("idle", &idle, &[][..], false),
        ("idle, by latency", &idle, &ttft[..], false),
        ("other programs use the GPU", &idle, &gpu[..], true),
        ("below the activation threshold", &idle, &gpu_5[..], false),
        ("held", &held, &[][..], true),
        ("held, by latency", &held, &ttft[..], true),
        ("held, by GPU", &held, &gpu_5[..], true),
    ] {
        publish(&server, pool.clone());
        let active = client.is_active(object(metadata)).await.expect("known").into_inner();
        assert_eq!(active.result, want, "{case}");
    }
}

#[tokio::test]
async fn activity_is_pushed_at_once_and_only_when_it_changes() {
    let (server, mut client) = start().await;
    publish(&server, state(false, 0, 0));
    let mut stream = client.stream_is_active(object(&[])).await.expect("open").into_inner();
    let mut next = async || {
        let next = timeout(LONG, stream.message()).await.expect("in time").expect("no error");
        next.map(|answer| answer.result)
    };
    assert_eq!(next().await, Some(false), "first the current state");
    // Many publications, one change.
    for desired in 1..50 {
        publish(&server, state(true, desired, 1));
    }
    assert_eq!(next().await, Some(true));
    publish(&server, state(false, 0, 1));
    assert_eq!(next().await, Some(false), "no repetition in between");
    server.shutdown().await;
    assert_eq!(next().await, None, "ended with OK");
}

#[tokio::test]
async fn activity_is_repeated_while_no_replica_exists() {
    let (server, mut client) = start().await;
    publish(&server, state(true, 1, 0));
    let mut stream = client.stream_is_active(object(&[])).await.expect("open").into_inner();
    for _ in 0..2 {
        let next = timeout(LONG, stream.message()).await.expect("in time").expect("no error");
        assert_eq!(next.map(|answer| answer.result), Some(true));
    }
}

#[tokio::test]
async fn specs_are_streamed_at_once_and_agree_with_the_call() {
    let (server, mut client) = start().await;
    let capacity = |n| PoolReplicas { target_concurrency: Some(n), ..state(true, 1, 1) };
    publish(&server, capacity(10.0));
    let metadata = || object(&[("metric", "concurrency")]);
    let mut stream = client.stream_metric_spec(metadata()).await.expect("open").into_inner();
    for want in [10.0, 12.5] {
        publish(&server, capacity(want));
        let streamed = timeout(LONG, stream.message()).await.expect("in time");
        let streamed = streamed.expect("no error").expect("open");
        let called = client.get_metric_spec(metadata()).await.expect("known").into_inner();
        assert_eq!(streamed, called);
        assert_eq!(streamed.metric_specs[0].target_size_float, want);
    }
}

#[tokio::test]
async fn wrong_metadata_is_refused_with_its_field() {
    let (server, mut client) = start().await;
    publish(&server, state(true, 1, 1));
    for (case, metadata, want) in [
        (
            "no such pool",
            &[("pool", "lama")][..],
            "metadata.pool: there is no pool `lama`; the pools are: llama",
        ),
        (
            "another target",
            &[("pool", "other")][..],
            "metadata.pool: pool `other` is not scaled by KEDA",
        ),
        (
            "no such metric",
            &[("metric", "kv")][..],
            "metadata.metric: `kv` is not one of Forebay's signals; write one of queueDepth, concurrency",
        ),
        (
            "no threshold",
            &[("metric", "ttft")][..],
            "metadata.threshold: none given; `ttft` needs one",
        ),
        (
            "not a number",
            &[("metric", "ttft"), ("threshold", "fast")][..],
            "metadata.threshold: `fast` is not a number of more than 0",
        ),
        ("zero", &[("metric", "ttft"), ("threshold", "0")][..], "metadata.threshold: `0`"),
        (
            "negative",
            &[("metric", "ttft"), ("threshold", "1"), ("activationThreshold", "-1")][..],
            "metadata.activationThreshold: `-1` is not a number of 0 or more",
        ),
        (
            "a threshold without a metric",
            &[("threshold", "5")][..],
            "metadata.threshold: has no effect without `metric`",
        ),
    ] {
        let refused = client.get_metric_spec(object(metadata)).await.expect_err(case);
        assert_eq!(refused.code(), Code::InvalidArgument, "{case}");
        assert!(refused.message().contains(want), "{case}: {}", refused.message());
        let push = client.stream_is_active(object(metadata)).await.expect_err(case);
        assert_eq!(push.message(), refused.message(), "{case}");
    }
    let stranger = ScaledObjectRef { name: "qwen".into(), ..object(&[]) };
    let refused = client.is_active(stranger).await.expect_err("no pool has this target");
    assert!(refused.message().contains("add `pool: NAME`, with one of: llama"), "{refused}");
}

#[test]
fn a_check_of_a_scaled_object_advises_a_metric_only_if_it_is_one() {
    for kind in TRIGGER_TYPES {
        let object = format!("triggers: [{{type: {kind}, metadata: {{threshold: '1'}}}}]");
        let errors = inspect_scaled_object(&object, "f").errors.to_string();
        let advised = errors.contains(&format!("metric: {kind}"));
        let taken = Figure::ALL.iter().any(|figure| figure.name() == kind);
        assert_eq!(advised, taken, "{kind}: {errors}");
    }
}

#[tokio::test]
async fn the_last_decision_stands_without_another_and_the_first_is_waited_for() {
    let (server, mut client) = start().await;
    let channel = Endpoint::from_shared(format!("http://{}", server.address())).expect("a URL");
    let mut health = HealthClient::new(channel.connect().await.expect("it listens"));
    let check = HealthCheckRequest { service: "externalscaler.ExternalScaler".into() };
    let status = async |health: &mut HealthClient<Channel>| {
        health.check(check.clone()).await.expect("served").into_inner().status
    };
    // NOT_SERVING is 2, SERVING is 1.
    let until = Instant::now() + LONG;
    while status(&mut health).await != 2 && Instant::now() < until {
        tokio::task::yield_now().await;
    }
    let first = tokio::spawn({
        let mut client = client.clone();
        async move { client.is_active(object(&[])).await }
    });
    publish(&server, state(true, 2, 2));
    assert!(first.await.expect("no panic").expect("waited").into_inner().result);
    while status(&mut health).await != 1 {
        assert!(Instant::now() < until, "it serves");
        tokio::task::yield_now().await;
    }
    // After the leader is gone, nothing is published for the pool.
    server.publish(&BTreeMap::new());
    assert!(client.is_active(object(&[])).await.expect("the last decision").into_inner().result);
    assert_eq!(value(&mut client, &[]).await.expect("the last decision"), (2, 2.0));
}

#[tokio::test(start_paused = true)]
async fn without_any_decision_the_answer_is_an_error_rather_than_zero() {
    let (_known, receiver) = tokio::sync::watch::channel(super::service::KnownPools::default());
    let service = super::service::Service {
        config: tokio::sync::watch::channel(config(None)).1,
        known: receiver,
        stop: tokio_util::sync::CancellationToken::new(),
    };
    use super::proto::external_scaler_server::ExternalScaler as _;
    let began = Instant::now();
    let refused = service.is_active(Request::new(object(&[]))).await.expect_err("unknown");
    assert_eq!(refused.code(), Code::Unavailable, "KEDA changes nothing then");
    assert!(began.elapsed() < Duration::from_secs(3), "within the operator's limit");
}

/// A test authority, a certificate for the server and one for the operator, as files.
fn certificates(folder: &std::path::Path) -> KedaTls {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut ca = CertificateParams::new(vec![]).expect("plain");
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(ca, KeyPair::generate().expect("a key")).expect("signed");
    std::fs::create_dir_all(folder).expect("a folder");
    std::fs::write(folder.join("ca.crt"), ca.pem()).expect("written");
    for name in ["server", "client"] {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec!["forebay.test".to_owned()]).expect("a name");
        let certificate = params.signed_by(&key, &ca).expect("signed");
        std::fs::write(folder.join(format!("{name}.crt")), certificate.pem()).expect("written");
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).expect("written");
    }
    KedaTls {
        cert_file: folder.join("server.crt"),
        key_file: folder.join("server.key"),
        client_ca_file: Some(folder.join("ca.crt")),
    }
}

#[tokio::test]
async fn with_mutual_tls_only_a_certificate_of_the_authority_is_answered() {
    let folder = std::env::temp_dir().join(format!("forebay-keda-tls-{}", std::process::id()));
    let files = certificates(&folder);
    let read = |name: &str| std::fs::read(folder.join(name)).expect("written");
    let server = KedaServer::start(&config(Some(files))).expect("good files").expect("a target");
    publish(&server, state(true, 1, 1));
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(read("ca.crt")))
        .domain_name("forebay.test");
    let known = tls.clone().identity(Identity::from_pem(read("client.crt"), read("client.key")));
    for (case, tls, want) in [("no certificate", tls, false), ("the operator", known, true)] {
        let endpoint = Endpoint::from_shared(format!("https://{}", server.address()));
        let channel = endpoint.expect("a URL").tls_config(tls).expect("TLS").connect_lazy();
        let answer = ExternalScalerClient::new(channel).is_active(object(&[])).await;
        assert_eq!(answer.is_ok(), want, "{case}: {answer:?}");
    }
    let _ = std::fs::remove_dir_all(&folder);
}

#[tokio::test]
async fn a_certificate_that_does_not_exist_is_named_with_its_field() {
    let files = KedaTls {
        cert_file: "/nowhere/tls.crt".into(),
        key_file: "/nowhere/tls.key".into(),
        client_ca_file: None,
    };
    let Err(error) = KedaServer::start(&config(Some(files))) else { panic!("started") };
    let text = error.to_string();
    assert!(text.starts_with("scaler.keda.tls.certFile: can't read /nowhere/tls.crt"), "{text}");
}
