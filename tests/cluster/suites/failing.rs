//! Pods that will not start: clients hear why, and are served once the cause is gone.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use crate::Cluster;
use crate::forebay::{chat, is_whole, status};
use crate::kubelet::annotation;
use crate::plane::eventually;
use crate::suites::direct::{Options, POOL, Setup, all_whole};

/// Changes the template of the workload's pods.
async fn patch(cluster: &Cluster, namespace: &str, template: &Value) {
    let patch = json!({"spec": {"template": template}}).to_string();
    let arguments = ["-n", namespace, "patch", "deployment", POOL, "--type=merge", "-p", &patch];
    cluster.plane.kubectl(&arguments).await;
}

/// Sends requests until one is refused because of failing starts, and returns its answer. The cause
/// may not be known to Kubernetes when the first one is held.
async fn refused(setup: &Setup, reason: &str) {
    eventually(&format!("a client hears of {reason}"), async || {
        let answer = chat(setup.clients[0], POOL, false, 4).await;
        assert_eq!(status(&answer), 503, "{answer}");
        assert!(answer.contains("No replica can be started: the last one "), "{answer}");
        assert!(answer.to_lowercase().contains("\r\nretry-after: "), "{answer}");
        answer.contains(reason)
    })
    .await;
}

/// Images that can't be pulled, and containers that end again and again.
pub async fn pods_that_cannot_start_are_named_to_clients(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "failing", Options::default()).await;
    for (fault, of, reason) in [
        (annotation::PULL_FAILS, "always", "does not start (ImagePullBackOff)"),
        (annotation::CRASHES, "100", "does not start (CrashLoopBackOff)"),
    ] {
        // A rollout would keep a replica that is ready.
        eventually("zero", async || setup.replicas(&cluster).await == (0, 0)).await;
        let annotated = |value: Value| json!({"metadata": {"annotations": {fault: value}}});
        patch(&cluster, &setup.namespace, &annotated(of.into())).await;
        refused(&setup, reason).await;
        let events = setup.events(&cluster).await;
        assert!(
            events.contains("StartFailed: no replica can be started: the last one"),
            "{events}"
        );
        // The refused requests keep it awake. As many came as the loop above sent.
        let (wanted, ready) = setup.replicas(&cluster).await;
        assert!(wanted >= 1 && ready == 0, "{wanted} wanted, {ready} ready");
        patch(&cluster, &setup.namespace, &annotated(Value::Null)).await;
        eventually("a start succeeds", async || {
            is_whole(&chat(setup.clients[0], POOL, false, 4).await, false)
        })
        .await;
    }
    assert_eq!(all_whole(setup.chats(1, true, 4)).await, 1);
    setup.end(&cluster).await;
}

/// A pod that fits on no node, until the cluster autoscaler says that it adds one.
pub async fn pods_without_a_node_are_named_unless_one_is_being_added(cluster: Arc<Cluster>) {
    let setup = Setup::new(&cluster, "no-node", Options::default()).await;
    let selector = |node: &str| json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": node}}});
    patch(&cluster, &setup.namespace, &selector("none")).await;
    refused(&setup, "has no node (Unschedulable), and none is being added").await;

    let pods = ["-n", &setup.namespace, "get", "pods", "-o", "json"];
    let pods: Value = serde_json::from_str(&cluster.plane.kubectl(&pods).await).expect("JSON");
    let event = |pod: &Value| {
        let metadata = &pod["metadata"];
        let name = metadata["name"].as_str().expect("a name");
        json!({
            "apiVersion": "v1", "kind": "Event",
            "metadata": {"name": format!("{name}.scale-up"), "namespace": setup.namespace},
            "involvedObject": {
                "apiVersion": "v1", "kind": "Pod", "name": name, "namespace": setup.namespace,
                "uid": metadata["uid"],
            },
            "reason": "TriggeredScaleUp", "type": "Normal", "message": "pod triggered scale-up",
            "source": {"component": "cluster-autoscaler"},
            "lastTimestamp": k8s_openapi::jiff::Timestamp::now().to_string(),
        })
    };
    for pod in pods["items"].as_array().expect("a list") {
        cluster.plane.apply(&event(pod).to_string()).await;
    }
    eventually("requests are held again", async || {
        let answer = timeout(Duration::from_secs(2), chat(setup.clients[0], POOL, false, 4)).await;
        answer.is_err()
    })
    .await;
    let held = setup.chats(1, false, 4);
    patch(&cluster, &setup.namespace, &selector(cluster.node.name())).await;
    assert_eq!(all_whole(held).await, 1);
    setup.end(&cluster).await;
}
