//! Another configuration, while decisions go on: a pool is who its name says.

use std::collections::BTreeSet;
use std::sync::Arc;

use forebay_config::Config;

use super::Loop;
use super::driven::Driven;
use crate::act::targets::Driver;
use crate::observe::sources::Sources;
use crate::run::metric::Metrics;
use crate::run::pool::PoolLoop;

impl Loop {
    /// Goes on by another configuration; returns the places of new pools.
    pub(super) fn reload(&mut self, config: Arc<Config>) -> Vec<usize> {
        let stale_after_ms = config.scaler.stale_after.as_millis() as u64;
        let mut before = std::mem::take(&mut self.pools);
        let mut added = Vec::new();
        for pool in &config.pools {
            let same = before.iter().position(|driven| driven.pool.name == pool.name);
            let old = self.config.pools.iter().find(|it| it.name == pool.name);
            if let Some(at) = same {
                let mut driven = before.swap_remove(at);
                let last = &self.config;
                if old != Some(pool)
                    || last.prometheus != config.prometheus
                    || last.scaler.stale_after != config.scaler.stale_after
                {
                    if old.is_some_and(|old| old.target != pool.target) {
                        let name = &pool.name;
                        tracing::warn!("{name}: another target is taken with the next start");
                    }
                    driven.pool.reload(pool, &config.prometheus, stale_after_ms);
                    let wanted = driven.pool.wanted();
                    driven.sources = Sources::start(pool, wanted, &self.client, self.clock);
                }
                self.pools.push(driven);
                continue;
            }
            let target = match Driver::start(pool, self.cluster.as_ref()) {
                Ok(target) => target,
                Err(error) => {
                    tracing::error!("pools: target of pool `{}`: {error}", pool.name);
                    continue;
                }
            };
            let mut decides = PoolLoop::new(pool, &config.prometheus, stale_after_ms);
            if self.loading.is_some() {
                decides.await_restore();
            }
            let sources = Sources::start(pool, decides.wanted(), &self.client, self.clock);
            let (metrics, unread) = (Metrics::register(&pool.name), BTreeSet::new());
            added.push(self.pools.len());
            self.pools.push(Driven { pool: decides, target, sources, metrics, unread });
        }
        for gone in before {
            let name = gone.pool.name.clone();
            tracing::info!("{name}: no longer configured, its replicas are stopped");
            self.leaving.spawn(async move { gone.target.shutdown().await });
        }
        self.config = config;
        if let Some(keda) = &self.keda {
            let by_keda = |it: &Driven| matches!(it.target, Driver::Keda(_));
            let asked =
                |name: &str| self.pools.iter().any(|it| it.pool.name == name && by_keda(it));
            keda.reload(&self.config, asked);
        } else if self.pools.iter().any(|it| matches!(it.target, Driver::Keda(_))) {
            tracing::warn!("KEDA is answered from the next start on: no pool had it as a target");
        }
        let names: BTreeSet<_> = self.pools.iter().map(|it| it.pool.name.clone()).collect();
        self.last.retain(|name, _| names.contains(name));
        self.decisions.keep(|name| names.contains(name));
        self.publisher.publish(self.last.clone());
        self.all_touched = true;
        added
    }
}
