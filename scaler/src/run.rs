//! The loop: signals in, decisions out.
//!
//! One task for all pools. It wakes at every push of a gateway and every change of a target, decides
//! at once, and once a second in any case: leases are renewed, windows move on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use forebay_config::Config;
use forebay_discovery::Cluster;
use forebay_signals::publisher::Publisher;
use forebay_signals::{Health, PoolReplicas, ReplicaState, Token};
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::config_map::StateMap;
use crate::core::{Override, Problem, Proposal};
use crate::decisions::Decisions;
use crate::drains::{self, Ask};
use crate::feeds::{Feeds, Gateways, Touched};
use crate::keda::{KedaServer, ServeError};
use crate::leader::{Election, Leadership};
use crate::metric::Metrics;
use crate::orders::{self, Order, Refused};
use crate::pool::{Heard, PoolLoop, Step};
use crate::relay::{Relay, Words, without_barriers};
use crate::sources::{Client, Sources};
use crate::store::{self, Folder, Pace, Saver, SnapshotStore, Snapshots};
use crate::targets::{Driver, Target};

/// Drains and orders that wait to be heard.
const ASKS: usize = 64;
const TICK: Duration = Duration::from_secs(1);
/// Pools in which nothing happens are decided on in turn: so many at a tick, and each once in so
/// many ticks at least.
const POOLS_A_TURN: usize = 100;
const MOST_TURNS: usize = 10;

/// A running scaler.
pub struct Scaler {
    publisher: Arc<Publisher<PoolReplicas>>,
    decisions: Arc<Decisions>,
    config: watch::Sender<Arc<Config>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<Vec<Driven>>,
    keda: Option<Arc<KedaServer>>,
    election: Option<Election>,
    desk: Router,
}

/// Why a scaler does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The target of a pool can't be used.
    #[error("pools: target of pool `{pool}`: {source}")]
    Target {
        /// The pool.
        pool: String,
        /// What is wrong.
        source: io::Error,
    },
    /// What triggers read can't be read.
    #[error("prometheus.caFile: {0}")]
    Authorities(String),
    /// KEDA can't be answered.
    #[error(transparent)]
    Keda(#[from] ServeError),
}

/// A pool with what it drives.
struct Driven {
    pool: PoolLoop,
    target: Driver,
    sources: Sources,
    metrics: Metrics,
    /// Triggers that could not be read last time.
    unread: BTreeSet<String>,
}

