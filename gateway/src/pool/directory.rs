//! Which endpoints there are, by whom they are known, and their probes.
//!
//! An endpoint stays as long as one of its sources has it, and is probed all the while.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};

use crate::pool::Pool;
use crate::pool::probe::probe;

/// Who knows an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// The configuration.
    Fixed,
    /// The scaler, which started it.
    Scaler,
    /// Discovery.
    Found,
}

/// Every endpoint with its probe; dropping this ends the probes.
#[derive(Default)]
pub(crate) struct Directory {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    tasks: JoinSet<()>,
    /// Those that are configured. Who found an endpoint may still know a pool that no longer is.
    pools: BTreeMap<Arc<str>, Arc<Pool>>,
    known: BTreeMap<(Arc<str>, SocketAddr), Known>,
    /// Probes of endpoints that are known no longer and have requests in flight: these should not
    /// wait for a replica that is gone.
    leaving: BTreeMap<(Arc<str>, SocketAddr), AbortHandle>,
}

struct Known {
    sources: BTreeSet<Source>,
    probe: AbortHandle,
}

impl Inner {
    fn is_open(&self, pool: &Arc<Pool>) -> bool {
        self.pools.get(&pool.name).is_some_and(|open| Arc::ptr_eq(open, pool))
    }

    /// No source has it any more.
    fn forget(&mut self, pool: &Pool, key: (Arc<str>, SocketAddr)) {
        let Some(known) = self.known.remove(&key) else { return };
        self.leaving.retain(|_, probe| !probe.is_finished());
        if pool.remove_endpoint(key.1) {
            self.leaving.insert(key, known.probe);
        } else {
            known.probe.abort();
        }
    }
}

impl Directory {
    /// Takes endpoints of `pool` from now on.
    pub(crate) fn open(&self, pool: &Arc<Pool>) {
        self.inner.lock().pools.insert(Arc::clone(&pool.name), Arc::clone(pool));
    }

    /// Takes away all endpoints of `pool`, and takes no more.
    pub(crate) fn close(&self, pool: &Arc<Pool>) {
        let mut inner = self.inner.lock();
        if !inner.is_open(pool) {
            return;
        }
        inner.pools.remove(&pool.name);
        let mine = |(name, _): &(Arc<str>, SocketAddr)| *name == pool.name;
        let keys: Vec<_> = inner.known.keys().filter(|key| mine(key)).cloned().collect();
        for key in keys {
            inner.forget(pool, key);
        }
    }

    /// Nothing, where `pool` is not open.
    pub(crate) fn add(&self, pool: &Arc<Pool>, source: Source, address: SocketAddr) {
        let mut inner = self.inner.lock();
        if !inner.is_open(pool) {
            return;
        }
        let key = (Arc::clone(&pool.name), address);
        if let Some(known) = inner.known.get_mut(&key) {
            known.sources.insert(source);
            return;
        }
        if let Some(probe) = inner.leaving.remove(&key) {
            probe.abort();
        }
        pool.add_endpoint(address);
        let probe = inner.tasks.spawn(probe(Arc::clone(pool), address));
        inner.known.insert(key, Known { sources: [source].into(), probe });
        while inner.tasks.try_join_next().is_some() {}
    }

    pub(crate) fn remove(&self, pool: &Arc<Pool>, source: Source, address: SocketAddr) {
        let mut inner = self.inner.lock();
        if !inner.is_open(pool) {
            return;
        }
        let key = (Arc::clone(&pool.name), address);
        let Some(known) = inner.known.get_mut(&key) else { return };
        known.sources.remove(&source);
        if known.sources.is_empty() {
            inner.forget(pool, key);
        }
    }
}
