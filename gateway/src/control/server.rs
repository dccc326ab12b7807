//! The gateway as one thing to start and to stop.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use axum::Router;
use forebay_bounds::Heartbeats;
use forebay_config::Config;
use forebay_discovery::Cluster;
use forebay_signals::publisher::Publisher;
use forebay_signals::{PoolSignals, Token};
use forebay_system::{files, memory};
use tokio::time::{Instant, timeout};

use crate::control::follow;
use crate::control::predecessor::{Busy, Predecessor};
use crate::control::reload::{Live, Pools, Prepared};
use crate::control::report::report;
use crate::control::start_error::StartError;
use crate::edge::layers::Edge;
use crate::edge::listen::Listeners;
use crate::exchange::proxy::Proxy;
use crate::figures::arrivals::{Recorder, Recording};
use crate::figures::endpoints_text;
use crate::net::bounds::{Bounds, Note};
use crate::net::drain::Drain;
use crate::net::tls::Tls;
use crate::pool::Pool;
use crate::read::body_memory::Bodies;
use crate::route::Routes;

/// How long threads that have nothing left to do may take to end.
const STOP: Duration = Duration::from_secs(5);

/// A running gateway. Its probes and feeds run on the runtime that started it, clients are served
/// by threads of its own.
pub struct Gateway {
    listeners: Listeners,
    drain: Drain,
    publisher: Arc<Publisher<PoolSignals>>,
    edge: Arc<Edge>,
    heartbeats: Heartbeats,
    /// Probes end with it.
    live: Live,
    recording: Option<Recording>,
    /// Of the bounds at the start.
    notes: Vec<Note>,
    predecessor: Arc<Predecessor>,
}

/// Lets others stop a gateway from taking work, before it is shut down.
#[derive(Clone)]
pub struct Draining(Drain);

impl Draining {
    /// From now on new requests are answered 503. What is held and in flight goes on.
    pub fn begin(&self) {
        self.0.begin();
    }

    /// Whether it takes no work any more, for whatever reason.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.has_begun()
    }

    /// Until no client is connected any more.
    pub async fn idle(&self) {
        self.0.idle().await;
    }
}

impl Gateway {
    /// Starts serving. `scaler` is the base URL of the admin port whose `/replicas` is followed,
    /// `token` its bearer token. `cluster` is needed where replicas are found in Kubernetes.
    ///
    /// # Errors
    /// [`StartError`] when an address can't be used.
    pub fn start(
        config: &Config,
        scaler: Option<String>,
        token: Option<Token>,
        cluster: Option<&Cluster>,
    ) -> Result<Self, StartError> {
        let gateway = Self::prepare(config, scaler, token, cluster, Vec::new())?;
        gateway.accept();
        Ok(gateway)
    }

    /// Starts all but serving, which [`accept`](Self::accept) begins. `sockets` are those of a
    /// process that this one takes over from, if any, which are listening.
    ///
    /// # Errors
    /// [`StartError`] when an address can't be used.
    pub fn prepare(
        config: &Config,
        scaler: Option<String>,
        token: Option<Token>,
        cluster: Option<&Cluster>,
        sockets: Vec<TcpListener>,
    ) -> Result<Self, StartError> {
        let prepared = Prepared::new(config)?;
        let tls = config.gateway.tls.as_ref().map(Tls::load).transpose()?;
        if config.gateway.keys.is_none() && !config.gateway.listen.ip().to_canonical().is_loopback()
        {
            tracing::warn!(
                "gateway.keys is not set: whoever reaches {} may use every model",
                config.gateway.listen
            );
        }
        let (limits, files) = (&config.gateway.limits, files::limit());
        let memory = memory::available();
        let bounds = Bounds::of(limits, &memory, files);
        let notes = bounds.notes(limits, &memory, files);
        let drain = Drain::default();
        let live = Live::begin(prepared, &drain, cluster);
        let pools = live.pools.all();
        let proxy = Proxy {
            bodies: Bodies::default(),
            routes: ArcSwap::from_pointee(Routes::new(config, pools.to_vec())),
            tenants: Arc::clone(&live.tenants),
            limits: ArcSwap::from_pointee(limits.clone()),
            bounds: ArcSwap::from_pointee(bounds),
            drain: drain.clone(),
        };
        let edge = Edge::new(&config.gateway, tls, proxy, drain.clone());
        let threads = config.gateway.threads.map_or_else(
            || std::thread::available_parallelism().map_or(1, usize::from),
            usize::from,
        );
        let address = config.gateway.listen;
        let heartbeats = Heartbeats::default();
        let listeners = Listeners::bind(address, threads.max(1), sockets, &edge, &heartbeats)
            .map_err(|source| StartError::Listen { address, source })?;
        let recording = record(config, &pools)?;
        let publisher = Publisher::new();
        // Whoever reads the feed first finds every pool in it.
        let first = pools.iter().map(|pool| (pool.name.to_string(), pool.signals()));
        publisher.publish(first.collect());
        drain.spawn(Arc::clone(&edge).follow_tls());
        let predecessor = Arc::<Predecessor>::default();
        let (pools, news) = (live.pools.clone(), Arc::clone(&live.news));
        drain.spawn(report(Arc::clone(&publisher), pools, news, Arc::clone(&predecessor)));
        drain.spawn(Arc::clone(&live.tenants).watch());
        if let Some(url) = scaler {
            let (tenants, directory) = (Arc::clone(&live.tenants), Arc::clone(&live.directory));
            drain.spawn(follow::replicas(url, token, live.pools.clone(), tenants, directory));
        }
        Ok(Self {
            listeners,
            drain,
            publisher,
            edge,
            heartbeats,
            live,
            recording,
            notes,
            predecessor,
        })
    }

