//! The figures of docs/performance.md, measured from outside of Forebay.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_scaler::keda::proto::ScaledObjectRef;
use forebay_scaler::keda::proto::external_scaler_client::ExternalScalerClient;
use futures_util::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Endpoint;

use crate::Cluster;
use crate::forebay::{chat, get, is_whole, status};
use crate::plane::{PATIENCE, eventually};
use crate::suites::direct;
use crate::suites::keda::{Options, POOL, Setup};
use crate::suites::workload::replicas;

/// Rounds, each from zero to zero.
const ROUNDS: usize = 10;

/// Times at which a watcher saw a count or an activity.
type Seen<T> = mpsc::Receiver<(Instant, T)>;

/// The changes of the Deployment's replica count, seen by a watch.
fn counts(cluster: &Cluster, namespace: &str) -> Seen<i32> {
    let api: Api<Deployment> = Api::namespaced(cluster.client.clone(), namespace);
    let (sender, seen) = mpsc::channel(64);
    tokio::spawn(async move {
        let mut last = None;
        let mut changes = watcher(api, watcher::Config::default()).applied_objects().boxed();
        while let Some(change) = changes.next().await {
            let Ok(deployment) = change else { continue };
            let count = deployment.spec.and_then(|spec| spec.replicas).unwrap_or(0);
            if last.replace(count) != Some(count)
                && sender.send((Instant::now(), count)).await.is_err()
            {
                return;
            }
        }
    });
    seen
}

/// The activity that the scaler pushes, received as KEDA's operator receives it.
fn pushes(keda: SocketAddr, namespace: &str) -> Seen<bool> {
    let (sender, seen) = mpsc::channel(64);
    let namespace = namespace.to_owned();
    tokio::spawn(async move {
        let object =
            ScaledObjectRef { name: POOL.into(), namespace, scaler_metadata: Default::default() };
        let endpoint = Endpoint::from_shared(format!("http://{keda}")).expect("a URL");
        let channel = endpoint.connect().await.expect("it listens");
        let mut client = ExternalScalerClient::new(channel);
        let stream = client.stream_is_active(object).await;
        let mut stream = stream.expect("understood").into_inner();
        let mut last = None;
        while let Ok(Some(activity)) = stream.message().await {
            if last.replace(activity.result) != Some(activity.result)
                && sender.send((Instant::now(), activity.result)).await.is_err()
            {
                return;
            }
        }
    });
    seen
}

async fn until<T>(seen: &mut Seen<T>, wanted: impl Fn(&T) -> bool) -> Instant {
    loop {
        let next = timeout(PATIENCE, seen.recv()).await.expect("in time").expect("watched");
        if wanted(&next.1) {
            return next.0;
        }
    }
}

fn report(name: &str, mut took: Vec<Duration>) {
    took.sort_unstable();
    let at = |q: f64| {
        let rank = ((q * took.len() as f64).ceil() as usize).clamp(1, took.len());
        took[rank - 1].as_secs_f64() * 1000.0
    };
    println!("  {name}: p50 {:.1} ms, max {:.1} ms ({} rounds)", at(0.5), at(1.0), took.len());
}

/// Ten times, one held request at zero: its time to the push and to the scaling by KEDA, and the
/// time from a healthy pod to its release.
pub async fn through_keda(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "measure", &Options::default()).await;
    let mut counts = counts(&cluster, &setup.namespace);
    let mut pushes = pushes(setup.keda, &setup.namespace);
    let (mut pushed, mut scaled, mut released) = (vec![], vec![], vec![]);
    for _ in 0..ROUNDS {
        setup.asleep(&cluster).await;
        // Long enough for KEDA to see the pool asleep, and for the last round's changes to arrive.
        sleep(Duration::from_secs(4)).await;
        while counts.try_recv().is_ok() {}
        while pushes.try_recv().is_ok() {}
        let sent = Instant::now();
        let gateway = setup.clients;
        let client = tokio::spawn(async move {
            let answer = chat(gateway, POOL, false, 1).await;
            assert!(is_whole(&answer, false), "{answer}");
            Instant::now()
        });
        pushed.push(until(&mut pushes, |active| *active).await - sent);
        scaled.push(until(&mut counts, |count| *count > 0).await - sent);
        let healthy = healthy(&cluster, &setup.namespace).await;
        released.push(client.await.expect("answered").saturating_duration_since(healthy));
    }
    report("request held → IsActive pushed", pushed);
    report("request held → Deployment scaled by KEDA", scaled);
    report("pod healthy → request answered (one token)", released);
    setup.end(&cluster).await;
}

/// The same without KEDA: the time to the write of the count, and from a healthy pod to the
/// release.
pub async fn directly(cluster: Arc<Cluster>) {
    let setup = direct::Setup::new(&cluster, "measure-direct", direct::Options::default()).await;
    let mut counts = counts(&cluster, &setup.namespace);
    let (mut written, mut released) = (vec![], vec![]);
    for _ in 0..ROUNDS {
        eventually("asleep", async || replicas(&cluster, &setup.namespace, POOL).await == (0, 0))
            .await;
        sleep(Duration::from_secs(4)).await;
        while counts.try_recv().is_ok() {}
        let sent = Instant::now();
        let gateway = setup.clients[0];
        let client = tokio::spawn(async move {
            let answer = chat(gateway, POOL, false, 1).await;
            assert!(is_whole(&answer, false), "{answer}");
            Instant::now()
        });
        written.push(until(&mut counts, |count| *count > 0).await - sent);
        let healthy = healthy(&cluster, &setup.namespace).await;
        released.push(client.await.expect("answered").saturating_duration_since(healthy));
    }
    report("request held → replicas written, seen by a watch", written);
    report("pod healthy → request answered (one token)", released);
    setup.end(&cluster).await;
}

/// Waits until the first pod's server answers, and returns that moment.
pub async fn healthy(cluster: &Cluster, namespace: &str) -> Instant {
    let get_ip = ["-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].status.podIP}"];
    let address = loop {
        let text = cluster.plane.kubectl(&get_ip).await;
        if let Some(Ok(address)) = text.split_whitespace().next().map(str::parse) {
            break SocketAddr::new(address, 8000);
        }
    };
    while TcpStream::connect(address).await.is_err()
        || status(&get(address, "/health").await) != 200
    {
        sleep(Duration::from_millis(1)).await;
    }
    Instant::now()
}
