//! A workload that KEDA scales: KEDA polls the scaler (`crate::keda`).
//!
//! With `boost`, the scaler also writes the count, on the way up from zero: KEDA starts one replica,
//! and its HPA asks for the rest at its next sync, up to 15 s later. From the first ready replica on
//! only the HPA writes. It keeps the count, since it receives the same one.

use std::io;
use std::time::Duration;

use forebay_config as config;
use forebay_discovery::Cluster;
use forebay_discovery::error::{Rule, explain};
use kube::Api;
use kube::api::DynamicObject;
use kube::core::{ApiResource, GroupVersionKind};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::kubernetes::workload::{Failed, Workload};
use super::{Drains, ScaleTarget};

const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// The workload of a KEDA ScaledObject. Dropping this leaves the workload as it is.
pub(crate) struct KedaTarget {
    boost: Option<Boost>,
}

struct Boost {
    wanted: watch::Sender<BoostOrder>,
    _task: AbortOnDropHandle<()>,
}

/// The count that the loop wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BoostOrder {
    count: u32,
    /// The count was zero, and no replica has become ready since.
    waking: bool,
}

impl KedaTarget {
    /// # Errors
    /// `boost` is set, and there is no cluster.
    pub(crate) fn start(
        pool: &config::Pool,
        settings: &config::Keda,
        cluster: Option<&Cluster>,
    ) -> io::Result<Self> {
        if !settings.boost {
            return Ok(Self { boost: None });
        }
        let cluster = cluster.cloned().ok_or_else(|| io::Error::other("no Kubernetes cluster"))?;
        let (wanted, given) = watch::channel(BoostOrder::default());
        let work = boost(pool.name.clone(), settings.clone(), cluster, given);
        let task = AbortOnDropHandle::new(tokio::spawn(work));
        Ok(Self { boost: Some(Boost { wanted, _task: task }) })
    }

    fn want(&self, change: impl FnOnce(&mut BoostOrder)) {
        let Some(boost) = &self.boost else { return };
        boost.wanted.send_if_modified(|wanted| {
            let before = *wanted;
            change(wanted);
            *wanted != before
        });
    }
}

impl ScaleTarget for KedaTarget {
    fn ensure(&self, count: u32) {
        self.want(|wanted| {
            wanted.waking |= count == 0;
            wanted.count = count;
        });
    }
    fn ready(&self, _id: &str) {
        self.want(|wanted| wanted.waking = false);
    }
    fn stop(&self, _id: &str) {}
    fn stand_by(&self) {
        self.want(|wanted| *wanted = BoostOrder::default());
    }
    fn drains(&self) -> Drains {
        Drains::All
    }
}

/// Writes each wanted count above one on the way up from zero.
async fn boost(
    pool: String,
    settings: config::Keda,
    cluster: Cluster,
    mut wanted: watch::Receiver<BoostOrder>,
) {
    let mut logged = String::new();
    while wanted.changed().await.is_ok() {
        loop {
            let BoostOrder { count, waking } = *wanted.borrow_and_update();
            if !waking || count < 2 {
                break;
            }
            match raise(&settings, &cluster, count).await {
                Ok(Some(from)) => {
                    tracing::info!("{pool}: wrote {from} → {count} replicas, beside KEDA");
                    logged.clear();
                    break;
                }
                Ok(None) => break,
                Err(why) => {
                    if why != logged {
                        tracing::warn!("{pool}: no boost, only KEDA scales: {why}");
                        logged = why;
                    }
                    sleep(RETRY).await;
                }
            }
        }
    }
}

/// Raises the workload to `count`, within the ScaledObject's own bounds. Returns the count before if
/// it raised it.
async fn raise(
    settings: &config::Keda,
    cluster: &Cluster,
    count: u32,
) -> Result<Option<u32>, String> {
    let namespace = settings.namespace.as_deref().unwrap_or(&cluster.namespace);
    let object = scaled_object(settings, cluster, namespace).await?;
    if is_paused(&object) {
        return Ok(None);
    }
    let most = object.data["spec"]["maxReplicaCount"].as_u64().unwrap_or(100);
    let count = count.min(u32::try_from(most).unwrap_or(u32::MAX));
    let scaled = scaled(&object, namespace)?;
    let workload = Workload::find(cluster.client.clone(), namespace, &scaled).await;
    let workload = workload.map_err(|error| error.to_string())?;
    // KEDA writes its first replica at the same moment.
    for _ in 0..5 {
        let now = workload.read().await?;
        if now.replicas >= count {
            return Ok(None);
        }
        match workload.write(count, &now.version).await {
            Ok(_) => return Ok(Some(now.replicas)),
            Err(Failed::Conflict) => {}
            Err(Failed::For(why)) => return Err(why),
        }
    }
    Err("another client changes the count at every attempt".to_owned())
}

