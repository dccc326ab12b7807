//! The replicas that go when a workload shrinks: its controller takes those that were drained.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::future::join_all;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::Cluster;
use crate::forebay::Streaming;
use crate::plane::eventually;
use crate::suites::direct::{Options, POOL, Setup, all_whole};
use crate::suites::leader_worker_set::{self, Controller};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Every pod that ever had a deletion cost, according to a watch.
struct Marked {
    pods: watch::Receiver<BTreeSet<String>>,
    _task: AbortOnDropHandle<()>,
}

impl Marked {
    fn watch(cluster: &Cluster, namespace: &str) -> Self {
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
        let (seen, pods) = watch::channel(BTreeSet::new());
        let task = tokio::spawn(async move {
            let mut changes = watcher(api, watcher::Config::default()).touched_objects().boxed();
            while let Some(change) = changes.next().await {
                let Ok(pod) = change else { continue };
                if pod.annotations().contains_key(DELETION_COST) {
                    seen.send_modify(|seen| {
                        seen.insert(pod.name_any());
                    });
                }
            }
        });
        Self { pods, _task: AbortOnDropHandle::new(task) }
    }
}

/// Name and address of the pods that are not being deleted.
async fn pods(cluster: &Cluster, namespace: &str) -> Vec<(String, String)> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let Ok(list) = api.list(&Default::default()).await else { return Vec::new() };
    let stays = |pod: &Pod| pod.metadata.deletion_timestamp.is_none();
    let read = |pod: Pod| {
        let address =
            pod.status.as_ref().and_then(|status| status.pod_ip.clone()).unwrap_or_default();
        (pod.name_any(), format!("{address}:8000"))
    };
    list.items.into_iter().filter(stays).map(read).collect()
}

/// On its own, a ReplicaSet deletes its youngest pods. The pod with the stream is one of these, and
/// it stays: the idle ones, including the oldest, are marked just before, and no other.
pub async fn the_busy_replica_stays(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "busy", Options { min: 1, ..Options::default() }).await;
    let marked = Marked::watch(&cluster, &setup.namespace);
    eventually("one replica is ready", async || setup.replicas(&cluster).await == (1, 1)).await;
    let oldest = pods(&cluster, &setup.namespace).await.remove(0);
    // Enough streams to fill three replicas.
    let streams = (0..24).map(|_| Streaming::begin(setup.clients[0], POOL, 30_000));
    let streams = join_all(streams).await;
    let all = pods(&cluster, &setup.namespace).await;
    assert!(all.len() >= 3, "{all:?}");
    let busy = streams.into_iter().find(|stream| stream.endpoint != oldest.1);
    let mut busy = busy.expect("a stream at a younger pod");
    let is_busy = |(_, address): &&(String, String)| *address == busy.endpoint;
    let kept = all.iter().find(is_busy).expect("a pod of ours").clone();
    assert!(marked.pods.borrow().is_empty(), "no pod is marked before the workload shrinks");

    eventually("one replica is desired", async || setup.replicas(&cluster).await.0 == 1).await;
    eventually("the other pods go", async || pods(&cluster, &setup.namespace).await.len() == 1)
        .await;
    let left = pods(&cluster, &setup.namespace).await;
    assert_eq!(left, std::slice::from_ref(&kept), "of {all:?}, the oldest being {oldest:?}");
    busy.goes_on().await;
    let gone: BTreeSet<_> =
        all.into_iter().map(|(name, _)| name).filter(|name| *name != kept.0).collect();
    let marked = marked.pods.borrow().clone();
    assert!(marked.is_superset(&gone) && !marked.contains(&kept.0), "{marked:?}, {gone:?} went");
    drop(busy);
    setup.end(&cluster).await;
}

/// A StatefulSet's controller deletes the pod with the highest number, so that pod is drained.
pub async fn a_stateful_set_shrinks_from_its_end(cluster: Arc<Cluster>) {
    let options = Options { kind: "StatefulSet", min: 1, ..Options::default() };
    let setup = Setup::new(&cluster, "stateful", options).await;
    shrinks_from_its_end(&cluster, &setup, "statefulset", &["llama-0"]).await;
    setup.end(&cluster).await;
}

/// A LeaderWorkerSet's controller deletes the group with the highest number. A group is one
/// replica, represented by its leader.
pub async fn a_leader_worker_set_shrinks_from_its_end(cluster: Arc<Cluster>) {
    leader_worker_set::install(&cluster).await;
    let options = Options { kind: "LeaderWorkerSet", min: 1, ..Options::default() };
    let setup = Setup::new(&cluster, "groups", options).await;
    let controller = Controller::start(cluster.client.clone(), &setup.namespace, POOL);
    let left = ["llama-0", "llama-0-1"];
    shrinks_from_its_end(&cluster, &setup, "leaderworkerset", &left).await;
    let endpoints = setup.gateways[0].endpoints(POOL).await;
    assert_eq!(endpoints.len(), 1, "workers take no requests: {endpoints:?}");
    setup.end(&cluster).await;
    // The controller stops first, so that it creates no more pods.
    drop(controller);
    leader_worker_set::remove(&cluster).await;
}

/// Scales up to three and down to one without cutting a stream, and checks that the pods in `left`
/// remain.
async fn shrinks_from_its_end(cluster: &Cluster, setup: &Setup, kind: &str, left: &[&str]) {
    let namespace = setup.namespace.as_str();
    let count = ["-n", namespace, "get", kind, POOL, "-o", "jsonpath={.spec.replicas}"];
    eventually("one replica is ready", async || {
        setup.gateways[0].endpoints(POOL).await.values().any(|health| health == "ready")
    })
    .await;
    let chats = setup.chats(24, true, 60);
    eventually("several replicas are desired", async || {
        cluster.plane.kubectl(&count).await.parse().is_ok_and(|count: u32| count >= 3)
    })
    .await;
    assert_eq!(all_whole(chats).await, 24);
    // Streams run while all pods but the first go.
    let streams = setup.chats(4, true, 600);
    eventually("one replica is desired", async || cluster.plane.kubectl(&count).await == "1").await;
    assert_eq!(all_whole(streams).await, 4);
    let pods = ["-n", namespace, "get", "pods", "-o", "jsonpath={.items[*].metadata.name}"];
    eventually("only the first is left", async || {
        let there = cluster.plane.kubectl(&pods).await;
        there.split_whitespace().eq(left.iter().copied())
    })
    .await;
}
