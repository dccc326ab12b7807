//! A workload in Kubernetes, by its `/scale`: Deployment, StatefulSet, LeaderWorkerSet, or any kind
//! that has the subresource.
//!
//! One task a pool (`worker`) watches the workload and its pods, and writes the replica count when
//! the loop wants another. All the loop sees is here: statuses, and orders given at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_config as config;
use forebay_discovery::Cluster;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Drains, Hung, Replicas, Target};
use crate::decide::Override;

mod events;
mod pods;
mod worker;
pub(super) mod workload;

/// A workload that is scaled. Dropping it ends the task, and leaves everything as it is.
pub(crate) struct Kubernetes {
    orders: watch::Sender<Orders>,
    /// The orders as they grow within one step of the loop. They are given whole: a count without
    /// those that were drained for it would let the controller take others.
    next: Mutex<Orders>,
    seen: watch::Receiver<Seen>,
    /// What the loop is shown changes only together with this.
    replicas: watch::Receiver<Replicas>,
    trouble: Arc<Mutex<Option<String>>>,
    answered: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

/// What the loop wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Orders {
    /// So many replicas; `None` as long as nothing was decided here.
    count: Option<u32>,
    /// Drained replicas, which are to be those that go.
    stopping: BTreeSet<String>,
    /// Replicas whose pods are of no use any more, and are to be deleted for others.
    hung: BTreeMap<String, Hung>,
    /// The decision behind the count, as a sentence.
    why: String,
}

/// What is known of the workload.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The workload and its pods have been read once.
    known: bool,
    /// Its replicas as they stand in its specification.
    replicas: u32,
    /// Pods beyond those, which a rollout has on top.
    surplus: u32,
    /// Who else is in charge, by the workload's annotations.
    order: Override,
}

impl Kubernetes {
    /// Begins to watch. The API server may be away.
    ///
    /// # Errors
    /// There is no cluster to speak with.
    pub(crate) fn start(
        pool: &config::Pool,
        settings: &config::Kubernetes,
        cluster: Option<&Cluster>,
    ) -> io::Result<Self> {
        let cluster = cluster.cloned().ok_or_else(|| io::Error::other("no Kubernetes cluster"))?;
        let (orders, given) = watch::channel(Orders::default());
        let (told, seen) = watch::channel(Seen::default());
        let (shown, replicas) = watch::channel(Replicas::default());
        let (trouble, answered) = (Arc::default(), Arc::<AtomicBool>::default());
        let worker = worker::Worker::new(
            pool,
            settings,
            cluster,
            worker::Told {
                seen: told,
                replicas: shown,
                trouble: Arc::clone(&trouble),
                answered: Arc::clone(&answered),
            },
            given,
        );
        let task = AbortOnDropHandle::new(tokio::spawn(worker.run()));
        Ok(Self { orders, next: Mutex::default(), seen, replicas, trouble, answered, _task: task })
    }

    /// Its replicas as they change. What was asked for and has no pod yet is among them.
    pub(crate) fn replicas(&self) -> watch::Receiver<Replicas> {
        self.replicas.clone()
    }

    /// The replicas now; `None` before they have been read once.
    pub(crate) fn statuses(&self) -> Option<Replicas> {
        self.seen.borrow().known.then(|| Arc::clone(&self.replicas.borrow()))
    }

    /// The API server was asked for the workload and has answered, be it that it is not there or not
    /// to be seen: more is not to be waited for.
    pub(crate) fn was_asked_for(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn give(&self, next: &Orders) {
        self.orders.send_if_modified(|orders| {
            let new = orders != next;
            if new {
                orders.clone_from(next);
            }
            new
        });
    }
}

impl Target for Kubernetes {
    fn ensure(&self, count: u32) {
        let there = Arc::clone(&self.replicas.borrow());
        let mut next = self.next.lock();
        next.count = Some(count);
        next.stopping.retain(|id| there.contains_key(id));
        self.give(&next);
    }

    fn stop(&self, id: &str) {
        self.next.lock().stopping.insert(id.to_owned());
    }

    fn replace(&self, hung: &BTreeMap<String, Hung>) {
        self.next.lock().hung.clone_from(hung);
    }

    fn recall(&self, id: &str) -> bool {
        let there = self.replicas.borrow().get(id).is_some_and(pods::is_going_on);
        if there {
            self.next.lock().stopping.remove(id);
        }
        there
    }

    fn drains(&self) -> Drains {
        // Somebody else is in charge: what they want to be there is not taken out of service.
        if self.seen.borrow().order == Override::None { Drains::Each } else { Drains::Never }
    }

    fn surplus(&self) -> u32 {
        self.seen.borrow().surplus
    }

    fn order(&self) -> Override {
        self.seen.borrow().order
    }

    fn rest(&self) {
        let mut next = self.next.lock();
        *next = Orders::default();
        self.give(&next);
    }

    fn decided(&self, sentence: &str) {
        sentence.clone_into(&mut self.next.lock().why);
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

#[cfg(test)]
mod tests;