    /// Begins to serve clients.
    pub fn accept(&self) {
        self.listeners.accept();
    }

    /// Copies of the clients' sockets, for a process that takes over.
    ///
    /// # Errors
    /// Descriptors are short.
    pub fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        self.listeners.sockets()
    }

    /// Leaves new connections to a process that has the sockets too. What is connected is served on
    /// to the end of its next answer; whoever reads `/signals` reads the other process's from now
    /// on.
    pub async fn retire(&self) {
        self.listeners.stop_accepting().await;
        self.drain.retire();
        self.publisher.goodbye();
    }

    /// Until no client is connected to a gateway that has retired.
    pub async fn deserted(&self) {
        self.drain.deserted().await;
    }

    /// What still goes on here, to be reported by a process that took over.
    #[must_use]
    pub fn busy(&self) -> Busy {
        Busy::of(&signals(&self.live.pools, &self.predecessor))
    }

    /// Reports what goes on in the process that was here before as this one's own, so that no
    /// replica is stopped under its requests. `Busy::default()` when that has ended.
    pub fn predecessor(&self) -> impl Fn(Busy) + Send + 'static {
        let (predecessor, pools) = (Arc::clone(&self.predecessor), self.live.pools.clone());
        let publisher = Arc::clone(&self.publisher);
        move |busy| {
            if predecessor.set(busy) {
                publisher.publish(signals(&pools, &predecessor));
            }
        }
    }

    /// Takes a new configuration over without dropping a request, or leaves all as it is.
    ///
    /// Pools keep their queue and their connections by their name; a pool that is no longer
    /// configured answers what it holds with 503, and finishes what is in flight. Returned are the
    /// fields that differ and can't be changed while the gateway runs.
    ///
    /// # Errors
    /// What can't be used, as at the start.
    pub async fn reload(&self, config: &Config) -> Result<Vec<String>, StartError> {
        let kept = self.live.reload(&self.edge, config).await?;
        if let Some(recording) = &self.recording {
            record_arrivals(&recording.recorder(), &self.live.pools.all());
        }
        Ok(kept)
    }

    /// Logs which bounds come from the machine.
    pub fn log_bounds(&self) {
        self.notes.iter().for_each(Note::log);
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listeners.address
    }

    /// The part of `/metrics` that comes and goes with the endpoints, made anew at each call.
    pub fn endpoint_metrics(&self) -> impl Fn() -> String + Clone + Send + Sync + 'static {
        let publisher = Arc::clone(&self.publisher);
        move || {
            let pools = publisher.pools();
            endpoints_text(pools.iter().map(|(name, signals)| (name.as_str(), signals)))
        }
    }

    /// Those of the threads that serve clients.
    #[must_use]
    pub fn heartbeats(&self) -> Heartbeats {
        self.heartbeats.clone()
    }

    /// To drain it from elsewhere.
    #[must_use]
    pub fn draining(&self) -> Draining {
        Draining(self.drain.clone())
    }

    /// `GET /signals`.
    pub fn routes(&self) -> Router {
        Router::new().route("/signals", self.publisher.route())
    }

    /// Stops accepting and finishes what is in flight and held.
    ///
    /// # Errors
    /// How many connections were cut off because their requests were not finished after `within`.
    pub async fn shutdown(self, within: Duration) -> Result<(), usize> {
        self.listeners.stop_accepting().await;
        let finished = self.drain.finish(Instant::now() + within).await;
        self.publisher.goodbye();
        let listeners = self.listeners;
        let recording = self.recording;
        let stopped = tokio::task::spawn_blocking(move || {
            listeners.stop();
            if let Some(recording) = recording {
                recording.finish();
            }
        });
        if timeout(STOP, stopped).await.is_err() {
            tracing::warn!("a thread for clients does not end; it is left alone");
        }
        finished
    }
}

/// What goes on here and in the process before.
fn signals(pools: &Pools, predecessor: &Predecessor) -> BTreeMap<String, PoolSignals> {
    let pools = pools.all();
    let signals = pools.iter().map(|pool| (pool.name.to_string(), pool.signals()));
    let mut signals = signals.collect();
    predecessor.add_to(&mut signals);
    signals
}

/// Records the arrivals of every pool, where that is configured.
fn record(config: &Config, pools: &[Arc<Pool>]) -> Result<Option<Recording>, StartError> {
    let Some(settings) = &config.gateway.record_arrivals else { return Ok(None) };
    let recording = Recording::start(settings)
        .map_err(|source| StartError::Arrivals { file: settings.file.clone(), source })?;
    record_arrivals(&recording.recorder(), pools);
    Ok(Some(recording))
}

/// Records these pools from now on; those that are recorded already stay so.
fn record_arrivals(recorder: &Recorder, pools: &[Arc<Pool>]) {
    for pool in pools {
        let _ = pool.recorder.set(recorder.clone());
    }
}
