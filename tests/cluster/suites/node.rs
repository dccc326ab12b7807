//! The kubelet of these tests itself, as the API server sees it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams};

use crate::Cluster;
use crate::forebay::{BINARY, Forebay, chat, get, status};
use crate::kubelet::Kubelet;
use crate::plane::{eventually, free_ports};
use crate::suites::workload::{Workload, namespace};

fn ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.filter(|each| each.type_ == "Ready").any(|ready| ready.status == "True")
}

fn reason(pod: &Pod) -> Option<String> {
    let status = pod.status.as_ref()?.container_statuses.as_ref()?.first()?;
    status.state.as_ref()?.waiting.as_ref()?.reason.clone()
}

/// A pod is scheduled, started, probed and ready. At its end its hook runs, and nothing listens at
/// its address.
pub async fn a_pod_lives_and_ends(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "node").await;
    let marker = cluster.folder.join("hook-ran");
    let hook = format!("echo $POD_IP > {}; sleep 1", marker.display());
    let workload = Workload {
        replicas: 1,
        args: vec!["--cold-start".into(), "1s".into()],
        pre_stop: Some(vec!["sh".into(), "-c".into(), hook]),
        ..Workload::named("llama", cluster.node.name())
    };
    cluster.plane.apply(&workload.yaml(&namespace)).await;
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
    let mut name = String::new();
    let mut address = Ipv4Addr::UNSPECIFIED;
    eventually("the pod is ready", async || {
        let list = pods.list(&Default::default()).await.expect("listed");
        let pod = list.items.into_iter().find(ready);
        pod.is_some_and(|pod| {
            name = pod.metadata.name.clone().expect("a name");
            let ip = pod.status.as_ref().and_then(|status| status.pod_ip.clone());
            address = ip.expect("ready, so it has one").parse().expect("an address");
            true
        })
    })
    .await;
    assert!(address.is_loopback());
    assert_eq!(status(&get((address, 8000).into(), "/health").await), 200);

    pods.delete(&name, &DeleteParams::default()).await.expect("deleted");
    eventually("the pod is gone", async || pods.get_opt(&name).await.expect("asked").is_none())
        .await;
    let ran = std::fs::read_to_string(&marker).expect("the hook ran");
    assert_eq!(ran.trim(), address.to_string(), "with the pod's address from the downward API");
    assert_eq!(status(&get((address, 8000).into(), "/health").await), 0, "nothing listens there");
    eventually("the Deployment has another one", async || {
        let list = pods.list(&Default::default()).await.expect("listed");
        list.items.iter().any(|pod| ready(pod) && pod.metadata.name.as_ref() != Some(&name))
    })
    .await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}

/// An image that can't be pulled and a container that crashes are reported with their reasons.
pub async fn troubles_are_reported(cluster: Arc<Cluster>) {
    use crate::kubelet::annotation::{CRASHES, PULL_FAILS};
    let namespace = namespace(&cluster, "trouble").await;
    for (case, annotation, times, wanted) in [
        ("no-image", PULL_FAILS, "always", "ImagePullBackOff"),
        ("crashes", CRASHES, "1000", "CrashLoopBackOff"),
    ] {
        let workload = Workload {
            replicas: 1,
            annotations: vec![(annotation.to_owned(), times.to_owned())],
            ..Workload::named(case, cluster.node.name())
        };
        cluster.plane.apply(&workload.yaml(&namespace)).await;
        let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
        let mine = kube::api::ListParams::default().labels(&format!("app={case}"));
        eventually(wanted, async || {
            let list = pods.list(&mine).await.expect("listed");
            list.items.iter().any(|pod| reason(pod).as_deref() == Some(wanted) && !ready(pod))
        })
        .await;
    }
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}

/// A machine loses power. Its pods look alive for a while, and then unknown. The other pods answer
/// requests all the time.
pub async fn a_dead_nodes_pods_are_not_waited_for(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "dead-node").await;
    let lost = format!("lost-{}", std::process::id());
    let logs = cluster.folder.join("pods");
    let doomed = Kubelet::start(cluster.client.clone(), BINARY.into(), logs, &lost, 8).await;
    for (name, node) in [("stays", cluster.node.name()), ("goes", doomed.name())] {
        let workload = Workload { replicas: 1, ..Workload::named(name, node) };
        cluster.plane.apply(&workload.yaml(&namespace)).await;
    }
    let [clients, admin] = free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let config = format!(
        "gateway: {{listen: \"{clients}\"}}\nadmin: {{listen: \"{admin}\"}}\n\
         pools:\n- name: llama\n  models: [stays, goes]\n  discovery:\n    \
         pods: {{namespace: {namespace}, selector: \"app in (stays, goes)\", port: 8000}}\n"
    );
    let folder = cluster.folder.join("dead-node");
    let kubeconfig = &cluster.plane.kubeconfig;
    let mut gateway =
        Forebay::start("gateway", "gateway", &config, admin, kubeconfig, &folder).await;
    let ready = async || {
        let signals = gateway.pool("/signals", "llama").await;
        let endpoints = signals["endpoints"].as_object().map(|all| all.values().cloned().collect());
        let endpoints: Vec<serde_json::Value> = endpoints.unwrap_or_default();
        endpoints.iter().filter(|endpoint| endpoint["health"] == "ready").count()
    };
    eventually("both are ready", async || ready().await == 2).await;
    doomed.die();
    // Each simulated server answers only to its own name.
    let all_answered = async |when: &str| {
        for n in 0..20 {
            let answer = chat(clients, "stays", false, 2).await;
            assert_eq!(status(&answer), 200, "{when}, request {n}: {answer}");
        }
    };
    all_answered("at once").await;
    eventually("the gateway has noticed", async || ready().await == 1).await;
    eventually("Kubernetes has noticed", async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        cluster.plane.kubectl(&["get", "node", &lost, "-o", path]).await == "Unknown"
    })
    .await;
    all_answered("when its pods are unknown").await;
    assert_eq!(ready().await, 1);
    gateway.kill().await;
    doomed.stop().await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}
