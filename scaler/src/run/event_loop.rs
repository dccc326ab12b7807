//! The task for all pools: it waits for the next event, and lets the pools decide.

mod commands;
mod inquiries;
pub(super) mod leading;
pub(super) mod persistence;
mod reload;
pub(super) mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use forebay_config::{Config, Millis, Target};
use forebay_signals::PoolReplicas;
use forebay_signals::publisher::Publisher;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::decisions::Decisions;
use super::managed_pool::{Context, ManagedPool, note, ready, watch};
use super::metric;
use super::standing;
use crate::act::drains::{DrainRequest, NotAPod};
use crate::act::overrides::CommandRequest;
use crate::keda::KedaServer;
use crate::lead::readiness::Readiness;
use crate::observe::feeds::LastReport;
use crate::observe::feeds::{Feeds, Touched};
use crate::view::Board;
use crate::view::inquiry::Inquiry;

use leading::{Role, leader_state, turn};
use persistence::{Persistence, loaded};
use succession::Succession;

/// The time between two renewals of the published state, and of the leases in it.
pub(super) const TICK: Duration = Duration::from_secs(1);
/// Pools without changes are decided on in turn: about this many at a tick, and each at least once in
/// `MOST_TURNS` ticks.
const POOLS_A_TURN: usize = 100;
const MOST_TURNS: usize = 10;

/// The state of the loop.
pub(super) struct Loop {
    pub(super) feeds: Feeds,
    pub(super) pools: Vec<ManagedPool>,
    pub(super) due: DuePools,
    pub(super) config: Arc<Config>,
    pub(super) context: Context,
    pub(super) inbox: Inbox,
    pub(super) outputs: Outputs,
    pub(super) role: Role,
    pub(super) memory: Persistence,
    /// Drain requests whose replica is not drained yet.
    pub(super) waiting: Vec<DrainRequest>,
    /// Targets of pools that are no longer configured, until they are empty.
    pub(super) leaving: JoinSet<()>,
    pub(super) readiness: Readiness,
}

/// Requests from outside.
pub(super) struct Inbox {
    pub(super) drains: mpsc::Receiver<DrainRequest>,
    pub(super) commands: mpsc::Receiver<CommandRequest>,
    pub(super) inquiries: mpsc::Receiver<Inquiry>,
    pub(super) configs: watch::Receiver<Arc<Config>>,
    pub(super) succession: mpsc::Receiver<Succession>,
}

/// Pools that changed since they were last decided on.
#[derive(Default)]
pub(super) struct DuePools {
    pub(super) touched: BTreeSet<String>,
    /// All of them changed.
    pub(super) all: bool,
    /// Number of ticks: quiet pools take turns by it.
    ticks: usize,
}

impl DuePools {
    pub(super) fn all() -> Self {
        Self { all: true, ..Self::default() }
    }
}

/// The readers of decisions: gateways, operators, KEDA.
pub(super) struct Outputs {
    pub(super) publisher: Arc<Publisher<PoolReplicas>>,
    pub(super) decisions: Arc<Decisions>,
    pub(super) board: Arc<Board>,
    pub(super) keda: Option<Arc<KedaServer>>,
    /// The last published state of each pool.
    pub(super) last: BTreeMap<String, PoolReplicas>,
}

impl Outputs {
    pub(super) fn new(
        publisher: Arc<Publisher<PoolReplicas>>,
        decisions: Arc<Decisions>,
        board: Arc<Board>,
        keda: Option<Arc<KedaServer>>,
    ) -> Self {
        Self { publisher, decisions, board, keda, last: BTreeMap::new() }
    }

    /// Publishes a state of all pools that this loop has not decided.
    pub(super) fn publish(&mut self, pools: BTreeMap<String, PoolReplicas>) {
        self.last = pools;
        if let Some(keda) = &self.keda {
            keda.publish(&self.last);
        }
        self.publisher.publish(self.last.clone());
    }
}

