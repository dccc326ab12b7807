//! A workload in Kubernetes, by its `/scale`: Deployment, StatefulSet, LeaderWorkerSet, or any kind
//! that has the subresource.
//!
//! One task a pool (`worker`) watches the workload and its pods, and writes the replica count when
//! the loop wants another. All the loop sees is here: statuses, and orders given at once.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use forebay_config as config;
use forebay_discovery::Cluster;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::{Drains, Replicas, Target};
use crate::core::Override;

mod events;
mod pods;
mod worker;
pub(super) mod workload;

/// A workload that is scaled. Dropping it ends the task, and leaves everything as it is.
pub(crate) struct Kubernetes {
    orders: watch::Sender<Orders>,
    seen: watch::Receiver<Seen>,
    /// What the loop is shown changes only together with this.
    replicas: watch::Receiver<Replicas>,
    trouble: Arc<Mutex<Option<String>>>,
    _task: AbortOnDropHandle<()>,
}

/// What the loop wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Orders {
    /// So many replicas; `None` as long as nothing was decided here.
    count: Option<u32>,
    /// Drained replicas, which are to be those that go.
    stopping: BTreeSet<String>,
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
        let trouble = Arc::new(Mutex::new(None));
        let worker = worker::Worker::new(
            pool,
            settings,
            cluster,
            worker::Told { seen: told, replicas: shown, trouble: Arc::clone(&trouble) },
            given,
        );
        let task = AbortOnDropHandle::new(tokio::spawn(worker.run()));
        Ok(Self { orders, seen, replicas, trouble, _task: task })
    }

    /// Its replicas as they change. What was asked for and has no pod yet is among them.
    pub(crate) fn replicas(&self) -> watch::Receiver<Replicas> {
        self.replicas.clone()
    }

    /// The replicas now; `None` before they have been read once.
    pub(crate) fn statuses(&self) -> Option<Replicas> {
        self.seen.borrow().known.then(|| Arc::clone(&self.replicas.borrow()))
    }

    fn give(&self, change: impl FnOnce(&mut Orders)) {
        self.orders.send_if_modified(|orders| {
            let before = orders.clone();
            change(orders);
            *orders != before
        });
    }
}

impl Target for Kubernetes {
    fn ensure(&self, count: u32) {
        let there = Arc::clone(&self.replicas.borrow());
        self.give(|orders| {
            orders.count = Some(count);
            orders.stopping.retain(|id| there.contains_key(id));
        });
    }

    fn stop(&self, id: &str) {
        self.give(|orders| {
            orders.stopping.insert(id.to_owned());
        });
    }

    fn recall(&self, id: &str) -> bool {
        let there = self.replicas.borrow().get(id).is_some_and(pods::is_going_on);
        if there {
            self.give(|orders| {
                orders.stopping.remove(id);
            });
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
        self.give(|orders| *orders = Orders::default());
    }

    fn decided(&self, sentence: &str) {
        self.give(|orders| orders.why = sentence.to_owned());
    }

    fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}
