//! A workload in Kubernetes, through its `/scale`: a Deployment, StatefulSet, LeaderWorkerSet, or any
//! kind with that subresource.
//!
//! One task per pool (`worker`) watches the workload and its pods, and writes the replica count when
//! the loop wants another. The loop sees only this file: statuses, and orders that return at once.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_config as config;
use forebay_discovery::Cluster;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Drains, Hung, Replicas, ScaleTarget};
use crate::decide::Override;

mod events;
mod pods;
mod worker;
pub(super) mod workload;

/// A workload to scale. Dropping this ends the task, and leaves the workload as it is.
pub(crate) struct Kubernetes {
    orders: watch::Sender<WorkloadOrders>,
    /// The orders of the current step of the loop, until they are complete. They are sent whole: a
    /// count without the replicas drained for it would let the controller take others.
    next: Mutex<WorkloadOrders>,
    state: watch::Receiver<WorkloadState>,
    /// Changes only together with `state`.
    replicas: watch::Receiver<Replicas>,
    trouble: Arc<Mutex<Option<String>>>,
    answered: Arc<AtomicBool>,
    _task: AbortOnDropHandle<()>,
}

/// The orders of the loop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct WorkloadOrders {
    /// The replica count; `None` before the first decision here.
    count: Option<u32>,
    /// Drained replicas, which the workload's controller should take.
    stopping: BTreeSet<String>,
    /// Replicas whose pods hang, and are to be deleted so that others replace them.
    hung: BTreeMap<String, Hung>,
    /// The decision behind the count, as a sentence.
    why: String,
    /// The failure of the starts, as a sentence.
    failure: Option<String>,
}

/// The state of the workload, as last read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct WorkloadState {
    /// Whether the workload and its pods have been read once.
    known: bool,
    /// The replica count in its specification.
    replicas: u32,
    /// Pods beyond that count, as a rollout has them.
    surplus: u32,
    /// The override in the workload's annotations.
    operator_override: Override,
}

impl Kubernetes {
    /// Starts to watch. The API server may be unreachable.
    ///
    /// # Errors
    /// There is no cluster.
    pub(crate) fn start(
        pool: &config::Pool,
        settings: &config::Kubernetes,
        cluster: Option<&Cluster>,
    ) -> io::Result<Self> {
        let cluster = cluster.cloned().ok_or_else(|| io::Error::other("no Kubernetes cluster"))?;
        let (orders, given) = watch::channel(WorkloadOrders::default());
        let (state_sender, state) = watch::channel(WorkloadState::default());
        let (replicas_sender, replicas) = watch::channel(Replicas::default());
        let (trouble, answered) = (Arc::default(), Arc::<AtomicBool>::default());
        let worker = worker::Worker::new(
            pool,
            settings,
            cluster,
            worker::Published {
                state: state_sender,
                replicas: replicas_sender,
                trouble: Arc::clone(&trouble),
                answered: Arc::clone(&answered),
            },
            given,
        );
        let task = AbortOnDropHandle::new(tokio::spawn(worker.run()));
        Ok(Self { orders, next: Mutex::default(), state, replicas, trouble, answered, _task: task })
    }

    /// The replicas as they change, including requested ones that have no pod yet.
    pub(crate) fn replicas(&self) -> watch::Receiver<Replicas> {
        self.replicas.clone()
    }

    /// The replicas now; `None` before they have been read once.
    pub(crate) fn statuses(&self) -> Option<Replicas> {
        self.state.borrow().known.then(|| Arc::clone(&self.replicas.borrow()))
    }

    /// Whether the API server has answered a request for the workload, even if the workload does not
    /// exist or may not be read: there is nothing more to wait for.
    pub(crate) fn was_looked_up(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }

    fn give(&self, next: &WorkloadOrders) {
        self.orders.send_if_modified(|orders| {
            let new = orders != next;
            if new {
                orders.clone_from(next);
            }
            new
        });
    }
}

impl ScaleTarget for Kubernetes {
    fn ensure(&self, count: u32) {
        let known = Arc::clone(&self.replicas.borrow());
        let mut next = self.next.lock();
        next.count = Some(count);
        next.stopping.retain(|id| known.contains_key(id));
        self.give(&next);
    }

    fn stop(&self, id: &str) {
        self.next.lock().stopping.insert(id.to_owned());
    }

    fn replace(&self, hung: &BTreeMap<String, Hung>) {
        self.next.lock().hung.clone_from(hung);
    }

    fn recall(&self, id: &str) -> bool {
        let alive = self.replicas.borrow().get(id).is_some_and(pods::is_going_on);
        if alive {
            self.next.lock().stopping.remove(id);
        }
        alive
    }

    fn drains(&self) -> Drains {
        // With an override in the annotations, another party wants these replicas: drain none.
        if self.state.borrow().operator_override == Override::None {
            Drains::Each
        } else {
            Drains::Never
        }
    }

    fn surplus(&self) -> u32 {
        self.state.borrow().surplus
    }

    fn operator_override(&self) -> Override {
        self.state.borrow().operator_override
    }

    fn stand_by(&self) {
        let mut next = self.next.lock();
        *next = WorkloadOrders::default();
        self.give(&next);
    }

    fn decided(&self, sentence: &str) {
        sentence.clone_into(&mut self.next.lock().why);
    }

    fn starts_fail(&self, sentence: Option<&str>) {
        self.next.lock().failure = sentence.map(str::to_owned);
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

#[cfg(test)]
mod tests;