impl Loop {
    pub(super) async fn run(mut self, stop: CancellationToken) -> Vec<ManagedPool> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::new(Notify::new());
        let mut watchers = JoinSet::new();
        self.pools.iter().for_each(|managed| watch(&mut watchers, managed, &changed));
        self.show_role();
        loop {
            if self.memory.due && self.leads() {
                self.restore().await;
            }
            let mut tick = false;
            tokio::select! {
                () = stop.cancelled() => {
                    self.keep();
                    if let Some(saver) = self.memory.saver.take() {
                        saver.finish().await;
                    }
                    return self.pools;
                }
                Some(change) = self.feeds.next() => match self.feeds.take(change) {
                    Touched::Pools(pools) => self.due.touched.extend(pools),
                    Touched::All => self.due.all = true,
                },
                () = changed.notified() => self.due.all = true,
                _ = ticks.tick() => tick = true,
                Some(step) = self.inbox.succession.recv() => self.succeed(step).await,
                () = turn(&mut self.role.leadership) => self.elected(),
                Some(state) = leader_state(&mut self.role.relay, &self.outputs.last) => self.relay(state),
                Ok(()) = self.inbox.configs.changed() => {
                    let config = Arc::clone(&self.inbox.configs.borrow_and_update());
                    for added in self.reload(config) {
                        watch(&mut watchers, &self.pools[added], &changed);
                    }
                }
                known = loaded(&mut self.memory.loading) => {
                    tracing::info!("learned figures are read now");
                    self.restored(known);
                }
                Some(request) = self.inbox.commands.recv() => {
                    self.command(request);
                    self.due.all = true;
                }
                Some(inquiry) = self.inbox.inquiries.recv() => {
                    self.answer_inquiry(inquiry);
                    continue;
                }
                Some(_) = self.leaving.join_next() => {}
                Some(request) = self.inbox.drains.recv() => self.drain(request, self.context.clock.now()),
            }
            if tick {
                metric::leads(self.leads());
                metric::gateways(self.feeds.alive(), self.feeds.silent());
            }
            if self.leads() {
                let now = self.context.clock.now();
                if tick {
                    self.outputs.board.publish(self.feeds.alive(), now);
                }
                self.step(now, tick);
                if tick && self.memory.pace.is_due() {
                    self.keep();
                }
            } else if tick {
                // Readers take a sender without events for one that is gone.
                self.outputs.publisher.publish(self.outputs.last.clone());
            }
            self.readiness.look(|| self.lack());
        }
    }

    /// The answer that it can't give yet, if any.
    pub(super) fn lack(&self) -> Option<String> {
        let unseen = self.pools.iter().find(|managed| !managed.target.was_looked_up());
        if let Some(managed) = unseen {
            let pool = &managed.pool.name;
            return Some(format!(
                "pool `{pool}`: the API server has not answered for its workload yet"
            ));
        }
        let keda = self.outputs.keda.as_ref()?;
        let mut by_keda = self.config.pools.iter().filter(|pool| {
            let is_managed = |managed: &ManagedPool| managed.pool.name == pool.name;
            matches!(pool.target, Some(Target::Keda(_))) && self.pools.iter().any(is_managed)
        });
        let unknown = by_keda.find(|pool| !keda.knows(&pool.name))?;
        let pool = &unknown.name;
        Some(format!("pool `{pool}`: no decision is known, so KEDA can't be answered"))
    }

    pub(super) fn drain(&mut self, request: DrainRequest, now: Millis) {
        let mut refused = false;
        for managed in &mut self.pools {
            let reports = self.feeds.reports(&managed.pool.name);
            if !request.from_endpoint || managed.target.has_pod(&reports, request.endpoint) {
                managed.pool.drain_endpoint(request.endpoint, now);
            } else {
                refused |= managed.target.has_replica(&reports, request.endpoint);
            }
        }
        if refused {
            let _ = request.done.send(Err(NotAPod));
            return;
        }
        self.waiting.push(request);
        self.due.all = true;
    }

    /// Decides on pools with an urgent change. At a tick also on all other changed pools, on those
    /// that are not settled, and on some of the quiet ones in turn.
    pub(super) fn step(&mut self, now: Millis, tick: bool) {
        self.due.ticks = self.due.ticks.wrapping_add(usize::from(tick));
        let turns = (self.pools.len() / POOLS_A_TURN).clamp(1, MOST_TURNS);
        let mut changed = Vec::new();
        for (at, managed) in self.pools.iter_mut().enumerate() {
            let name = &managed.pool.name;
            let touched = self.due.all || self.due.touched.contains(name);
            let due =
                tick && (!managed.pool.is_settled() || (at + self.due.ticks).is_multiple_of(turns));
            if !touched && !due {
                continue;
            }
            let began = Instant::now();
            let reports = self.feeds.reports(name);
            let held = |report: &LastReport<'_>| {
                report.signals.is_some_and(|signals| signals.queue_depth > 0)
            };
            let waits = managed.pool.is_settled() && !reports.iter().any(held);
            if !tick && !self.due.all && waits {
                continue;
            }
            self.due.touched.remove(name);
            // Without a known state there is no decision, and gateways keep the last one.
            let Some(statuses) = managed.target.statuses(&reports) else {
                // Where the replicas are those that gateways report, there is nothing to decide on.
                if reports.is_empty() && managed.pool.has_report() {
                    self.outputs.board.unheard(name, standing::no_gateway(), now);
                }
                continue;
            };
            managed.sources.set_endpoints(ready(&reports));
            let readings = managed.sources.readings();
            let step = managed.pool.step(&reports, &statuses, &readings, &managed.target, now);
            managed.metrics.reaction.record(began.elapsed());
            note(managed, &step, &reports, now, &self.outputs.decisions, &self.outputs.board);
            if self.outputs.last.get(&managed.pool.name) != Some(&step.replicas) {
                changed.push((managed.pool.name.clone(), step.replicas));
            }
        }
        self.due.all = false;
        self.outputs.publisher.set_gateways(self.feeds.alive());
        self.outputs.last.extend(changed.iter().cloned());
        if let Some(keda) = &self.outputs.keda {
            let known = self.pools.iter().filter(|managed| managed.pool.has_report());
            let known =
                known.filter_map(|managed| self.outputs.last.get_key_value(&managed.pool.name));
            keda.publish(known);
        }
        if tick || !changed.is_empty() {
            self.outputs.publisher.update(changed);
        }
        self.answer();
    }

    /// Answers drain requests whose replica is drained, and drops those whose client has left.
    fn answer(&mut self) {
        let (feeds, pools) = (&self.feeds, &self.pools);
        let drained = |request: &mut DrainRequest| {
            request.done.is_closed()
                || pools.iter().all(|managed| {
                    let reports = feeds.reports(&managed.pool.name);
                    managed.pool.is_empty_at(&reports, request.endpoint)
                })
        };
        for request in self.waiting.extract_if(.., drained) {
            let _ = request.done.send(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests;