async fn scaled_object(
    settings: &config::Keda,
    cluster: &Cluster,
    namespace: &str,
) -> Result<DynamicObject, String> {
    let kind = GroupVersionKind::gvk("keda.sh", "v1alpha1", "ScaledObject");
    let resource = ApiResource::from_gvk_with_plural(&kind, "scaledobjects");
    let api: Api<DynamicObject> =
        Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    let called = timeout(CALL_TIMEOUT, api.get(&settings.scaled_object)).await;
    let called = called.map_err(|_| "the API server does not answer".to_owned())?;
    called.map_err(|error| {
        explain(
            &error,
            &Rule { group: "keda.sh", resource: "scaledobjects", verbs: &["get"], namespace },
        )
    })
}

/// Whether an operator has paused scaling up, by KEDA's own annotations.
fn is_paused(object: &DynamicObject) -> bool {
    let annotation = |name: &str| {
        let name = format!("autoscaling.keda.sh/{name}");
        object.metadata.annotations.as_ref().and_then(|all| all.get(&name))
    };
    let set = |name: &str| annotation(name).is_some_and(|value| value != "false");
    set("paused") || set("paused-scale-out") || annotation("paused-replicas").is_some()
}

/// The workload that a ScaledObject scales, with KEDA's defaults.
fn scaled(object: &DynamicObject, namespace: &str) -> Result<config::Kubernetes, String> {
    let target = &object.data["spec"]["scaleTargetRef"];
    let text = |field: &str, default: &str| target[field].as_str().unwrap_or(default).to_owned();
    let name = text("name", "");
    if name.is_empty() {
        return Err("the ScaledObject has no scaleTargetRef.name".to_owned());
    }
    Ok(config::Kubernetes {
        api_version: text("apiVersion", "apps/v1"),
        kind: text("kind", "Deployment"),
        namespace: Some(namespace.to_owned()),
        ..config::Kubernetes::named(name)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: serde_json::Value) -> DynamicObject {
        serde_json::from_value(value).expect("an object")
    }

    #[test]
    fn the_workload_is_found_with_kedas_defaults() {
        let plain = object(json!({"spec": {"scaleTargetRef": {"name": "llama"}}}));
        let found = scaled(&plain, "models").expect("named");
        assert_eq!(
            (&*found.kind, &*found.api_version, &*found.name),
            ("Deployment", "apps/v1", "llama")
        );
        let set = json!({"spec": {"scaleTargetRef": {
            "apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "big",
        }}});
        assert_eq!(scaled(&object(set), "models").expect("named").kind, "LeaderWorkerSet");
        assert!(scaled(&object(json!({"spec": {}})), "models").is_err());
    }

    #[tokio::test]
    async fn a_target_that_stands_by_wants_nothing() {
        let (wanted, given) = watch::channel(BoostOrder::default());
        let task = AbortOnDropHandle::new(tokio::spawn(std::future::pending()));
        let target = KedaTarget { boost: Some(Boost { wanted, _task: task }) };
        target.ensure(0);
        target.ensure(3);
        assert_eq!(*given.borrow(), BoostOrder { count: 3, waking: true });
        target.stand_by();
        assert_eq!(*given.borrow(), BoostOrder::default());
    }

    #[test]
    fn a_paused_object_is_left_alone() {
        for (annotation, value, want) in [
            ("paused", "true", true),
            ("paused", "false", false),
            ("paused-replicas", "0", true),
            ("paused-scale-out", "true", true),
            ("paused-scale-in", "true", false),
        ] {
            let name = format!("autoscaling.keda.sh/{annotation}");
            let object = object(json!({"metadata": {"annotations": {name: value}}}));
            assert_eq!(is_paused(&object), want, "{annotation}: {value}");
        }
    }
}
