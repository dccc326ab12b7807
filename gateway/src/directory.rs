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
    known: BTreeMap<(Arc<str>, SocketAddr), Known>,
}

struct Known {
    sources: BTreeSet<Source>,
    probe: AbortHandle,
}

impl Directory {
    pub(crate) fn add(&self, pool: &Arc<Pool>, source: Source, address: SocketAddr) {
        let mut inner = self.inner.lock();
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
        let key = (Arc::clone(&pool.name), address);
        let Some(known) = inner.known.get_mut(&key) else { return };
        known.sources.remove(&source);
        if known.sources.is_empty() {
            known.probe.abort();
            inner.known.remove(&key);
            pool.remove_endpoint(address);
        }
    }

    /// Takes away all that `source` knows of a pool.
    pub(crate) fn remove_all(&self, pool: &Arc<Pool>, source: Source) {
        let known: Vec<_> = {
            let inner = self.inner.lock();
            let own = inner.known.keys().filter(|(name, _)| *name == pool.name);
            own.map(|(_, address)| *address).collect()
        };
        for address in known {
            self.remove(pool, source, address);
        }
    }
}
