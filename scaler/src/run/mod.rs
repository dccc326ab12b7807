//! The loop: signals in, decisions out.
//!
//! One task for all pools. It wakes at every push of a gateway and every change of a target, decides
//! at once, and once a second in any case: leases are renewed, windows move on.

pub(crate) mod decisions;
mod driven;
mod leading;
pub(crate) mod metric;
pub(crate) mod pool;
mod reload;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use forebay_config::{Config, Target};
use forebay_discovery::Cluster;
use forebay_signals::publisher::Publisher;
use forebay_signals::{PoolReplicas, Token};
use futures_util::future::join_all;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::act::drains::{self, Ask, NotAPod};
use crate::act::orders::{self, Order, Refused};
use crate::act::targets::{Driver, Target as _};
use crate::clock::Clock;
use crate::decide::Override;
use crate::keda::{KedaServer, ServeError};
use crate::lead::config_map::StateMaps;
use crate::lead::leader::{Election, Leadership};
use crate::lead::readiness::Readiness;
use crate::lead::store::{Folder, Pace, Saver, SnapshotStore, Snapshots};
use crate::observe::feeds::{Feeds, Gateways, Touched};
use crate::observe::heard::Heard;
use crate::observe::relay::Relay;
use crate::observe::sources::{Client, Sources};
use crate::run::decisions::Decisions;
use crate::run::metric::Metrics;
use crate::run::pool::PoolLoop;

use driven::{Driven, leaving, note, ready, watch};
use leading::{hear, loaded, turn};
use succession::Turn;
pub use succession::{Handover, Known};

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
    readiness: Readiness,
    turns: mpsc::Sender<Turn>,
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
        let scaler = Self::build(config, gateways, own, cluster, None, false)?;
        if let Some(keda) = &scaler.keda {
            keda.open();
        }
        Ok(scaler)
    }

    /// The same, but for deciding and answering KEDA: that begins when it takes over from another
    /// process. `keda_socket` is that one's, if any.
    ///
    /// # Errors
    /// [`StartError`] when a target can't be used.
    pub fn prepare(
        config: Arc<Config>,
        gateways: Gateways,
        own: &str,
        cluster: Option<&Cluster>,
        keda_socket: Option<TcpListener>,
    ) -> Result<Self, StartError> {
        Self::build(config, gateways, own, cluster, keda_socket, true)
    }

    fn build(
        config: Arc<Config>,
        gateways: Gateways,
        own: &str,
        cluster: Option<&Cluster>,
        keda_socket: Option<TcpListener>,
        standby: bool,
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
        let (turns, succession) = mpsc::channel(1);
        let (latest, configs) = watch::channel(Arc::clone(&config));
        let store = store_of(&config, cluster);
        let readiness = Readiness::new();
        let work = Loop {
            feeds: Feeds::new(gateways),
            pools,
            publisher: Arc::clone(&publisher),
            decisions: Arc::clone(&decisions),
            last: BTreeMap::new(),
            clock,
            keda: KedaServer::prepare(&config, keda_socket)?.map(Arc::new),
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
            readiness: readiness.clone(),
            standby,
            succession,
        };
        let keda = work.keda.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(work.run(stop.clone())));
        let config = latest;
        Ok(Self {
            publisher,
            decisions,
            config,
            stop,
            task,
            keda,
            election,
            desk,
            readiness,
            turns,
        })
    }

    /// Whether it can answer what it is asked.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
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

/// The folder that is configured, or else, where leaders take over from each other, ConfigMaps.
fn store_of(config: &Config, cluster: Option<&Cluster>) -> Option<Arc<dyn SnapshotStore>> {
    if let Some(path) = &config.scaler.state_dir {
        return Some(Arc::new(Folder::new(path)));
    }
    let election = config.scaler.leader_election.as_ref()?;
    Some(Arc::new(StateMaps::new(election, cluster?)))
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
    readiness: Readiness,
    /// Another process decides: the one before this, or after.
    standby: bool,
    succession: mpsc::Receiver<Turn>,
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
                Some(turn) = self.succession.recv() => self.turn(turn).await,
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
            self.readiness.look(|| self.lack());
        }
    }

    /// What it can't answer yet, if anything.
    fn lack(&self) -> Option<String> {
        let unseen = self.pools.iter().find(|driven| !driven.target.was_asked_for());
        if let Some(driven) = unseen {
            let pool = &driven.pool.name;
            return Some(format!(
                "pool `{pool}`: the API server was not asked for its workload yet"
            ));
        }
        let keda = self.keda.as_ref()?;
        let mut asked = self.config.pools.iter().filter(|pool| {
            let is_driven = |it: &Driven| it.pool.name == pool.name;
            matches!(pool.target, Some(Target::Keda(_))) && self.pools.iter().any(is_driven)
        });
        let unknown = asked.find(|pool| !keda.knows(&pool.name))?;
        let pool = &unknown.name;
        Some(format!("pool `{pool}`: no decision is known, so KEDA can't be answered"))
    }

    /// A person's order for one pool.
    fn order(&mut self, Order { pool, order, done }: Order) {
        let leads = self.leads();
        let driven = self.pools.iter_mut().find(|driven| driven.pool.name == pool);
        let outcome = match driven {
            None => Err(Refused::UnknownPool(
                self.config.pools.iter().map(|pool| pool.name.clone()).collect(),
            )),
            Some(_) if !leads => Err(Refused::NotLeading),
            Some(driven) if !driven.target.scales() => Err(Refused::Unscaled),
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

    fn ask(&mut self, ask: Ask, now_ms: u64) {
        let mut refused = false;
        for driven in &mut self.pools {
            let heard = self.feeds.words(&driven.pool.name);
            if !ask.by_itself || driven.target.has_pod(&heard, ask.endpoint) {
                driven.pool.ask_to_drain(ask.endpoint, now_ms);
            } else {
                refused |= driven.target.has_replica(&heard, ask.endpoint);
            }
        }
        if refused {
            let _ = ask.done.send(Err(NotAPod));
            return;
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
            let _ = ask.done.send(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests;
