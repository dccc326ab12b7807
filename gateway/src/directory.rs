//! Which endpoints there are, by whom they are known, and their probes.
//!
//! An endpoint stays as long as one of its sources has it, and is probed all the while.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinSet};

use crate::pool::Pool;
use crate::probe::probe;

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
}

struct Known {
    sources: BTreeSet<Source>,
    probe: AbortHandle,
}

impl Inner {
    fn is_open(&self, pool: &Arc<Pool>) -> bool {
        self.pools.get(&pool.name).is_some_and(|open| Arc::ptr_eq(open, pool))
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
        inner.known.retain(|(name, address), known| {
            let stays = *name != pool.name;
            if !stays {
                known.probe.abort();
                pool.remove_endpoint(*address);
            }
            stays
        });
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
            known.probe.abort();
            inner.known.remove(&key);
            pool.remove_endpoint(address);
        }
    }
}
