//! The way to the API server.

use kube::{Client, Config};

/// A cluster as this process is known there.
#[derive(Clone)]
pub struct Cluster {
    /// Speaks with the API server.
    pub client: Client,
    /// The namespace that this process runs in.
    pub namespace: String,
}

/// Why there is no way to a cluster.
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
        // Ours back off by themselves, and are told what went wrong.
        config.default_retry = false;
        let namespace = config.default_namespace.clone();
        let client = Client::try_from(config).map_err(|error| NoCluster(error.to_string()))?;
        Ok(Self { client, namespace })
    }
}