impl Scaler {
    /// Starts deciding for every pool; for one without a target, it only tells. `own` is the base
    /// URL at which other scalers reach this one. `cluster` is needed where a target is in
    /// Kubernetes, or where a leader is elected.
    ///
    /// # Errors
    /// [`StartError`] when a target can't be used.
    pub fn start(
        config: Arc<Config>,
        gateways: Gateways,
        own: &str,
        cluster: Option<&Cluster>,
    ) -> Result<Self, StartError> {
        let stale_after_ms = config.scaler.stale_after.as_millis() as u64;
        let ca_file = config.prometheus.ca_file.as_deref();
        let client = Client::new(ca_file).map_err(StartError::Authorities)?;
        let clock = Clock::start();
        let mut pools = Vec::new();
        for pool in &config.pools {
            let failed = |source| StartError::Target { pool: pool.name.clone(), source };
            let target = Driver::start(pool, cluster).map_err(failed)?;
            let metrics = Metrics::register(&pool.name);
            let decides = PoolLoop::new(pool, &config.prometheus, stale_after_ms);
            let sources = Sources::start(pool, decides.wanted(), &client, clock);
            let unread = BTreeSet::new();
            pools.push(Driven { pool: decides, target, sources, metrics, unread });
        }
        let publisher = Publisher::new();
        let decisions = Arc::<Decisions>::default();
        let stop = CancellationToken::new();
        let token = gateways.token.clone();
        let election = match (&config.scaler.leader_election, cluster) {
            (Some(settings), Some(cluster)) => {
                Some(Election::start(settings, cluster, own.to_owned()))
            }
            _ => None,
        };
        let leadership = election.as_ref().map(|election| election.leadership.clone());
        let (asked, asks) = mpsc::channel(ASKS);
        let desk = drains::route(asked, leadership.clone(), token.clone());
        let (ordered, orders) = mpsc::channel(ASKS);
        let desk = desk.merge(orders::route(ordered));
        let (latest, configs) = watch::channel(Arc::clone(&config));
        let store = store_of(&config, cluster);
        let work = Loop {
            feeds: Feeds::new(gateways),
            pools,
            publisher: Arc::clone(&publisher),
            decisions: Arc::clone(&decisions),
            last: BTreeMap::new(),
            clock,
            keda: KedaServer::start(&config)?.map(Arc::new),
            leadership,
            relay: None,
            token,
            asks,
            waiting: Vec::new(),
            config,
            configs,
            cluster: cluster.cloned(),
            client,
            orders,
            store,
            saver: None,
            loading: None,
            pace: Pace::new(),
            leaving: JoinSet::new(),
            restore: true,
            touched: BTreeSet::new(),
            all_touched: true,
            turn: 0,
        };
        let keda = work.keda.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(work.run(stop.clone())));
        Ok(Self { publisher, decisions, config: latest, stop, task, keda, election, desk })
    }

    /// `GET /replicas`, `GET /decisions`, `POST /drain` and `POST /pools/NAME/override`.
    pub fn routes(&self) -> Router {
        Router::new()
            .route("/replicas", self.publisher.route())
            .route("/decisions", self.decisions.route())
            .merge(self.desk.clone())
    }

    /// Goes on by another configuration: pools by their names, with all that was learned of them. A
    /// target that is another than before is taken with the next start.
    pub fn reload(&self, config: Arc<Config>) {
        self.config.send_replace(config);
    }

    /// Stops deciding, then every replica, and returns when no process is left. Gateways that run
    /// on hear all the while that nothing is there for them any more.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Some(keda) = &self.keda {
            keda.shutdown().await;
        }
        match self.task.await {
            Ok(pools) => {
                let all = pools.iter().map(|driven| driven.target.shutdown());
                let mut stopped = std::pin::pin!(join_all(all));
                let mut ticks = interval(TICK);
                loop {
                    tokio::select! {
                        biased; // The first tick is at once, before anything is stopped.
                        _ = ticks.tick() => self.publisher.publish(leaving(&pools)),
                        _ = &mut stopped => break,
                    }
                }
            }
            Err(error) => tracing::error!("the scaler's loop ended early: {error}"),
        }
        // Only now: what was decided is written.
        if let Some(election) = self.election {
            election.resign().await;
        }
        self.publisher.goodbye();
    }
}

/// The folder that is configured, or else, where leaders take over from each other, a ConfigMap.
fn store_of(config: &Config, cluster: Option<&Cluster>) -> Option<Arc<dyn SnapshotStore>> {
    if let Some(path) = &config.scaler.state_dir {
        return Some(Arc::new(Folder::new(path)));
    }
    let election = config.scaler.leader_election.as_ref()?;
    Some(Arc::new(StateMap::new(election, cluster?)))
}

