//! A pool with what it drives, and all that is told of its decisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use forebay_signals::{Health, PoolReplicas, ReplicaState};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::act::targets::Driver;
use crate::decide::{Problem, Proposal};
use crate::observe::heard::Heard;
use crate::observe::sources::Sources;
use crate::run::decisions::Decisions;
use crate::run::metric::Metrics;
use crate::run::pool::{PoolLoop, Step};

/// A pool with what it drives.
pub(super) struct Driven {
    pub(super) pool: PoolLoop,
    pub(super) target: Driver,
    pub(super) sources: Sources,
    pub(super) metrics: Metrics,
    /// Triggers that could not be read last time.
    pub(super) unread: BTreeSet<String>,
}

pub(super) fn leaving(pools: &[Driven]) -> BTreeMap<String, PoolReplicas> {
    let told = |driven: &Driven| {
        let statuses = driven.target.statuses(&[])?;
        Some((driven.pool.name.clone(), driven.pool.leaving(&statuses)))
    };
    pools
        .iter()
        .filter(|driven| driven.target.takes_its_replicas_along())
        .filter_map(told)
        .collect()
}

/// Endpoints that take requests, as any gateway sees them.
pub(super) fn ready(heard: &[Heard<'_>]) -> impl Iterator<Item = String> {
    let endpoints = heard.iter().filter_map(|heard| heard.signals).flat_map(|it| &it.endpoints);
    let ready = endpoints.filter(|(_, endpoint)| {
        endpoint.as_ref().is_some_and(|endpoint| endpoint.health == Health::Ready)
    });
    ready.map(|(address, _)| address.clone()).collect::<BTreeSet<_>>().into_iter()
}

/// Tells of each trigger's figures, and when one can't be read any more or can again.
fn triggers(driven: &mut Driven, proposals: &[Proposal]) {
    let pool = &driven.pool.name;
    for proposal in proposals {
        driven.metrics.trigger(proposal);
        // A first-hand figure is missing as long as nobody asks, and one that is read elsewhere until
        // it is read for the first time.
        let told = match &proposal.problem {
            Some(Problem::Unreadable(_)) => proposal.age_ms.is_some(),
            Some(Problem::Misconfigured(_)) => true,
            None => false,
        };
        match &proposal.problem {
            Some(problem) if told && driven.unread.insert(proposal.name.clone()) => {
                driven.metrics.trigger_failed(&proposal.name);
                tracing::warn!("{pool}: trigger {} {problem}", proposal.name);
            }
            None if driven.unread.remove(&proposal.name) => {
                tracing::info!("{pool}: trigger {} can be read again", proposal.name);
            }
            _ => {}
        }
    }
}

/// Tells log, metrics and `/decisions`.
pub(super) fn note(driven: &mut Driven, step: &Step, now_ms: u64, decisions: &Decisions) {
    let Step { decision, replicas, cold_starts, replaced } = step;
    for seconds in cold_starts {
        driven.metrics.cold_start.record(*seconds);
    }
    if let Some(cause) = replaced {
        driven.metrics.replaced(*cause);
    }
    let count = |state| {
        replicas.replicas.values().flatten().filter(|replica| replica.state == state).count() as u32
    };
    driven.metrics.replicas(
        [
            ReplicaState::Pending,
            ReplicaState::Starting,
            ReplicaState::Ready,
            ReplicaState::Draining,
            ReplicaState::Failed,
        ]
        .map(count),
    );
    driven.metrics.decided(decision);
    triggers(driven, &decision.proposals);
    decisions.note(&driven.pool.name, decision, driven.pool.phases(), now_ms);
}

/// Tells the loop of the target's changes.
pub(super) fn watch(watchers: &mut JoinSet<()>, driven: &Driven, changed: &Arc<Notify>) {
    let Some(mut replicas) = driven.target.replicas() else { return };
    let changed = Arc::clone(changed);
    watchers.spawn(async move {
        while replicas.changed().await.is_ok() {
            changed.notify_one();
        }
    });
}
