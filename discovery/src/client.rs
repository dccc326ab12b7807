//! The connection to the API server.

use kube::{Client, Config};

/// A Kubernetes cluster, and this process's place in it.
#[derive(Clone)]
pub struct Cluster {
    /// The client of the API server.
    pub client: Client,
    /// The namespace that this process runs in.
    pub namespace: String,
}

/// No cluster is configured.
#[derive(Debug, thiserror::Error)]
#[error(
    "no way to a Kubernetes cluster: run in a pod with a service account, or set KUBECONFIG ({0})"
)]
pub struct NoCluster(String);

impl Cluster {
    /// By `KUBECONFIG`, `~/.kube/config` or a pod's service account, in this order. Opens no
    /// connection yet: the API server may be away.
    ///
    /// # Errors
    /// None of them is there, or the first one is broken.
    pub async fn infer() -> Result<Self, NoCluster> {
        let mut config = Config::infer().await.map_err(|error| NoCluster(error.to_string()))?;
        // The callers back off on their own, and must see the error.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| NoCluster(error.to_string()))?;
        Ok(Self { client, namespace })
    }
}
