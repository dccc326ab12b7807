//! Snapshots in a ConfigMap, where the next leader finds them.

use std::io;

use forebay_config::LeaderElection;
use forebay_discovery::Cluster;
use forebay_discovery::error::{Rule, explain};
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::store::{SnapshotStore, Snapshots};

/// A ConfigMap with a key for each pool.
pub(crate) struct StateMap {
    api: Api<ConfigMap>,
    name: String,
    namespace: String,
}

impl StateMap {
    /// Beside the Lease, and named after it.
    pub(crate) fn new(election: &LeaderElection, cluster: &Cluster) -> Self {
        let namespace = election.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
        let api = Api::namespaced(cluster.client.clone(), &namespace);
        Self { api, name: format!("{}-state", election.lease), namespace }
    }

    fn failed(&self, error: &kube::Error, verb: &str) -> io::Error {
        let namespace = &self.namespace;
        let rule = Rule { group: "", resource: "configmaps", verbs: &[verb], namespace };
        io::Error::other(explain(error, &rule))
    }

    async fn read(&self) -> io::Result<Snapshots> {
        let found = self.api.get_opt(&self.name).await;
        let found = found.map_err(|error| self.failed(&error, "get"))?;
        Ok(found.and_then(|map| map.data).unwrap_or_default())
    }

    async fn write(&self, snapshots: Snapshots) -> io::Result<()> {
        let patch = Patch::Merge(json!({"data": snapshots}));
        match self.api.patch(&self.name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(self.failed(&error, "patch")),
        }
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
            data: Some(snapshots),
            ..ConfigMap::default()
        };
        let created = self.api.create(&PostParams::default(), &map).await;
        created.map(|_| ()).map_err(|error| self.failed(&error, "create"))
    }
}

impl SnapshotStore for StateMap {
    fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
        Box::pin(self.read())
    }

    fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.write(snapshots))
    }
}
