//! Persistence: what was learned is read before the first decision, and saved from then on.

use std::sync::Arc;

use tokio_util::task::AbortOnDropHandle;

use super::Loop;
use crate::lead::store::{self, Pace, Saver, SnapshotStore, Snapshots};
use crate::run::managed_pool::ManagedPool;

/// The snapshots of what was learned.
pub(in crate::run) struct Persistence {
    pub(in crate::run) store: Option<Arc<dyn SnapshotStore>>,
    pub(in crate::run) saver: Option<Saver>,
    /// The task that reads the snapshots, while they can't be read.
    pub(in crate::run) loading: Option<AbortOnDropHandle<Snapshots>>,
    pub(in crate::run) pace: Pace,
    /// Whether snapshots have to be read before the next decision.
    pub(in crate::run) due: bool,
}

impl Persistence {
    pub(in crate::run) fn new(store: Option<Arc<dyn SnapshotStore>>) -> Self {
        Self { store, saver: None, loading: None, pace: Pace::new(), due: true }
    }
}

impl Loop {
    /// Restores the learned figures, of this scaler or of an earlier leader.
    pub(super) async fn restore(&mut self) {
        self.memory.due = false;
        self.memory.saver = None;
        self.memory.loading = None;
        let Some(store) = &self.memory.store else { return };
        match store::load(&**store).await {
            Ok(known) => self.restored(known),
            Err(error) => {
                tracing::warn!(
                    "learned figures can't be read, and nothing scales down until they are: \
                     {error}"
                );
                self.pools.iter_mut().for_each(|managed| managed.pool.await_restore());
                let load = store::load_until_read(Arc::clone(store));
                self.memory.loading = Some(AbortOnDropHandle::new(tokio::spawn(load)));
            }
        }
    }

    pub(super) fn restored(&mut self, known: Snapshots) {
        self.learned(&known);
        // Not earlier: a save would overwrite snapshots that were not read yet.
        self.save_from(known);
    }

    /// Takes over learned figures.
    pub(super) fn learned(&mut self, known: &Snapshots) {
        self.memory.loading = None;
        for managed in &mut self.pools {
            managed.pool.restore(known.get(&managed.pool.name).map(String::as_str));
        }
        self.due.all = true;
    }

    /// Starts to save. `kept` is in the store already.
    pub(super) fn save_from(&mut self, kept: Snapshots) {
        self.memory.saver =
            self.memory.store.as_ref().map(|store| Saver::start(Arc::clone(store), kept));
        self.memory.pace.hurry();
    }

    /// Saves what was learned.
    pub(super) fn keep(&self) {
        if let Some(saver) = self.memory.saver.as_ref().filter(|_| self.leads()) {
            let text = |managed: &ManagedPool| (managed.pool.name.clone(), managed.pool.snapshot());
            saver.save(self.pools.iter().map(text).collect::<Snapshots>());
        }
    }
}

/// Waits until the snapshots are read. Cancel-safe.
pub(super) async fn loaded(loading: &mut Option<AbortOnDropHandle<Snapshots>>) -> Snapshots {
    if let Some(loading) = loading
        && let Ok(known) = loading.await
    {
        return known;
    }
    std::future::pending().await
}
