//! A LeaderWorkerSet with a stand-in for its controller: every kind with `/scale` is scaled the
//! same way.
//!
//! The kind is reduced to the parts that scaling needs: `/scale`, a selector that finds only the
//! leaders, and numbered groups, of which the highest go first.

use k8s_openapi::api::core::v1::Pod;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch,
    PatchParams, PostParams,
};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::Cluster;
use crate::plane::eventually;

pub const API_VERSION: &str = "leaderworkerset.x-k8s.io/v1";
const NAME: &str = "leaderworkerset.sigs.k8s.io/name";
const GROUP: &str = "leaderworkerset.sigs.k8s.io/group-index";
const WORKER: &str = "leaderworkerset.sigs.k8s.io/worker-index";
/// Pods in a group.
const SIZE: usize = 2;

/// The spec of groups that consist of a leader, which serves, and a worker.
pub fn spec(replicas: u32, template: Value) -> Value {
    json!({
        "replicas": replicas,
        "leaderWorkerTemplate": {"size": SIZE, "workerTemplate": template},
    })
}

/// Creates the kind.
pub async fn install(cluster: &Cluster) {
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "leaderworkersets.leaderworkerset.x-k8s.io"},
        "spec": {
            "group": "leaderworkerset.x-k8s.io", "scope": "Namespaced",
            "names": {
                "kind": "LeaderWorkerSet", "plural": "leaderworkersets",
                "singular": "leaderworkerset", "listKind": "LeaderWorkerSetList",
            },
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {
                    "type": "object", "properties": {"spec": open, "status": open},
                }},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas",
                    "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.hpaPodSelector",
                }},
            }],
        },
    });
    cluster.plane.apply(&crd.to_string()).await;
    eventually("the kind is served", async || {
        cluster.plane.try_kubectl(&["get", "leaderworkersets", "-A"], "").await.is_ok()
    })
    .await;
}

/// Deletes the kind and all its objects.
pub async fn remove(cluster: &Cluster) {
    let name = "leaderworkersets.leaderworkerset.x-k8s.io";
    cluster.plane.kubectl(&["delete", "crd", name, "--wait=false"]).await;
}

/// The controller of one set, until it is dropped.
pub struct Controller {
    _task: AbortOnDropHandle<()>,
}

impl Controller {
    pub fn start(client: Client, namespace: &str, name: &str) -> Self {
        let kind = GroupVersionKind::gvk("leaderworkerset.x-k8s.io", "v1", "LeaderWorkerSet");
        let resource = ApiResource::from_gvk_with_plural(&kind, "leaderworkersets");
        let sets: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
        let pods: Api<Pod> = Api::namespaced(client, namespace);
        let name = name.to_owned();
        let task = tokio::spawn(async move {
            loop {
                // A failure is retried.
                let _ = reconcile(&sets, &pods, &name).await;
                sleep(Duration::from_millis(100)).await;
            }
        });
        Self { _task: AbortOnDropHandle::new(task) }
    }
}

async fn reconcile(sets: &Api<DynamicObject>, pods: &Api<Pod>, name: &str) -> kube::Result<()> {
    let set = sets.get(name).await?;
    let wanted = set.data["spec"]["replicas"].as_u64().unwrap_or(0) as usize;
    let template = &set.data["spec"]["leaderWorkerTemplate"]["workerTemplate"];
    let there = pods.list(&ListParams::default().labels(&format!("{NAME}={name}"))).await?.items;
    let number = |pod: &Pod| pod.labels().get(GROUP)?.parse::<usize>().ok();
    for pod in there.iter().filter(|pod| number(pod).is_some_and(|number| number >= wanted)) {
        if pod.metadata.deletion_timestamp.is_none() {
            pods.delete(&pod.name_any(), &DeleteParams::default()).await?;
        }
    }
    for (group, worker) in
        (0..wanted).flat_map(|group| (0..SIZE).map(move |worker| (group, worker)))
    {
        let pod = pod(name, group, worker, template);
        // A pod that is still being deleted has the name; it is created again later.
        if !there.iter().any(|other| other.name_any() == pod.name_any()) {
            pods.create(&PostParams::default(), &pod).await?;
        }
    }
    let leaders =
        there.iter().filter(|pod| pod.labels().get(WORKER).is_some_and(|worker| worker == "0"));
    let status = json!({"status": {
        "replicas": leaders.count(), "hpaPodSelector": format!("{NAME}={name},{WORKER}=0"),
    }});
    sets.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}

fn pod(name: &str, group: usize, worker: usize, template: &Value) -> Pod {
    let mut pod = template.clone();
    let full =
        if worker == 0 { format!("{name}-{group}") } else { format!("{name}-{group}-{worker}") };
    pod["metadata"]["name"] = full.into();
    let labels = &mut pod["metadata"]["labels"];
    labels[NAME] = name.into();
    labels[GROUP] = group.to_string().into();
    labels[WORKER] = worker.to_string().into();
    if worker > 0 {
        // A worker gets no requests.
        labels["app"] = format!("{name}-worker").into();
    }
    serde_json::from_value(pod).expect("a pod")
}
