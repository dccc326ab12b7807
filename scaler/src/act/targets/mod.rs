//! Scale targets, which start and stop replicas.
//!
//! A target shows its replicas and carries out the loop's orders, in tasks of its own: no call waits.
//! It decides nothing, and does not know the loop.
//!
//! Three things are called a target: the configuration (`forebay_config::Target`), the interface that the
//! loop uses (`ScaleTarget`), and the target of one pool, whatever its kind (`PoolTarget`). The target
//! concurrency (`targetConcurrency`) is none of them; the decision calls it `per_replica`.
//!
//! A new kind of target needs
//! - a file here, with a type that implements `ScaleTarget`, and its `mod` below;
//! - a variant of `PoolTarget` and its arms in `pool_target.rs`. `PoolTarget::start` receives the pool's
//!   configuration and a Kubernetes cluster. An address is a setting of the target; a token comes from a
//!   file that a setting names, like `bearerTokenFile` in `config/src/types/prometheus.rs`;
//! - a library that it needs: in `Cargo.toml` of the workspace and of this crate;
//! - a variant of `forebay_config::Target` with its settings in `config/src/types/target.rs`, which
//!   `config/src/lib.rs` re-exports, the matches on it in `config/src/types/pool.rs`, a check in
//!   `config/src/check/pool.rs`, and in `config/src/check/across.rs` if two pools can't share its
//!   workload;
//! - an example in `config/examples/`, and then
//!   `UPDATE_DOCS=1 cargo test -p forebay-config --test reference`;
//! - an arm in `run/pool/hung.rs`, which says when a replica hangs, if the target can replace one;
//! - an arm of `needs_cluster` in `src/serve.rs`;
//! - permissions in `deploy/chart/`, if it calls the API server.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_base::backoff::{Backoff, Spread};
use forebay_config::Millis;
use forebay_signals::ProcessEnd;

use crate::clock::epoch_time;
use crate::decide::{Condition, Override};

mod keda;
mod kubernetes;
mod pool_target;
mod ports;
pub mod processes;
mod start_failure;

pub(crate) use pool_target::PoolTarget;

/// Pauses before a replica that died is started again, and before the API server is asked again.
const RESTARTS: Backoff =
    Backoff::new(Duration::from_secs(1), Duration::from_secs(60), Spread::Around);

/// Starts and stops replicas, as the loop orders.
pub(crate) trait ScaleTarget {
    /// Sets the number of replicas that are not stopping: the wanted ones and those that drain.
    /// Called at every step.
    fn ensure(&self, count: u32);
    /// A gateway found this replica healthy.
    fn ready(&self, _id: &str) {}
    /// This replica is drained and has to stop.
    fn stop(&self, id: &str);
    /// These replicas, by their ids, have to be ended and started anew. Called at every step, before
    /// [`ScaleTarget::ensure`].
    fn replace(&self, _hung: &BTreeMap<String, Hung>) {}
    /// Takes a stop back. Returns whether the replica was still there.
    fn recall(&self, _id: &str) -> bool {
        false
    }
    /// Whether a decision has any effect.
    fn scales(&self) -> bool {
        true
    }
    /// Replicas beyond the requested ones, which come and go on their own: a rollout's.
    fn surplus(&self) -> u32 {
        0
    }
    /// An operator's override at the target itself.
    fn operator_override(&self) -> Override {
        Override::None
    }
    /// Another scaler decides from now on: earlier orders no longer count.
    fn stand_by(&self) {}
    /// The decision behind the next [`ScaleTarget::ensure`], in one sentence.
    fn decided(&self, _sentence: &str) {}
    /// No replica can be started, in one sentence for an operator; `None` once that is over. Called at
    /// each change.
    fn starts_fail(&self, _sentence: Option<&str>) {}
    /// The reason why it can't carry out its orders, in words.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// The replicas that the loop may drain.
    fn drains(&self) -> Drains {
        Drains::Each
    }
}

/// A replica that has to be ended and started anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hung {
    /// The start that hangs, by [`ReplicaStatus::started_at`]; a later start is not meant.
    pub started_at: Option<Millis>,
    /// The reason, as the end of a sentence: "answered nothing for 60 s".
    pub why: String,
}

/// The replicas that the loop may drain, and then have the target stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drains {
    /// Any replica on its own.
    Each,
    /// All or none, and another party stops them: drained ones wait under the barrier until they
    /// are gone, or wanted again.
    All,
    /// None: another party scales, and the replicas are only watched.
    Never,
}

/// A replica as the target knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its name; never used twice in a pool.
    pub id: String,
    /// The address where it listens, or will listen, as soon as that is known.
    pub address: Option<SocketAddr>,
    /// Its condition, as far as the target can tell.
    pub condition: Condition,
    /// Details for people ("exited with status 1, again in 4 s").
    pub reason: String,
    /// The end of its last process and the address where that listened, until the next start.
    pub ended: Option<(SocketAddr, ProcessEnd)>,
    /// When it was requested; `None` if the target knows no better time than its first appearance.
    pub requested_at: Option<Millis>,
    /// It was there before this process: the duration of its start is unknown.
    pub inherited: bool,
    /// When it was assigned to a machine, if that is a step.
    pub scheduled_at: Option<Millis>,
    /// When it was last started.
    pub started_at: Option<Millis>,
    /// It was to stop, but stays for good: another replica was stopped instead.
    pub spared: bool,
    /// The target's own order of stopping: the highest rank stops first, and of equals the one with
    /// the least load.
    pub rank: u32,
    /// The failure of its starts, while the next one is expected to fail too.
    pub start_failure: Option<StartFailure>,
}

/// Starts of a replica that fail, each like the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// The predicate of a sentence about the replica, which clients may read: without names.
    pub reason: String,
    /// The last line of its output, or Kubernetes' message.
    pub detail: String,
    /// When the next start begins; `None` if that is not known, or if one is under way.
    pub next_try: Option<Millis>,
}

impl ReplicaStatus {
    /// A replica of which only the request is known.
    pub fn requested(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            address: None,
            condition: Condition::Pending,
            reason: "requested".to_owned(),
            ended: None,
            requested_at: None,
            inherited: false,
            scheduled_at: None,
            started_at: None,
            spared: false,
            rank: 0,
            start_failure: None,
        }
    }
}

/// Every replica by its id.
pub type Replicas = Arc<BTreeMap<String, ReplicaStatus>>;
