//! Watches that have expired (410): what they missed is found by a new list.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Cluster;
use crate::link::Link;
use crate::plane::eventually;
use crate::suites::direct::{Options, POOL, Setup};
use crate::suites::load::Load;
use crate::suites::workload::addresses;

const EXPIRED: &str = "the watch of pods has expired";

/// Gateway and scaler are cut off from the API server. Meanwhile a pod is replaced by another, the
/// workload is annotated, and all history is thrown away. Clients notice nothing of it, and what
/// was missed is known as soon as the way is whole again.
pub async fn expired_watches_list_anew(cluster: Arc<Cluster>) {
    let link = Link::to(vec![cluster.plane.api_address()]).await;
    let kubeconfig = cluster.plane.kubeconfig_by(link.address).await;
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
    eventually("both are ready", async || {
        setup.replicas(&cluster).await == (2, 2) && known().await == there().await
    })
    .await;
    let before = there().await;
    let load = Load::start(setup.clients[0]);
    eventually("requests flow", async || load.served() >= 8).await;

    link.cut();
    let pods = ["-n", namespace, "get", "pods", "-o", "jsonpath={.items[0].metadata.name}"];
    let pod = cluster.plane.kubectl(&pods).await;
    // With its hook: by way of the scaler, gateways hear of it without the API server.
    cluster.plane.kubectl(&["-n", namespace, "delete", "pod", &pod]).await;
    let annotate = async |value: &str| {
        let annotate = ["-n", namespace, "annotate", "deployment", POOL, value];
        cluster.plane.kubectl(&annotate).await
    };
    annotate("forebay.io/paused=true").await;
    eventually("there is another one", async || {
        let now = there().await;
        now.len() == 2 && now != before && setup.replicas(&cluster).await == (2, 2)
    })
    .await;
    assert!(!known().await.is_superset(&there().await), "nobody can have told the gateway");
    cluster.plane.kill("kube-apiserver").await;
    cluster.plane.compact().await;
    cluster.plane.start_api_server().await;
    assert!(!gateway.log().contains(EXPIRED) && !scaler.log().contains(EXPIRED), "not yet");
    link.mend();

    eventually("the gateway knows who is there", async || known().await == there().await).await;
    assert!(gateway.log().contains(EXPIRED), "{}", gateway.log());
    eventually("the scaler has read the annotation", async || {
        scaler.log().contains("paused by an annotation")
    })
    .await;
    eventually("the scaler knows the pods", async || scaler.log().contains(EXPIRED)).await;
    let served = load.served();
    eventually("requests flow", async || load.served() >= served + 8).await;
    load.end().await;
    // The count was never touched: no Event tells of a scale-down.
    annotate("forebay.io/paused-").await;
    eventually("it is ours again", async || scaler.log().contains("the workload is ours again"))
        .await;
    assert_eq!(setup.replicas(&cluster).await.0, 2);
    let events = setup.events(&cluster).await;
    assert!(!events.contains("ScaledDown"), "{events}");
    setup.end(&cluster).await;
}
