//! The workload that the suites scale, and its namespace.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::Cluster;
use crate::suites::leader_worker_set;

/// A Deployment of simulated vLLM servers on the tests' own node.
#[derive(Clone)]
pub struct Workload {
    pub name: String,
    pub node: String,
    pub replicas: u32,
    /// Arguments of `forebay vllm-sim`.
    pub args: Vec<String>,
    pub annotations: Vec<(String, String)>,
    pub pre_stop: Option<Vec<String>>,
    pub grace_seconds: u32,
    /// The value that a rolling update changes.
    pub version: u32,
}

impl Workload {
    pub fn named(name: &str, node: &str) -> Self {
        Self {
            name: name.to_owned(),
            node: node.to_owned(),
            replicas: 0,
            args: Vec::new(),
            annotations: Vec::new(),
            pre_stop: None,
            grace_seconds: 30,
            version: 1,
        }
    }

    /// The same workload as another kind.
    pub fn of_kind(&self, kind: &str, namespace: &str) -> Value {
        let mut yaml: Value = serde_json::from_str(&self.yaml(namespace)).expect("JSON");
        yaml["kind"] = kind.into();
        match kind {
            "StatefulSet" => yaml["spec"]["podManagementPolicy"] = "Parallel".into(),
            "LeaderWorkerSet" => {
                let template = yaml["spec"]["template"].clone();
                yaml["apiVersion"] = leader_worker_set::API_VERSION.into();
                yaml["spec"] = leader_worker_set::spec(self.replicas, template);
            }
            _ => {}
        }
        yaml
    }

    pub fn yaml(&self, namespace: &str) -> String {
        let labels = json!({"app": self.name});
        let annotations: serde_json::Map<_, _> =
            self.annotations.iter().map(|(key, value)| (key.clone(), json!(value))).collect();
        let mut args = vec!["--served-model-name".to_owned(), self.name.clone()];
        args.extend(self.args.iter().cloned());
        let mut container = json!({
            "name": "vllm", "image": "vllm/vllm-openai",
            "args": args,
            "ports": [{"name": "http", "containerPort": 8000}],
            "env": [
                {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "VERSION", "value": self.version.to_string()},
            ],
            "resources": {"limits": {"nvidia.com/gpu": "1"}},
            "readinessProbe": {"httpGet": {"path": "/health", "port": "http"}, "periodSeconds": 2},
        });
        if let Some(command) = &self.pre_stop {
            container["lifecycle"] = json!({"preStop": {"exec": {"command": command}}});
        }
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": self.name, "namespace": namespace},
            "spec": {
                "replicas": self.replicas,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels, "annotations": annotations},
                    "spec": {
                        "nodeSelector": {"kubernetes.io/hostname": self.node},
                        "terminationGracePeriodSeconds": self.grace_seconds,
                        "containers": [container],
                    },
                },
            },
        })
        .to_string()
    }
}

/// Creates a namespace for a suite.
pub async fn namespace(cluster: &Cluster, suite: &str) -> String {
    let name = format!("{suite}-{}", std::process::id());
    cluster.plane.kubectl(&["create", "namespace", &name]).await;
    // The API server refuses pods before the namespace has its ServiceAccount.
    crate::plane::eventually("the namespace is ready", async || {
        let get = ["-n", &name, "get", "serviceaccount", "default"];
        cluster.plane.try_kubectl(&get, "").await.is_ok()
    })
    .await;
    name
}

/// The workload's replicas: desired, and ready.
pub async fn replicas(cluster: &Cluster, namespace: &str, name: &str) -> (u32, u32) {
    use k8s_openapi::api::apps::v1::Deployment;
    let api: kube::Api<Deployment> = kube::Api::namespaced(cluster.client.clone(), namespace);
    let mut found = None;
    // A failed read must not look like zero replicas.
    crate::plane::eventually("the API server answers", async || match api.get_opt(name).await {
        Ok(deployment) => {
            found = deployment;
            true
        }
        Err(_) => false,
    })
    .await;
    let Some(deployment) = found else { return (0, 0) };
    let desired = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(0);
    let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    (desired as u32, ready as u32)
}

/// The addresses of the pods of `app` that are not being deleted, as `IP:8000`.
pub async fn addresses(cluster: &Cluster, namespace: &str, app: &str) -> BTreeSet<String> {
    use k8s_openapi::api::core::v1::Pod;
    let api: kube::Api<Pod> = kube::Api::namespaced(cluster.client.clone(), namespace);
    let labelled = kube::api::ListParams::default().labels(&format!("app={app}"));
    let Ok(pods) = api.list(&labelled).await else { return BTreeSet::new() };
    let stays = pods.items.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none());
    let address = |pod: Pod| Some(format!("{}:8000", pod.status?.pod_ip?));
    stays.filter_map(address).collect()
}
