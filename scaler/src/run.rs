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
use forebay_signals::follower::{Event, follow};
use forebay_signals::publisher::Publisher;
use forebay_signals::{Health, PoolReplicas, PoolSignals, ReplicaState, View};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::{SelectAll, select_all};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::clock::Clock;
use crate::core::Proposal;
use crate::keda::{KedaServer, ServeError};
use crate::metric::Metrics;
use crate::pool::{Heard, PoolLoop, Step};
use crate::sources::{Client, Sources};
use crate::targets::Driver;

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
    /// Starts deciding for every pool; for one without a target, it only tells. `gateways` are base
    /// URLs of admin ports, `token` their bearer token. `cluster` is needed where a target is in
    /// Kubernetes.
    ///
    /// # Errors
    /// [`StartError`] when a target can't be used.
    pub fn start(
        config: Arc<Config>,
        gateways: Vec<String>,
        token: Option<String>,
        cluster: Option<Cluster>,
    ) -> Result<Self, StartError> {
        let stale_after_ms = config.scaler.stale_after.as_millis() as u64;
        let ca_file = config.prometheus.ca_file.as_deref();
        let client = Client::new(ca_file).map_err(StartError::Authorities)?;
        let clock = Clock::start();
        let mut pools = Vec::new();
        for pool in &config.pools {
            let failed = |source| StartError::Target { pool: pool.name.clone(), source };
            let target = Driver::start(pool, cluster.as_ref()).map_err(failed)?;
            let metrics = Metrics::register(&pool.name);
            let decides = PoolLoop::new(pool, &config.prometheus, stale_after_ms);
            let sources = Sources::start(pool, decides.wanted(), &client, clock);
            let unread = BTreeSet::new();
            pools.push(Driven { pool: decides, target, sources, metrics, unread });
        }
        let publisher = Publisher::new();
        let decisions = Arc::new(Mutex::new(VecDeque::new()));
        let stop = CancellationToken::new();
        let work = Loop {
            feeds: Feeds::new(gateways, token.as_deref()),
            pools,
            publisher: Arc::clone(&publisher),
            decisions: Arc::clone(&decisions),
            last: BTreeMap::new(),
            clock,
            keda: KedaServer::start(&config)?.map(Arc::new),
        };
        let keda = work.keda.clone();
        let task = AbortOnDropHandle::new(tokio::spawn(work.run(stop.clone())));
        Ok(Self { publisher, decisions, stop, task, keda })
    }

    /// `GET /replicas` and `GET /decisions`.
    pub fn routes(&self) -> Router {
        let decisions = Arc::clone(&self.decisions);
        let list = move || {
            let decisions: Vec<_> = decisions.lock().iter().cloned().collect();
            async move { axum::Json(decisions) }
        };
        Router::new().route("/replicas", self.publisher.route()).route("/decisions", get(list))
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

/// Every gateway's feed, and the last that each said.
struct Feeds {
    streams: SelectAll<futures_util::stream::BoxStream<'static, (usize, Event<PoolSignals>)>>,
    heard: Vec<Gateway>,
}

struct Gateway {
    url: String,
    view: Option<Arc<View<PoolSignals>>>,
    /// Since when it is silent; from the beginning, until it is heard.
    lost: Option<Instant>,
    /// Its silence was told.
    told: bool,
    /// It said goodbye, and nothing of it counts until it is heard again.
    gone: bool,
}

impl Feeds {
    fn new(gateways: Vec<String>, token: Option<&str>) -> Self {
        let feed = |(i, url): (usize, &String)| {
            follow::<PoolSignals>(format!("{url}/signals"), token.map(str::to_owned))
                .map(move |event| (i, event))
                .boxed()
        };
        let streams = select_all(gateways.iter().enumerate().map(feed));
        let heard = gateways
            .into_iter()
            .map(|url| Gateway {
                url,
                view: None,
                lost: Some(Instant::now()),
                told: false,
                gone: false,
            })
            .collect();
        Self { streams, heard }
    }

    fn take(&mut self, i: usize, event: Event<PoolSignals>) {
        let gateway = &mut self.heard[i];
        match event {
            Event::Update { view, .. } => {
                gateway.view = Some(view);
                gateway.lost = None;
                gateway.told = false;
                gateway.gone = false;
            }
            Event::Goodbye => {
                gateway.view = None;
                gateway.gone = true;
            }
            Event::Lost { .. } if gateway.gone => {}
            Event::Lost { error } => {
                let since = *gateway.lost.get_or_insert_with(Instant::now);
                // In one process the scaler looks for its gateway before that listens.
                let settled = gateway.view.is_some() || since.elapsed() >= TICK;
                if settled && !std::mem::replace(&mut gateway.told, true) {
                    let url = &gateway.url;
                    tracing::warn!("the gateway at {url} is silent ({error}): nothing scales down");
                }
            }
        }
    }

    fn words<'a>(&'a self, pool: &str) -> Vec<Heard<'a>> {
        let word = |(gateway, at): (&'a Gateway, usize)| Heard {
            gateway: at,
            sender: gateway.view.as_ref().map_or("", |view| &view.sender),
            signals: gateway.view.as_ref().and_then(|view| view.pools.get(pool)),
            lost_ms: gateway.lost.map(|lost| lost.elapsed().as_millis() as u64),
        };
        self.heard.iter().zip(0..).filter(|(gateway, _)| !gateway.gone).map(word).collect()
    }
}

struct Loop {
    feeds: Feeds,
    pools: Vec<Driven>,
    publisher: Arc<Publisher<PoolReplicas>>,
    decisions: Arc<Mutex<VecDeque<Value>>>,
    last: BTreeMap<String, PoolReplicas>,
    clock: Clock,
    keda: Option<Arc<KedaServer>>,
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
                Some((i, event)) = self.feeds.streams.next() => self.feeds.take(i, event),
                () = changed.notified() => {}
                _ = ticks.tick() => tick = true,
            }
            self.step(self.clock.now_ms(), tick);
        }
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
        let alive = self.feeds.heard.iter().filter(|g| g.view.is_some() && g.lost.is_none());
        self.publisher.set_gateways(alive.count() as u32);
        if let Some(keda) = &self.keda {
            let known = self.pools.iter().filter(|driven| driven.pool.known());
            let known = known.filter_map(|driven| all.get_key_value(&driven.pool.name));
            keda.publish(known);
        }
        if tick || all != self.last {
            self.publisher.publish(all.clone());
            self.last = all;
        }
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
        match &proposal.problem {
            Some(problem) if driven.unread.insert(proposal.name.clone()) => {
                tracing::warn!("{pool}: trigger {} {problem}", proposal.name);
            }
            Some(_) => {}
            None if driven.unread.remove(&proposal.name) => {
                tracing::info!("{pool}: trigger {} can be read again", proposal.name);
            }
            None => {}
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
    }));
}
