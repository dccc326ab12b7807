//! Replicas that are found by a Service or by EndpointSlices, and gateways that the scaler finds.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use serde_json::json;

use crate::Cluster;
use crate::forebay::{Forebay, Streaming, chat, is_whole};
use crate::kubelet::host_address;
use crate::plane::{eventually, free_ports};
use crate::suites::workload::{Workload, addresses, namespace, replicas};

/// Two pods behind the Service `model`, each with a Deployment of its own. They end once the file
/// `gate` exists. With `ports` they are in the machine's own network.
async fn serve(
    cluster: &Cluster,
    namespace: &str,
    model: &str,
    ports: Option<[u16; 2]>,
    gate: &Path,
) {
    for n in 0..2 {
        let hook = format!("until [ -e {} ]; do sleep 0.1; done", gate.display());
        let workload = Workload {
            replicas: 1,
            pre_stop: Some(vec!["sh".into(), "-c".into(), hook]),
            grace_seconds: 120,
            ..Workload::named(&format!("{model}-{n}"), cluster.node.name())
        };
        let mut yaml = workload.of_kind("Deployment", namespace);
        let template = &mut yaml["spec"]["template"];
        template["metadata"]["labels"]["model"] = model.into();
        template["spec"]["containers"][0]["args"] = json!(["--served-model-name", model]);
        if let Some(ports) = ports {
            template["spec"]["hostNetwork"] = true.into();
            template["spec"]["containers"][0]["ports"][0]["containerPort"] = ports[n].into();
        }
        cluster.plane.apply(&yaml.to_string()).await;
    }
    let service = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": model, "namespace": namespace},
        "spec": {"selector": {"model": model}, "ports": [
            {"name": "other", "port": 9, "targetPort": 9},
            {"name": "http", "port": 80, "targetPort": "http"},
        ]},
    });
    cluster.plane.apply(&service.to_string()).await;
}

/// The pods' addresses, with the names of their Deployments.
async fn served(cluster: &Cluster, namespace: &str, model: &str) -> BTreeMap<String, String> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let labelled = ListParams::default().labels(&format!("model={model}"));
    let Ok(pods) = api.list(&labelled).await else { return BTreeMap::new() };
    let read = |pod: Pod| {
        let app = pod.labels().get("app")?.clone();
        let port = pod.spec?.containers.first()?.ports.as_ref()?.first()?.container_port;
        Some((format!("{}:{port}", pod.status?.pod_ip?), app))
    };
    pods.items.into_iter().filter_map(read).collect()
}

/// Discovery by a Service's selector and by its EndpointSlices: each finds the pods, sends nothing
/// new to a pod that is being deleted while its stream goes on, and forgets it once it is gone.
pub async fn by_service_and_by_endpoint_slices(cluster: Arc<Cluster>) {
    let Some(own) = host_address() else {
        println!("  skipped: this machine has no address that an EndpointSlice takes");
        return;
    };
    let namespace = namespace(&cluster, "discovery").await;
    let folder = cluster.folder.join("discovery");
    std::fs::create_dir_all(&folder).expect("a folder");
    let gate = |model: &str| folder.join(format!("{model}-may-end"));
    let ports: [u16; 2] = free_ports();
    serve(&cluster, &namespace, "by-service", None, &gate("by-service")).await;
    serve(&cluster, &namespace, "by-slices", Some(ports), &gate("by-slices")).await;
    let [clients, admin] = free_ports().map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    let config = format!(
        "gateway: {{listen: \"{clients}\", endpointHeader: true}}\nadmin: {{listen: \"{admin}\"}}\n\
         pools:\n- name: by-service\n  models: [by-service]\n  \
         discovery: {{pods: {{namespace: {namespace}, service: by-service, port: 8000}}}}\n\
         - name: by-slices\n  models: [by-slices]\n  discovery:\n    \
         endpointSlices: {{namespace: {namespace}, service: by-slices, portName: http}}\n"
    );
    let kubeconfig = &cluster.plane.kubeconfig;
    let mut gateway =
        Forebay::start("gateway", "gateway", &config, admin, kubeconfig, &folder).await;
    for model in ["by-service", "by-slices"] {
        let ready = async || -> Vec<String> {
            let endpoints = gateway.endpoints(model).await.into_iter();
            endpoints.filter(|(_, health)| health == "ready").map(|(address, _)| address).collect()
        };
        let there = async || served(&cluster, &namespace, model).await;
        eventually(&format!("{model}: both pods are found"), async || {
            let there = there().await;
            there.len() == 2 && there.into_keys().eq(ready().await)
        })
        .await;
        let all = there().await;
        let of_slices = all.keys().all(|address| address.starts_with(&format!("{own}:")));
        assert_eq!(of_slices, model == "by-slices", "{all:?}");

        let mut stream = Streaming::begin(clients, model, 30_000).await;
        let leaving = stream.endpoint.clone();
        let scale = ["-n", &namespace, "scale", "deployment", &all[&leaving], "--replicas=0"];
        cluster.plane.kubectl(&scale).await;
        eventually(&format!("{model}: the pod drains"), async || {
            let endpoints = gateway.endpoints(model).await;
            endpoints.get(&leaving).is_some_and(|health| health == "draining")
        })
        .await;
        for _ in 0..8 {
            let answer = chat(clients, model, false, 2).await;
            assert!(is_whole(&answer, false), "{answer}");
            assert!(!answer.contains(&leaving), "the draining pod got a request: {answer}");
        }
        stream.goes_on().await;
        drop(stream);
        std::fs::write(gate(model), "").expect("written");
        eventually(&format!("{model}: the pod is forgotten"), async || {
            gateway.endpoints(model).await.len() == 1
        })
        .await;
        assert!(!ready().await.contains(&leaving));
    }
    gateway.kill().await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}

