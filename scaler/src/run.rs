//! The loop: signals in, decisions out.
//!
//! One task for all pools. It wakes at every push of a gateway and every change of a target, decides
//! at once, and once a second in any case: leases are renewed, windows move on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::get;
use forebay_config::Config;
use forebay_discovery::Cluster;
use forebay_signals::publisher::Publisher;
use forebay_signals::{Health, PoolReplicas, ReplicaState};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::core::{Problem, Proposal};
use crate::drains::{self, Ask};
use crate::feeds::{Feeds, Gateways};
use crate::keda::{KedaServer, ServeError};
use crate::leader::{Election, Leadership};
use crate::metric::Metrics;
use crate::pool::{Heard, PoolLoop, Step};
use crate::relay::{Relay, Words};
use crate::sources::{Client, Sources};
use crate::targets::{Driver, Target};

/// Drains that wait to be heard.
const ASKS: usize = 64;
const TICK: Duration = Duration::from_secs(1);
/// Decisions kept for `/decisions`.
const KEPT: usize = 300;

/// A running scaler.
pub struct Scaler {
    publisher: Arc<Publisher<PoolReplicas>>,
    decisions: Arc<Mutex<VecDeque<Value>>>,
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
        let decisions = Arc::new(Mutex::new(VecDeque::new()));
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
        };
        let keda = work.keda.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(work.run(stop.clone())));
        Ok(Self { publisher, decisions, stop, task, keda, election, desk })
    }

    /// `GET /replicas`, `GET /decisions` and `POST /drain`.
    pub fn routes(&self) -> Router {
        let decisions = Arc::clone(&self.decisions);
        let list = move || {
            let decisions: Vec<_> = decisions.lock().iter().cloned().collect();
            async move { axum::Json(decisions) }
        };
        Router::new()
            .route("/replicas", self.publisher.route())
            .route("/decisions", get(list))
            .merge(self.desk.clone())
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
    decisions: Arc<Mutex<VecDeque<Value>>>,
    last: BTreeMap<String, PoolReplicas>,
    clock: Clock,
    keda: Option<Arc<KedaServer>>,
    /// Who decides; this one, where nobody else could.
    leadership: Option<watch::Receiver<Leadership>>,
    /// The leader's words, where that is another.
    relay: Option<Relay>,
    token: Option<String>,
    asks: mpsc::Receiver<Ask>,
    /// Those that wait for a replica to be drained.
    waiting: Vec<Ask>,
    config: Arc<Config>,
}

impl Loop {
    async fn run(mut self, stop: CancellationToken) -> Vec<Driven> {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let changed = Arc::new(Notify::new());
        let mut watchers = tokio::task::JoinSet::new();
        for driven in &self.pools {
            let Some(mut replicas) = driven.target.replicas() else { continue };
            let changed = Arc::clone(&changed);
            watchers.spawn(async move {
                while replicas.changed().await.is_ok() {
                    changed.notify_one();
                }
            });
        }
        loop {
            let mut tick = false;
            tokio::select! {
                () = stop.cancelled() => return self.pools,
                Some(news) = self.feeds.next() => self.feeds.take(news),
                () = changed.notified() => {}
                _ = ticks.tick() => tick = true,
                () = turn(&mut self.leadership) => self.elected(),
                Some(words) = hear(&mut self.relay, &self.last) => self.repeat(words),
                Some(ask) = self.asks.recv() => self.ask(ask, self.clock.now_ms()),
            }
            if self.leads() {
                self.step(self.clock.now_ms(), tick);
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
                for (driven, pool) in self.pools.iter_mut().zip(&self.config.pools) {
                    driven.pool = PoolLoop::new(pool, &self.config.prometheus, stale_after_ms);
                }
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
        for driven in &self.pools {
            driven.target.rest();
        }
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

    fn ask(&mut self, ask: Ask, now_ms: u64) {
        for driven in &mut self.pools {
            driven.pool.ask_to_drain(ask.endpoint, now_ms);
        }
        self.waiting.push(ask);
    }

    fn step(&mut self, now_ms: u64, tick: bool) {
        let mut all = BTreeMap::new();
        for driven in &mut self.pools {
            let began = Instant::now();
            let heard = self.feeds.words(&driven.pool.name);
            // Nothing is decided of what is not known yet, and gateways keep what they know.
            let Some(statuses) = driven.target.statuses(&heard) else { continue };
            driven.sources.ask(ready(&heard));
            let readings = driven.sources.readings();
            let step = driven.pool.step(&heard, &statuses, &readings, &driven.target, now_ms);
            driven.metrics.reaction.record(began.elapsed());
            note(driven, &step, now_ms, &self.decisions);
            all.insert(driven.pool.name.clone(), step.replicas);
        }
        self.publisher.set_gateways(self.feeds.alive());
        if let Some(keda) = &self.keda {
            let known = self.pools.iter().filter(|driven| driven.pool.known());
            let known = known.filter_map(|driven| all.get_key_value(&driven.pool.name));
            keda.publish(known);
        }
        if tick || all != self.last {
            self.publisher.publish(all.clone());
            self.last = all;
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
fn note(driven: &mut Driven, step: &Step, now_ms: u64, decisions: &Mutex<VecDeque<Value>>) {
    let Step { decision, replicas, cold_starts } = step;
    driven.metrics.desired.set(decision.desired);
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
    triggers(driven, &decision.proposals);
    if decision.from == decision.desired {
        return;
    }
    driven.metrics.decisions.increment(1);
    let sentence = decision.sentence();
    tracing::info!("{}: {sentence}", driven.pool.name);
    let mut decisions = decisions.lock();
    if decisions.len() == KEPT {
        decisions.pop_front();
    }
    decisions.push_back(json!({
        "atMillis": now_ms,
        "pool": driven.pool.name,
        "from": decision.from,
        "desired": decision.desired,
        "why": sentence,
        "triggers": decision.proposals,
    }));
}
