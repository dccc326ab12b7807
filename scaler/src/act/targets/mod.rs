//! Scale targets: what starts and stops replicas.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use forebay_signals::ProcessEnd;
use serde::{Deserialize, Serialize};

use crate::clock::epoch_ms;
use crate::decide::Override;

mod backoff;
mod driver;
mod keda;
mod kubernetes;
mod ports;
pub mod processes;

pub(crate) use driver::Driver;

/// What starts and stops replicas, as far as the loop needs it.
pub(crate) trait Target {
    /// So many replicas that were not told to stop: the wanted ones and those that still drain.
    /// Said at every step.
    fn ensure(&self, count: u32);
    /// A gateway found it healthy.
    fn ready(&self, _id: &str) {}
    /// It is drained.
    fn stop(&self, id: &str);
    /// These are to be ended and started anew, by their ids: said at every step, before
    /// [`Target::ensure`].
    fn replace(&self, _hung: &BTreeMap<String, Hung>) {}
    /// Takes a stop back, for a replica that is still there. Whether it could be.
    fn recall(&self, _id: &str) -> bool {
        false
    }
    /// Whether anything follows from a decision.
    fn scales(&self) -> bool {
        true
    }
    /// Replicas on top of those that were asked for, which come and go by themselves: a rollout's.
    fn surplus(&self) -> u32 {
        0
    }
    /// Who else is in charge of the count, by a sign at the target itself.
    fn order(&self) -> Override {
        Override::None
    }
    /// Somebody else decides from now on: what was said here counts no more.
    fn rest(&self) {}
    /// The decision behind the next [`Target::ensure`], in one sentence.
    fn decided(&self, _sentence: &str) {}
    /// Why it can't do what it is told, in words.
    fn trouble(&self) -> Option<String> {
        None
    }
    /// What the loop may drain.
    fn drains(&self) -> Drains {
        Drains::Each
    }
}

/// A replica that is to be ended and started anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hung {
    /// Which start of it, by [`ReplicaStatus::started_ms`]; a later one is not meant.
    pub started_ms: u64,
    /// Why, as the end of a sentence: "answered nothing for 60 s".
    pub why: String,
}

/// What the loop may drain, and then tell the target to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drains {
    /// Any replica, by itself.
    Each,
    /// All or none, and somebody else stops them: drained ones wait under the barrier until they
    /// are gone, or wanted again.
    All,
    /// None: somebody else scales, and this is only watched.
    Never,
}

/// A replica as the target knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// Its name; never used twice in a pool.
    pub id: String,
    /// Where it listens, or will, as soon as that is known.
    pub address: Option<SocketAddr>,
    /// Where it is on its way.
    pub phase: Phase,
    /// What a person should know about that ("exited with status 1, again in 4 s").
    pub reason: String,
    /// How its last process ended and where that listened, as long as no other one is started.
    pub ended: Option<(SocketAddr, ProcessEnd)>,
    /// When it was asked for, in milliseconds since the epoch, where the target knows that better
    /// than from when it is shown.
    pub asked_ms: Option<u64>,
    /// It was there before this process: how long it took to start can't be told.
    pub inherited: bool,
    /// When it was given a machine, in milliseconds since the epoch, where that is a step.
    pub scheduled_ms: Option<u64>,
    /// When it was last started, in milliseconds since the epoch; 0 before.
    pub started_ms: u64,
    /// It was told to stop, and is there for good all the same: another one was taken in its place.
    pub spared: bool,
    /// The target's own order of stopping: those with the highest go first, and among equals the
    /// idlest.
    pub rank: u32,
}

impl ReplicaStatus {
    /// One of which nothing more is known than that it was asked for.
    pub fn asked_for(id: impl Into<String>) -> Self {
        Self {
            id: id.into(),
            address: None,
            phase: Phase::Pending,
            reason: "asked for".to_owned(),
            ended: None,
            asked_ms: None,
            inherited: false,
            scheduled_ms: None,
            started_ms: 0,
            spared: false,
            rank: 0,
        }
    }
}

/// Where a replica is on its way, as far as its target can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// Asked for; nothing runs yet.
    Pending,
    /// Its process or container runs.
    Running,
    /// It was told to stop, and is on its way out.
    Stopping,
    /// It died, and is started again by and by.
    Failed,
}

/// Every replica by its id.
pub type Replicas = Arc<BTreeMap<String, ReplicaStatus>>;