/// A pod for a gateway that runs as a local process.
async fn gateway_pod(cluster: &Cluster, namespace: &str, name: &str, address: SocketAddr) {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": {"app": "gateway"}},
        // On no node: only this test sets its status.
        "spec": {"schedulerName": "nobody", "containers": [{"name": "gateway", "image": "forebay"}]},
    });
    cluster.plane.apply(&pod.to_string()).await;
    let condition = |kind: &str| json!({"type": kind, "status": "True"});
    let ip = address.ip().to_string();
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}],
        "conditions": [condition("PodScheduled"), condition("Ready")],
        "containerStatuses": [{
            "name": "gateway", "image": "forebay", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }],
    }});
    let status = status.to_string();
    let patch =
        ["-n", namespace, "patch", "pod", name, "--subresource=status", "--type=merge", "-p"];
    cluster.plane.kubectl(&[&patch[..], &[&status]].concat()).await;
}

/// The scaler's own discovery: it follows a new gateway, and a gateway that is gone no longer
/// counts.
pub async fn a_scaler_finds_the_gateways(cluster: Arc<Cluster>) {
    let namespace = namespace(&cluster, "gateways").await;
    let workload = Workload::named("llama", cluster.node.name());
    cluster.plane.apply(&workload.yaml(&namespace)).await;
    let [first, second, admin, scaler] = free_ports();
    let clients = [first, second].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
    // The same port for both, as for the pods of a Deployment.
    let (x, y) = (rand::random_range(10..250), rand::random_range(1..250));
    let admins = [1, 2].map(|last| SocketAddr::from(([127, x, y, last], admin)));
    let scaler = SocketAddr::from(([127, 0, 0, 1], scaler));
    let config = |clients: SocketAddr, admin: SocketAddr| {
        format!(
            "gateway: {{listen: \"{clients}\", scaler: \"{scaler}\"}}\n\
             admin: {{listen: \"{admin}\"}}\nscaler:\n  staleAfter: 2s\n  \
             gatewayDiscovery: {{pods: {{namespace: {namespace}, selector: app=gateway, port: {port}}}}}\n\
             pools:\n- name: llama\n  models: [llama]\n  \
             discovery: {{pods: {{namespace: {namespace}, selector: app=llama, port: 8000}}}}\n  \
             target: {{kubernetes: {{name: llama, namespace: {namespace}}}}}\n  \
             scaling: {{maxReplicaCount: 2, stableWindow: 2s, panicWindow: 1s, cooldownPeriod: 2s}}\n",
            port = admins[0].port(),
        )
    };
    let folder = cluster.folder.join("gateways");
    let kubeconfig = &cluster.plane.kubeconfig;
    let start = async |part: &str, name: &str, clients: SocketAddr, admin: SocketAddr| {
        let config = config(clients, admin);
        Forebay::start(part, name, &config, admin, kubeconfig, &folder).await
    };
    let mut gateways = [
        start("gateway", "gateway-0", clients[0], admins[0]).await,
        start("gateway", "gateway-1", clients[1], admins[1]).await,
    ];
    let mut scaler = start("scaler", "scaler", clients[0], scaler).await;
    let wakes = async |n: usize| {
        let answer = chat(clients[n], "llama", false, 2).await;
        assert!(is_whole(&answer, false), "by gateway {n}: {answer}");
    };
    let asleep = async || {
        eventually("zero", async || {
            replicas(&cluster, &namespace, "llama").await.0 == 0
                && addresses(&cluster, &namespace, "llama").await.is_empty()
        })
        .await;
    };
    gateway_pod(&cluster, &namespace, "gateway-0", admins[0]).await;
    wakes(0).await;
    asleep().await;
    gateway_pod(&cluster, &namespace, "gateway-1", admins[1]).await;
    wakes(1).await;
    gateways[0].kill().await;
    cluster.plane.kubectl(&["-n", &namespace, "delete", "pod", "gateway-0"]).await;
    asleep().await;
    wakes(1).await;
    gateways[1].kill().await;
    scaler.kill().await;
    cluster.plane.kubectl(&["delete", "namespace", &namespace, "--wait=false"]).await;
}