fn leaving(pools: &[Driven]) -> BTreeMap<String, PoolReplicas> {
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

struct Loop {
    feeds: Feeds,
    pools: Vec<Driven>,
    publisher: Arc<Publisher<PoolReplicas>>,
    decisions: Arc<Decisions>,
    last: BTreeMap<String, PoolReplicas>,
    clock: Clock,
    keda: Option<Arc<KedaServer>>,
    /// Who decides; this one, where nobody else could.
    leadership: Option<watch::Receiver<Leadership>>,
    /// The leader's words, where that is another.
    relay: Option<Relay>,
    token: Option<Token>,
    asks: mpsc::Receiver<Ask>,
    /// Those that wait for a replica to be drained.
    waiting: Vec<Ask>,
    config: Arc<Config>,
    configs: watch::Receiver<Arc<Config>>,
    cluster: Option<Cluster>,
    client: Client,
    orders: mpsc::Receiver<Order>,
    store: Option<Arc<dyn SnapshotStore>>,
    saver: Option<Saver>,
    /// What was kept, while it can't be read.
    loading: Option<AbortOnDropHandle<Snapshots>>,
    pace: Pace,
    /// Targets of pools that are no longer configured, until they are empty.
    leaving: JoinSet<()>,
    /// What was kept is to be read before the next decision.
    restore: bool,
    /// Pools that changed since they were last decided on; all of them.
    touched: BTreeSet<String>,
    all_touched: bool,
    /// Ticks.
    turn: usize,
}

impl Loop {
    async fn run(mut self, stop: CancellationToken) -> Vec<Driven> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::new(Notify::new());
        let mut watchers = JoinSet::new();
        self.pools.iter().for_each(|driven| watch(&mut watchers, driven, &changed));
        loop {
            if self.restore && self.leads() {
                self.restore().await;
            }
            let mut tick = false;
            tokio::select! {
                () = stop.cancelled() => {
                    self.keep();
                    if let Some(saver) = self.saver.take() {
                        saver.finish().await;
                    }
                    return self.pools;
                }
                Some(news) = self.feeds.next() => match self.feeds.take(news) {
                    Touched::Pools(pools) => self.touched.extend(pools),
                    Touched::All => self.all_touched = true,
                },
                () = changed.notified() => self.all_touched = true,
                _ = ticks.tick() => tick = true,
                () = turn(&mut self.leadership) => self.elected(),
                Some(words) = hear(&mut self.relay, &self.last) => self.repeat(words),
                Ok(()) = self.configs.changed() => {
                    let config = Arc::clone(&self.configs.borrow_and_update());
                    for added in self.reload(config) {
                        watch(&mut watchers, &self.pools[added], &changed);
                    }
                }
                known = loaded(&mut self.loading) => {
                    tracing::info!("what was learned before is read at last");
                    self.restored(known);
                }
                Some(order) = self.orders.recv() => {
                    self.order(order);
                    self.all_touched = true;
                }
                Some(_) = self.leaving.join_next() => {}
                Some(ask) = self.asks.recv() => self.ask(ask, self.clock.now_ms()),
            }
            if self.leads() {
                self.step(self.clock.now_ms(), tick);
                if tick && self.pace.is_due() {
                    self.keep();
                }
            } else if tick {
                // Readers take a silent sender for one that is gone.
                self.publisher.publish(self.last.clone());
            }
        }
    }

    fn leads(&self) -> bool {
        self.leadership.as_ref().is_none_or(|it| *it.borrow() == Leadership::Ours)
    }

    /// Begins to lead, or to relay another's words.
    fn elected(&mut self) {
        let Some(leadership) = &mut self.leadership else { return };
        let leadership = leadership.borrow_and_update().clone();
        match leadership {
            Leadership::Ours => {
                self.relay = None;
                let stale_after_ms = self.config.scaler.stale_after.as_millis() as u64;
                // What was decided long ago, if anything, is no beginning.
                for driven in &mut self.pools {
                    let same = |it: &&forebay_config::Pool| it.name == driven.pool.name;
                    if let Some(pool) = self.config.pools.iter().find(same) {
                        driven.pool = PoolLoop::new(pool, &self.config.prometheus, stale_after_ms);
                    }
                }
                self.restore = true;
                self.all_touched = true;
                return;
            }
            Leadership::Theirs(url) => {
                if self.relay.as_ref().is_none_or(|relay| relay.url != url) {
                    self.relay = Some(Relay::new(url, self.token.clone()));
                }
            }
            Leadership::Unknown => {}
        }
        self.waiting.clear();
        self.loading = None;
        for driven in &self.pools {
            driven.target.rest();
        }
        // Nobody here can lift a barrier any more.
        self.last = without_barriers(&self.last);
        if let Some(keda) = &self.keda {
            keda.publish(&self.last);
        }
        self.publisher.publish(self.last.clone());
    }

    /// Tells what the leader told.
    fn repeat(&mut self, words: Words) {
        if self.leads() {
            return;
        }
        if let Some(gateways) = words.gateways {
            self.publisher.set_gateways(gateways);
        }
        if let Some(keda) = &self.keda {
            keda.publish(&words.pools);
        }
        self.publisher.publish(words.pools.clone());
        self.last = words.pools;
    }

    /// Takes over what was learned before, by this scaler or by one that led.
    async fn restore(&mut self) {
        self.restore = false;
        self.saver = None;
        self.loading = None;
        let Some(store) = &self.store else { return };
        match store::load(&**store).await {
            Ok(known) => self.restored(known),
            Err(error) => {
                tracing::warn!(
                    "what was learned before can't be read, and nothing scales down until it is: \
                     {error}"
                );
                self.pools.iter_mut().for_each(|driven| driven.pool.await_restore());
                let load = store::load_at_last(Arc::clone(store));
                self.loading = Some(AbortOnDropHandle::new(tokio::spawn(load)));
            }
        }
    }

    fn restored(&mut self, known: Snapshots) {
        self.loading = None;
        for driven in &mut self.pools {
            driven.pool.restore(known.get(&driven.pool.name).map(String::as_str));
        }
        // Only now: what was not read would be written over.
        let store = self.store.iter().cloned();
        self.saver = store.map(|store| Saver::start(store, known.clone())).next();
        self.pace.hurry();
        self.all_touched = true;
    }

    /// Keeps what was learned.
    fn keep(&self) {
        if let Some(saver) = self.saver.as_ref().filter(|_| self.leads()) {
            let text = |driven: &Driven| (driven.pool.name.clone(), driven.pool.snapshot());
            saver.save(self.pools.iter().map(text).collect::<Snapshots>());
        }
    }

    /// A person's order for one pool.
    fn order(&mut self, Order { pool, order, done }: Order) {
        let driven = self.pools.iter_mut().find(|driven| driven.pool.name == pool);
        let outcome = match driven {
            None => Err(Refused::UnknownPool(
                self.config.pools.iter().map(|pool| pool.name.clone()).collect(),
            )),
            Some(_)
                if self.leadership.as_ref().is_some_and(|it| *it.borrow() != Leadership::Ours) =>
            {
                Err(Refused::NotLeading)
            }
            Some(driven) => match order {
                Override::Fixed(count) if count > driven.pool.most() => {
                    Err(Refused::TooMany(driven.pool.most()))
                }
                order => {
                    driven.pool.order(order);
                    let sentence = order.sentence();
                    tracing::info!("{pool}: {sentence}");
                    Ok(sentence)
                }
            },
        };
        self.pace.hurry();
        let _ = done.send(outcome);
    }

    /// Goes on by another configuration; returns the places of new pools.
    fn reload(&mut self, config: Arc<Config>) -> Vec<usize> {
        let stale_after_ms = config.scaler.stale_after.as_millis() as u64;
        let mut before = std::mem::take(&mut self.pools);
        let mut added = Vec::new();
        for pool in &config.pools {
            let same = before.iter().position(|driven| driven.pool.name == pool.name);
            let old = self.config.pools.iter().find(|it| it.name == pool.name);
            if let Some(at) = same {
                let mut driven = before.swap_remove(at);
                let last = &self.config;
                if old != Some(pool)
                    || last.prometheus != config.prometheus
                    || last.scaler.stale_after != config.scaler.stale_after
                {
                    if old.is_some_and(|old| old.target != pool.target) {
                        let name = &pool.name;
                        tracing::warn!("{name}: another target is taken with the next start");
                    }
                    driven.pool.reload(pool, &config.prometheus, stale_after_ms);
                    let wanted = driven.pool.wanted();
                    driven.sources = Sources::start(pool, wanted, &self.client, self.clock);
                }
                self.pools.push(driven);
                continue;
            }
            let target = match Driver::start(pool, self.cluster.as_ref()) {
                Ok(target) => target,
                Err(error) => {
                    tracing::error!("pools: target of pool `{}`: {error}", pool.name);
                    continue;
                }
            };
            let mut decides = PoolLoop::new(pool, &config.prometheus, stale_after_ms);
            if self.loading.is_some() {
                decides.await_restore();
            }
            let sources = Sources::start(pool, decides.wanted(), &self.client, self.clock);
            let (metrics, unread) = (Metrics::register(&pool.name), BTreeSet::new());
            added.push(self.pools.len());
            self.pools.push(Driven { pool: decides, target, sources, metrics, unread });
        }
        for gone in before {
            let name = gone.pool.name.clone();
            tracing::info!("{name}: no longer configured, its replicas are stopped");
            self.leaving.spawn(async move { gone.target.shutdown().await });
        }
        self.config = config;
        let names: BTreeSet<_> = self.pools.iter().map(|it| it.pool.name.clone()).collect();
        self.last.retain(|name, _| names.contains(name));
        self.publisher.publish(self.last.clone());
        self.all_touched = true;
        added
    }

    fn ask(&mut self, ask: Ask, now_ms: u64) {
        for driven in &mut self.pools {
            driven.pool.ask_to_drain(ask.endpoint, now_ms);
        }
        self.waiting.push(ask);
        self.all_touched = true;
    }

    /// Decides on what changed and can't wait; at a tick on all that changed, or is on its way
    /// somewhere, and on the quiet pools in turn.
    fn step(&mut self, now_ms: u64, tick: bool) {
        self.turn = self.turn.wrapping_add(usize::from(tick));
        let turns = (self.pools.len() / POOLS_A_TURN).clamp(1, MOST_TURNS);
        let mut changed = Vec::new();
        for (at, driven) in self.pools.iter_mut().enumerate() {
            let name = &driven.pool.name;
            let touched = self.all_touched || self.touched.contains(name);
            let due = tick && (driven.pool.is_restless() || (at + self.turn).is_multiple_of(turns));
            if !touched && !due {
                continue;
            }
            let began = Instant::now();
            let heard = self.feeds.words(name);
            let held = |heard: &Heard<'_>| heard.signals.is_some_and(|it| it.queue_depth > 0);
            let waits = !driven.pool.is_restless() && !heard.iter().any(held);
            if !tick && !self.all_touched && waits {
                continue;
            }
            self.touched.remove(name);
            // Nothing is decided of what is not known yet, and gateways keep what they know.
            let Some(statuses) = driven.target.statuses(&heard) else { continue };
            driven.sources.ask(ready(&heard));
            let readings = driven.sources.readings();
            let step = driven.pool.step(&heard, &statuses, &readings, &driven.target, now_ms);
            driven.metrics.reaction.record(began.elapsed());
            note(driven, &step, now_ms, &self.decisions);
            if self.last.get(&driven.pool.name) != Some(&step.replicas) {
                changed.push((driven.pool.name.clone(), step.replicas));
            }
        }
        self.all_touched = false;
        self.publisher.set_gateways(self.feeds.alive());
        self.last.extend(changed.iter().cloned());
        if let Some(keda) = &self.keda {
            let known = self.pools.iter().filter(|driven| driven.pool.known());
            let known = known.filter_map(|driven| self.last.get_key_value(&driven.pool.name));
            keda.publish(known);
        }
        if tick || !changed.is_empty() {
            self.publisher.update(changed);
        }
        self.answer();
    }

    /// Those whose replica is drained, or who no longer wait.
    fn answer(&mut self) {
        let (feeds, pools) = (&self.feeds, &self.pools);
        let drained = |ask: &mut Ask| {
            ask.done.is_closed()
                || pools.iter().all(|driven| {
                    driven.pool.is_empty_at(&feeds.words(&driven.pool.name), ask.endpoint)
                })
        };
        for ask in self.waiting.extract_if(.., drained) {
            let _ = ask.done.send(());
        }
    }
}

