//! Reload of the configuration while decisions go on. A pool is identified by its name.

use std::collections::BTreeSet;
use std::sync::Arc;

use forebay_config::Config;

use super::Loop;
use crate::act::targets::PoolTarget;
use crate::observe::sources::Sources;
use crate::run::managed_pool::ManagedPool;

impl Loop {
    /// Applies another configuration; returns the positions of new pools.
    pub(super) fn reload(&mut self, config: Arc<Config>) -> Vec<usize> {
        let stale_after = config.scaler.stale_after.into();
        let mut before = std::mem::take(&mut self.pools);
        let mut added = Vec::new();
        for pool in &config.pools {
            let same = before.iter().position(|managed| managed.pool.name == pool.name);
            let old = self.config.pools.iter().find(|old| old.name == pool.name);
            if let Some(at) = same {
                let mut managed = before.swap_remove(at);
                let last = &self.config;
                if old != Some(pool)
                    || last.prometheus != config.prometheus
                    || last.scaler.stale_after != config.scaler.stale_after
                {
                    if managed.target_in_force != pool.target {
                        let name = &pool.name;
                        tracing::warn!("{name}: the changed target is used from the next start on");
                    }
                    // Triggers may be gone, and the next decision follows at once.
                    managed.metrics.withdraw();
                    managed.metrics.configured(&pool.scaling);
                    managed.pool.reload(pool, &config.prometheus, stale_after);
                    let wanted = managed.pool.wanted();
                    managed.sources =
                        Sources::start(pool, wanted, &self.context.client, self.context.clock);
                }
                self.pools.push(managed);
                continue;
            }
            let mut managed = match ManagedPool::start(pool, &config, &self.context) {
                Ok(managed) => managed,
                Err(error) => {
                    tracing::error!("pools: target of pool `{}`: {error}", pool.name);
                    continue;
                }
            };
            if self.memory.loading.is_some() {
                managed.pool.await_restore();
            }
            added.push(self.pools.len());
            self.pools.push(managed);
        }
        for gone in before {
            let name = gone.pool.name.clone();
            tracing::info!("{name}: no longer configured, its replicas are stopped");
            self.leaving.spawn(async move { gone.target.shutdown().await });
        }
        self.config = config;
        if let Some(keda) = &self.outputs.keda {
            let by_keda = |managed: &ManagedPool| matches!(managed.target, PoolTarget::Keda(_));
            let is_managed = |name: &str| {
                self.pools.iter().any(|managed| managed.pool.name == name && by_keda(managed))
            };
            keda.reload(&self.config, is_managed);
        } else if self.pools.iter().any(|managed| matches!(managed.target, PoolTarget::Keda(_))) {
            tracing::warn!("KEDA is answered from the next start on: no pool had it as its target");
        }
        let names: BTreeSet<_> =
            self.pools.iter().map(|managed| managed.pool.name.clone()).collect();
        self.outputs.last.retain(|name, _| names.contains(name));
        self.outputs.decisions.keep(|name| names.contains(name));
        self.outputs.board.configure(&self.config);
        self.outputs.publisher.publish(self.outputs.last.clone());
        self.due.all = true;
        added
    }
}
