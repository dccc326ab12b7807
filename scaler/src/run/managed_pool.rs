//! A pool with its target, its sources and its metrics.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use forebay_config::{Config, Millis, Pool, Target};
use forebay_discovery::Cluster;
use forebay_signals::{Health, PoolReplicas};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::act::targets::PoolTarget;
use crate::clock::Clock;
use crate::decide::Proposal;
use crate::observe::feeds::LastReport;
use crate::observe::sources::{Client, Sources};
use crate::run::decisions::{Decisions, PoolState};
use crate::run::metric::Metrics;
use crate::run::pool::{PoolScaler, Step};
use crate::run::spans;
use crate::run::standing;
use crate::view::Board;
use crate::view::overview::StateCounts;

/// A pool with its target, its sources and its metrics.
pub(super) struct ManagedPool {
    pub(super) pool: PoolScaler,
    pub(super) target: PoolTarget,
    /// The target's settings, which stay in force while the process runs.
    pub(super) target_in_force: Option<Target>,
    pub(super) sources: Sources,
    pub(super) metrics: Metrics,
    /// Triggers that could not be read at the last decision.
    pub(super) unread: BTreeSet<String>,
}

/// The means to start a pool.
pub(super) struct Context {
    pub(super) clock: Clock,
    pub(super) cluster: Option<Cluster>,
    pub(super) client: Client,
}

impl ManagedPool {
    /// Starts to watch a pool's target and sources.
    ///
    /// # Errors
    /// The target can't be used.
    pub(super) fn start(pool: &Pool, config: &Config, context: &Context) -> io::Result<Self> {
        let target = PoolTarget::start(pool, context.cluster.as_ref())?;
        let stale_after = config.scaler.stale_after.into();
        let decides = PoolScaler::new(pool, &config.prometheus, stale_after);
        let metrics = Metrics::register(&pool.name);
        metrics.configured(&pool.scaling);
        Ok(Self {
            sources: Sources::start(pool, decides.wanted(), &context.client, context.clock),
            target_in_force: pool.target.clone(),
            pool: decides,
            target,
            metrics,
            unread: BTreeSet::new(),
        })
    }
}

/// The last state of pools whose replicas end with this process.
pub(super) fn leaving(pools: &[ManagedPool]) -> BTreeMap<String, PoolReplicas> {
    let state = |managed: &ManagedPool| {
        let statuses = managed.target.statuses(&[])?;
        Some((managed.pool.name.clone(), managed.pool.leaving(&statuses)))
    };
    let local = pools.iter().filter(|managed| managed.target.ends_its_replicas());
    local.filter_map(state).collect()
}

/// Endpoints that are ready at any gateway.
pub(super) fn ready(reports: &[LastReport<'_>]) -> impl Iterator<Item = String> {
    let signals = reports.iter().filter_map(|report| report.signals);
    let endpoints = signals.flat_map(|signals| &signals.endpoints);
    let ready = endpoints.filter(|(_, endpoint)| {
        endpoint.as_ref().is_some_and(|endpoint| endpoint.health == Health::Ready)
    });
    ready.map(|(address, _)| address.clone()).collect::<BTreeSet<_>>().into_iter()
}

/// Records each trigger's figures, and logs when it becomes unreadable or readable again.
fn triggers(managed: &mut ManagedPool, proposals: &[Proposal]) {
    let pool = &managed.pool.name;
    managed.unread.retain(|name| proposals.iter().any(|proposal| proposal.name == *name));
    for proposal in proposals {
        managed.metrics.trigger(proposal);
        match &proposal.problem {
            Some(problem)
                if proposal.has_failed() && managed.unread.insert(proposal.name.clone()) =>
            {
                managed.metrics.trigger_failed(&proposal.name);
                tracing::warn!("{pool}: trigger {} {problem}", proposal.name);
            }
            None if managed.unread.remove(&proposal.name) => {
                tracing::info!("{pool}: trigger {} can be read again", proposal.name);
            }
            _ => {}
        }
    }
}

/// Records a step in the log, the metrics, `/decisions` and the board.
pub(super) fn note(
    managed: &mut ManagedPool,
    step: &Step,
    reports: &[LastReport<'_>],
    now: Millis,
    decisions: &Decisions,
    board: &Board,
) {
    let Step { decision, replicas, cold_starts, longest_start, replaced, .. } = step;
    for seconds in cold_starts {
        managed.metrics.started(*seconds);
    }
    if let Some(cause) = replaced {
        managed.metrics.replaced(*cause);
    }
    let counts = StateCounts::of(replicas);
    let StateCounts { pending, starting, ready, draining, failed } = counts;
    managed.metrics.replicas([pending, starting, ready, draining, failed]);
    managed.metrics.decided(decision);
    if let Some(learned) = &replicas.cold_start {
        managed.metrics.learned(learned);
    }
    managed.metrics.longest_start(*longest_start);
    managed.metrics.start_failing(replicas.failed_start.is_some());
    triggers(managed, &decision.proposals);
    let state = PoolState {
        cold_start: managed.pool.phases(),
        failed_start: replicas.failed_start.clone(),
    };
    let waking = spans::waking(decision, reports);
    decisions.note(&managed.pool.name, decision, state, &waking, now);
    board.record(&managed.pool.name, standing::of(step, counts, !reports.is_empty(), now), now);
}

/// Notifies the loop of the target's changes.
pub(super) fn watch(watchers: &mut JoinSet<()>, managed: &ManagedPool, changed: &Arc<Notify>) {
    let Some(mut replicas) = managed.target.replicas() else { return };
    let changed = Arc::clone(changed);
    watchers.spawn(async move {
        while replicas.changed().await.is_ok() {
            changed.notify_one();
        }
    });
}