/// The leadership's next turn. Cancel-safe.
async fn turn(leadership: &mut Option<watch::Receiver<Leadership>>) {
    if let Some(leadership) = leadership
        && leadership.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// What was kept, as soon as it can be read. Cancel-safe.
async fn loaded(loading: &mut Option<AbortOnDropHandle<Snapshots>>) -> Snapshots {
    if let Some(loading) = loading
        && let Ok(known) = loading.await
    {
        return known;
    }
    std::future::pending().await
}

/// The leader's next words. Cancel-safe.
async fn hear(relay: &mut Option<Relay>, last: &BTreeMap<String, PoolReplicas>) -> Option<Words> {
    match relay {
        Some(relay) => relay.next(last).await,
        None => std::future::pending().await,
    }
}

/// Endpoints that take requests, as any gateway sees them.
fn ready(heard: &[Heard<'_>]) -> impl Iterator<Item = String> {
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
fn note(driven: &mut Driven, step: &Step, now_ms: u64, decisions: &Decisions) {
    let Step { decision, replicas, cold_starts } = step;
    for seconds in cold_starts {
        driven.metrics.cold_start.record(*seconds);
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
fn watch(watchers: &mut JoinSet<()>, driven: &Driven, changed: &Arc<Notify>) {
    let Some(mut replicas) = driven.target.replicas() else { return };
    let changed = Arc::clone(changed);
    watchers.spawn(async move {
        while replicas.changed().await.is_ok() {
            changed.notify_one();
        }
    });
}

#[cfg(test)]
mod tests;
