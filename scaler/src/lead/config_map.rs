//! Snapshots in ConfigMaps, where the next leader finds them.
//!
//! A ConfigMap holds at most a mebibyte, so there are several: the pool's name determines the one
//! that holds its snapshot. A thousand pools fit with all that can be learned of them. The API server
//! refuses a snapshot that does not fit; this is logged and tried again, and the old one stays.

use std::collections::BTreeMap;
use std::io;

use forebay_config::LeaderElection;
use forebay_discovery::Cluster;
use forebay_discovery::error::{Rule, explain};
use futures_util::future::{BoxFuture, join_all, try_join_all};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::lead::store::{SnapshotStore, Snapshots};

/// The number that the chart's Role names. With another number, older snapshots are not found.
const SHARDS: u32 = 32;

/// ConfigMaps with a key for each pool.
pub(crate) struct StateMaps {
    api: Api<ConfigMap>,
    name: String,
    namespace: String,
}

impl StateMaps {
    /// ConfigMaps beside the Lease, named after it.
    pub(crate) fn new(election: &LeaderElection, cluster: &Cluster) -> Self {
        let namespace = election.namespace.clone().unwrap_or_else(|| cluster.namespace.clone());
        let api = Api::namespaced(cluster.client.clone(), &namespace);
        Self { api, name: format!("{}-state", election.lease), namespace }
    }

    fn shard(&self, shard: u32) -> String {
        format!("{}-{shard}", self.name)
    }

    fn failed(&self, error: &kube::Error, verb: &str) -> io::Error {
        let namespace = &self.namespace;
        let rule = Rule { group: "", resource: "configmaps", verbs: &[verb], namespace };
        io::Error::other(explain(error, &rule))
    }

    async fn read(&self) -> io::Result<Snapshots> {
        let shards = (0..SHARDS).map(|shard| async move {
            let found = self.api.get_opt(&self.shard(shard)).await;
            let found = found.map_err(|error| self.failed(&error, "get"))?;
            Ok::<_, io::Error>(found.and_then(|map| map.data).unwrap_or_default())
        });
        Ok(try_join_all(shards).await?.into_iter().flatten().collect())
    }

    /// Writes every shard, even if others fail.
    async fn write(&self, snapshots: Snapshots) -> io::Result<()> {
        let mut shards = BTreeMap::<_, Snapshots>::new();
        for (pool, text) in snapshots {
            shards.entry(shard_of(&pool)).or_default().insert(pool, text);
        }
        let all = shards.into_iter().map(|(shard, snapshots)| async move {
            let (name, pools) = (self.shard(shard), snapshots.len());
            self.write_shard(&name, snapshots).await.map_err(|error| {
                io::Error::other(format!("ConfigMap {name}, with {pools} pools: {error}"))
            })
        });
        join_all(all).await.into_iter().collect()
    }

    async fn write_shard(&self, name: &str, snapshots: Snapshots) -> io::Result<()> {
        let patch = Patch::Merge(json!({"data": snapshots}));
        match self.api.patch(name, &PatchParams::default(), &patch).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(self.failed(&error, "patch")),
        }
        let map = ConfigMap {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            data: Some(snapshots),
            ..ConfigMap::default()
        };
        let created = self.api.create(&PostParams::default(), &map).await;
        created.map(|_| ()).map_err(|error| self.failed(&error, "create"))
    }
}

/// The shard of a pool's snapshot: FNV-1a of its name, folded. Must never change, or older snapshots
/// are not found.
fn shard_of(pool: &str) -> u32 {
    let hash = pool
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) % SHARDS
}

impl SnapshotStore for StateMaps {
    fn load(&self) -> BoxFuture<'_, io::Result<Snapshots>> {
        Box::pin(self.read())
    }

    fn save(&self, snapshots: Snapshots) -> BoxFuture<'_, io::Result<()>> {
        Box::pin(self.write(snapshots))
    }
}

#[cfg(test)]
mod tests {
    use http::Method;
    use proptest::prelude::*;

    use super::*;
    use crate::fake_api::{FakeApi, Fault};

    const MAPS: &str = "/api/v1/namespaces/models/configmaps/";
    /// More than is learned of any pool (`decide::snapshot` tests it).
    const LARGEST: usize = 16_384;

    fn store(api: &FakeApi) -> StateMaps {
        StateMaps::new(&LeaderElection::default(), &api.cluster())
    }

    fn snapshots(names: impl Iterator<Item = String>, size: usize) -> Snapshots {
        names.map(|name| (name, "x".repeat(size))).collect()
    }

    #[tokio::test]
    async fn a_thousand_pools_fit_with_all_that_can_be_learned_of_them() {
        let api = FakeApi::default();
        let all = snapshots((0..1_000).map(|n| format!("pool-{n}")), LARGEST);
        store(&api).save(all.clone()).await.expect("they fit");
        assert_eq!(store(&api).load().await.expect("there"), all);
        assert_eq!(api.under(MAPS).len(), SHARDS as usize);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn no_shard_of_a_thousand_pools_is_too_large(seed: u64, family in 0..4u32) {
            let mut shards = [0_usize; SHARDS as usize];
            for n in 0..1_000_u64 {
                let name = match family {
                    0 => format!("llama-3-{}-{n}", seed % 1_000),
                    1 => format!("{n:04}.{}", seed % 1_000),
                    2 => format!("{:x}", seed.wrapping_mul(2 * n + 1)),
                    _ => format!("team-{}-model-{}", n % 40, n / 40 + seed % 7),
                };
                shards[shard_of(&name) as usize] += LARGEST;
            }
            prop_assert!(shards.iter().all(|bytes| *bytes < 1 << 20), "{shards:?}");
        }
    }

    #[tokio::test]
    async fn a_snapshot_that_does_not_fit_is_reported_and_the_old_one_stays() {
        let api = FakeApi::default();
        let before = snapshots((0..1_000).map(|n| format!("pool-{n}")), 100);
        store(&api).save(before.clone()).await.expect("they fit");
        let full = shard_of("pool-0");
        let larger = before.keys().map(|pool| {
            let size = if shard_of(pool) == full { 1 << 16 } else { 200 };
            (pool.clone(), "y".repeat(size))
        });
        let larger: Snapshots = larger.collect();
        let error = store(&api).save(larger.clone()).await.expect_err("one is full").to_string();
        let wanted = format!("ConfigMap forebay-scaler-state-{full}, with ");
        assert!(error.starts_with(&wanted) && error.ends_with("refused with 422"), "{error}");
        let kept = store(&api).load().await.expect("there");
        for (pool, text) in &kept {
            let all = if shard_of(pool) == full { &before } else { &larger };
            assert!(text == &all[pool], "{pool}");
        }
        assert_eq!(kept.len(), 1_000);
    }

    #[tokio::test]
    async fn what_can_not_be_read_whole_is_not_read_at_all() {
        let api = FakeApi::default();
        let all = snapshots((0..100).map(|n| format!("pool-{n}")), 10);
        store(&api).save(all).await.expect("they fit");
        api.judge(|call| {
            let one = call.method == Method::GET && call.path.ends_with("-state-7");
            one.then_some(Fault::Status(500))
        });
        store(&api).load().await.expect_err("an override may be in it");
    }
}
