//! Watches that have expired (410): a new list finds the changes that they missed.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Cluster;
use crate::link::Link;
use crate::plane::eventually;
use crate::suites::direct::{Options, POOL, Setup};
use crate::suites::load::Load;
use crate::suites::workload::addresses;

const EXPIRED: &str = "the watch of pods has expired";

/// Gateway and scaler are cut off from the API server. Meanwhile a pod is replaced, the workload is
/// annotated, and all history is discarded. Clients notice nothing, and the missed changes are
/// known as soon as the link is mended.
pub async fn expired_watches_list_anew(cluster: Arc<Cluster>) {
    let link = Link::to(vec![cluster.plane.api_address()]).await;
    let kubeconfig = cluster.plane.kubeconfig_at(link.address).await;
    let options =
        Options { min: 2, hook: true, kubeconfig: Some(kubeconfig), ..Options::default() };
    let setup = Setup::new(&cluster, "expiry", options).await;
    let namespace = setup.namespace.as_str();
    let (gateway, scaler) = (&setup.gateways[0], &setup.scalers[0]);
    let known = async || -> BTreeSet<String> {
        let endpoints = gateway.endpoints(POOL).await.into_iter();
        endpoints.filter(|(_, health)| health == "ready").map(|(address, _)| address).collect()
    };
    let there = async || addresses(&cluster, namespace, POOL).await;
    eventually("both replicas are ready", async || {
        setup.replicas(&cluster).await == (2, 2) && known().await == there().await
    })
    .await;
    let before = there().await;
    let load = Load::start(setup.clients[0]);
    eventually("requests flow", async || load.served() >= 8).await;

    link.cut();
    let pods = ["-n", namespace, "get", "pods", "-o", "jsonpath={.items[0].metadata.name}"];
    let pod = cluster.plane.kubectl(&pods).await;
    // Its hook reaches the gateway through the scaler, without the API server.
    cluster.plane.kubectl(&["-n", namespace, "delete", "pod", &pod]).await;
    let annotate = async |value: &str| {
        let annotate = ["-n", namespace, "annotate", "deployment", POOL, value];
        cluster.plane.kubectl(&annotate).await
    };
    annotate("forebay.io/paused=true").await;
    eventually("another pod is ready", async || {
        let now = there().await;
        now.len() == 2 && now != before && setup.replicas(&cluster).await == (2, 2)
    })
    .await;
    assert!(!known().await.is_superset(&there().await), "the gateway can't know the new pod");
    cluster.plane.kill("kube-apiserver").await;
    cluster.plane.compact().await;
    cluster.plane.start_api_server().await;
    assert!(
        !gateway.log().contains(EXPIRED) && !scaler.log().contains(EXPIRED),
        "no watch has expired yet"
    );
    link.mend();

    eventually("the gateway knows the pods", async || known().await == there().await).await;
    assert!(gateway.log().contains(EXPIRED), "{}", gateway.log());
    eventually("the scaler has read the annotation", async || {
        scaler.log().contains("paused by an annotation")
    })
    .await;
    eventually("the scaler knows the pods", async || scaler.log().contains(EXPIRED)).await;
    let served = load.served();
    eventually("requests flow", async || load.served() >= served + 8).await;
    load.end().await;
    // The count never changed: there is no Event for a scale-down.
    annotate("forebay.io/paused-").await;
    eventually("the pause is over", async || {
        scaler.log().contains("Forebay scales the workload again")
    })
    .await;
    assert_eq!(setup.replicas(&cluster).await.0, 2);
    let events = setup.events(&cluster).await;
    assert!(!events.contains("ScaledDown"), "{events}");
    setup.end(&cluster).await;
}
