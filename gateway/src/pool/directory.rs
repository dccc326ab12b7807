//! Every endpoint with the sources that list it, and its probe.
//!
//! An endpoint stays, and is probed, while at least one source lists it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::pool::Pool;
use crate::pool::probe::{Rounds, probe};

/// A source of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The configuration.
    Fixed,
    /// The scaler, which started it.
    Scaler,
    /// Pods, EndpointSlices or DNS.
    Discovery,
}

/// Every endpoint of every pool. Dropping this ends the probes.
pub(crate) struct Directory {
    inner: Mutex<Inner>,
    /// The probes of all endpoints that answer.
    rounds: Arc<Rounds>,
}

impl Default for Directory {
    fn default() -> Self {
        Self { inner: Mutex::default(), rounds: Arc::new(Rounds::new(Instant::now())) }
    }
}

#[derive(Default)]
struct Inner {
    tasks: JoinSet<()>,
    /// The configured pools. A source may still report to a pool that was removed.
    pools: BTreeMap<Arc<str>, Arc<Pool>>,
    listed: BTreeMap<Key, Listed>,
    /// Probes of endpoints that their last source has removed while requests are in flight there.
    /// If such a replica dies, the probe notices it, and the requests go elsewhere.
    leaving: BTreeMap<Key, AbortHandle>,
}

/// A pool's name, and an endpoint of it.
type Key = (Arc<str>, SocketAddr);

struct Listed {
    sources: BTreeSet<Source>,
    probe: AbortHandle,
}

impl Inner {
    fn is_open(&self, pool: &Arc<Pool>) -> bool {
        self.pools.get(&pool.name).is_some_and(|open| Arc::ptr_eq(open, pool))
    }

    /// Removes an endpoint whose last source is gone.
    fn forget(&mut self, pool: &Pool, key: Key) {
        let Some(listed) = self.listed.remove(&key) else { return };
        self.leaving.retain(|_, probe| !probe.is_finished());
        if pool.remove_endpoint(key.1) {
            self.leaving.insert(key, listed.probe);
        } else {
            listed.probe.abort();
        }
    }
}

impl Directory {
    /// Takes endpoints of `pool` from now on.
    pub(crate) fn open(&self, pool: &Arc<Pool>) {
        self.inner.lock().pools.insert(Arc::clone(&pool.name), Arc::clone(pool));
    }

    /// Removes all endpoints of `pool`, and takes no more.
    pub(crate) fn close(&self, pool: &Arc<Pool>) {
        let mut inner = self.inner.lock();
        if !inner.is_open(pool) {
            return;
        }
        inner.pools.remove(&pool.name);
        let mine = |(name, _): &Key| *name == pool.name;
        let keys: Vec<_> = inner.listed.keys().filter(|key| mine(key)).cloned().collect();
        for key in keys {
            inner.forget(pool, key);
        }
    }

    /// Adds a source of an endpoint. Does nothing if `pool` is not open.
    pub(crate) fn add(&self, pool: &Arc<Pool>, source: Source, address: SocketAddr) {
        let mut inner = self.inner.lock();
        if !inner.is_open(pool) {
            return;
        }
        let key = (Arc::clone(&pool.name), address);
        if let Some(listed) = inner.listed.get_mut(&key) {
            listed.sources.insert(source);
            return;
        }
        if let Some(probe) = inner.leaving.remove(&key) {
            probe.abort();
        }
        pool.add_endpoint(address);
        if inner.tasks.is_empty() {
            let rounds = Arc::clone(&self.rounds);
            inner.tasks.spawn(async { match rounds.make().await {} });
        }
        let probe = inner.tasks.spawn(probe(Arc::clone(pool), address, Arc::clone(&self.rounds)));
        inner.listed.insert(key, Listed { sources: [source].into(), probe });
        while inner.tasks.try_join_next().is_some() {}
    }

    /// Removes a source of an endpoint, and the endpoint with its last source.
    pub(crate) fn remove(&self, pool: &Arc<Pool>, source: Source, address: SocketAddr) {
        let mut inner = self.inner.lock();
        if !inner.is_open(pool) {
            return;
        }
        let key = (Arc::clone(&pool.name), address);
        let Some(listed) = inner.listed.get_mut(&key) else { return };
        listed.sources.remove(&source);
        if listed.sources.is_empty() {
            inner.forget(pool, key);
        }
    }
}
