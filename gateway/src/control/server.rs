//! The running gateway: start, hand-over, reload, shutdown.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use axum::Router;
use forebay_base::Heartbeats;
use forebay_base::{memory, open_files};
use forebay_config::Config;
use forebay_discovery::Cluster;
use forebay_signals::publisher::Publisher;
use forebay_signals::{PoolSignals, Token};
use forebay_telemetry::Telemetry;
use forebay_telemetry::figure::Metric;
use tokio::time::{Instant, timeout};

use crate::control::follow;
use crate::control::predecessor::{Busy, Predecessor};
use crate::control::reload::{LiveConfig, Pools, PreparedConfig};
use crate::control::report::report;
use crate::control::start_error::StartError;
use crate::control::{endpoint_details, held_requests, tried_requests};
use crate::edge::layers::Edge;
use crate::edge::listen::Listeners;
use crate::exchange::proxy::Proxy;
use crate::figures::arrivals::{Recorder, Recording};
use crate::figures::{endpoints_otlp, endpoints_text};
use crate::net::drain::Drain;
use crate::net::machine_limits::{MachineLimits, Note};
use crate::net::tls::Tls;
use crate::pool::Pool;
use crate::read::body_memory::BodyMemory;
use crate::route::Routes;

/// How long the threads may take to end when they have nothing left to do.
const STOP: Duration = Duration::from_secs(5);

/// A running gateway. Its probes and feeds run on the runtime that started it; threads of its own
/// serve clients.
pub struct Gateway {
    listeners: Listeners,
    drain: Drain,
    publisher: Arc<Publisher<PoolSignals>>,
    edge: Arc<Edge>,
    heartbeats: Heartbeats,
    /// Probes end with it.
    live: LiveConfig,
    recording: Option<Recording>,
    /// Notes about the machine's limits at the start.
    notes: Vec<Note>,
    predecessor: Arc<Predecessor>,
}

/// The parts of its process that a gateway uses.
#[derive(Default)]
pub struct ProcessParts {
    /// The listening sockets of a process that this one takes over from.
    pub sockets: Vec<TcpListener>,
    /// The export of traces and metrics; `None` if nothing is exported.
    pub telemetry: Option<Arc<Telemetry>>,
}

/// A handle that makes a gateway refuse new work, before it is shut down.
#[derive(Clone)]
pub struct Draining(Drain);

impl Draining {
    /// Answers new requests with 503 from now on. Requests that are held or in flight go on.
    pub fn begin(&self) {
        self.0.begin();
    }

    /// Whether the gateway refuses new work, for any reason.
    #[must_use]
    pub fn has_begun(&self) -> bool {
        self.0.has_begun()
    }

    /// Resolves when no client is connected.
    pub async fn idle(&self) {
        self.0.idle().await;
    }
}

impl Gateway {
    /// Starts serving. `scaler` is the base URL of the admin port whose `/replicas` is followed,
    /// and `token` its bearer token. `cluster` is needed if replicas are discovered in Kubernetes.
    ///
    /// # Errors
    /// [`StartError`] if the configuration can't be used.
    pub fn start(
        config: &Config,
        scaler: Option<String>,
        token: Option<Token>,
        cluster: Option<&Cluster>,
    ) -> Result<Self, StartError> {
        let gateway = Self::prepare(config, scaler, token, cluster, ProcessParts::default())?;
        gateway.accept();
        Ok(gateway)
    }

    /// Starts everything but serving, which [`accept`](Self::accept) begins.
    ///
    /// # Errors
    /// [`StartError`] if the configuration can't be used.
    pub fn prepare(
        config: &Config,
        scaler: Option<String>,
        token: Option<Token>,
        cluster: Option<&Cluster>,
        parts: ProcessParts,
    ) -> Result<Self, StartError> {
        let ProcessParts { sockets, telemetry } = parts;
        let prepared = PreparedConfig::new(config)?;
        let tls = config.gateway.tls.as_ref().map(Tls::load).transpose()?;
        if config.gateway.keys.is_none() && !config.gateway.listen.ip().to_canonical().is_loopback()
        {
            tracing::warn!(
                "gateway.keys is not set: every client that reaches {} may use every model",
                config.gateway.listen
            );
        }
        let (limits, files) = (&config.gateway.limits, open_files::limit());
        let memory = memory::available();
        let bounds = MachineLimits::of(limits, &memory, files);
        let notes = bounds.notes(limits, &memory, files);
        let drain = Drain::default();
        let live = LiveConfig::begin(prepared, &drain, cluster);
        let pools = live.pools.all();
        let proxy = Proxy {
            body_memory: BodyMemory::default(),
            routes: ArcSwap::from_pointee(Routes::new(config, pools.to_vec())),
            tenants: Arc::clone(&live.tenants),
            bounds: ArcSwap::from_pointee(bounds),
            drain: drain.clone(),
        };
        let edge = Edge::new(&config.gateway, tls, proxy, drain.clone(), telemetry);
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
        // The first reader of the feed finds every pool in it.
        let first = pools.iter().map(|pool| (pool.name.to_string(), pool.signals()));
        publisher.publish(first.collect());
        drain.spawn(Arc::clone(&edge).follow_tls());
        let predecessor = Arc::<Predecessor>::default();
        let (pools, changed) = (live.pools.clone(), Arc::clone(&live.changed));
        drain.spawn(report(Arc::clone(&publisher), pools, changed, Arc::clone(&predecessor)));
        drain.spawn(follow::upstream_keys(live.pools.clone()));
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

    /// Starts serving clients.
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

    /// Leaves new connections to the process that took the sockets over. Each open connection ends
    /// with its next answer. Readers of `/signals` go to the other process.
    pub async fn retire(&self) {
        self.listeners.stop_accepting().await;
        self.drain.retire();
        self.publisher.goodbye();
    }

    /// Resolves when the gateway has retired and no client is connected any longer.
    pub async fn deserted(&self) {
        self.drain.deserted().await;
    }

    /// The requests that are held and in flight here. The process that took over reports them.
    #[must_use]
    pub fn busy(&self) -> Busy {
        Busy::of(&signals(&self.live.pools, &self.predecessor))
    }

    /// Returns a function that takes each report of the process that served here before. Its
    /// requests are reported as this process's own, so that no replica is stopped under them. After
    /// its end, the report is `Busy::default()`.
    pub fn predecessor(&self) -> impl Fn(Busy) + Send + 'static {
        let (predecessor, pools) = (Arc::clone(&self.predecessor), self.live.pools.clone());
        let publisher = Arc::clone(&self.publisher);
        move |busy| {
            if predecessor.set(busy) {
                publisher.publish(signals(&pools, &predecessor));
            }
        }
    }

    /// Applies a new configuration without dropping a request. After an error, the old one stays in
    /// force.
    ///
    /// Pools with the same name keep their queue and their connections. A pool that is no longer
    /// configured answers its held requests with 503, and finishes those in flight. Returns the
    /// fields that differ and need a restart.
    ///
    /// # Errors
    /// [`StartError`] if the configuration can't be used.
    pub async fn reload(&self, config: &Config) -> Result<Vec<String>, StartError> {
        let kept = self.live.reload(&self.edge, config).await?;
        if let Some(recording) = &self.recording {
            record_arrivals(&recording.recorder(), &self.live.pools.all());
        }
        Ok(kept)
    }

    /// Logs the limits that come from the machine.
    pub fn log_bounds(&self) {
        self.notes.iter().for_each(Note::log);
    }

    /// The address that clients connect to.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listeners.address
    }

    /// Returns a function that writes the metrics of endpoints: the part of `/metrics` whose series
    /// come and go.
    pub fn endpoint_metrics(&self) -> impl Fn(&mut String) + Clone + Send + Sync + 'static {
        let publisher = Arc::clone(&self.publisher);
        move |text| {
            let pools = publisher.pools();
            endpoints_text(text, pools.iter().map(|(name, signals)| (name.as_str(), signals)));
        }
    }

    /// Returns a function that makes the same metrics for OTLP, as they are at the given time.
    pub fn endpoint_figures(&self) -> impl Fn(SystemTime) -> Vec<Metric> + Send + Sync + 'static {
        let (publisher, began) = (Arc::clone(&self.publisher), SystemTime::now());
        move |now| {
            let pools = publisher.pools();
            let pools = pools.iter().map(|(name, signals)| (name.as_str(), signals));
            endpoints_otlp(pools, began, now)
        }
    }

    /// The heartbeats of the threads that serve clients.
    #[must_use]
    pub fn heartbeats(&self) -> Heartbeats {
        self.heartbeats.clone()
    }

    /// A handle to drain the gateway.
    #[must_use]
    pub fn draining(&self) -> Draining {
        Draining(self.drain.clone())
    }

    /// `GET /signals`, and `GET /queue`.
    pub fn routes(&self) -> Router {
        let routes = Router::new().route("/signals", self.publisher.route());
        routes
            .merge(held_requests::routes(self.live.pools.clone()))
            .merge(endpoint_details::routes(self.live.pools.clone()))
            .merge(tried_requests::routes(self.live.pools.clone()))
    }

    /// Stops accepting, and finishes the requests that are held and in flight.
    ///
    /// # Errors
    /// The number of connections that were cut off because they had not ended after `within`.
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
            tracing::warn!("a thread that serves clients does not end; it is abandoned");
        }
        finished
    }
}

/// The signals of this process, with the requests of the one before.
fn signals(pools: &Pools, predecessor: &Predecessor) -> BTreeMap<String, PoolSignals> {
    let pools = pools.all();
    let signals = pools.iter().map(|pool| (pool.name.to_string(), pool.signals()));
    let mut signals = signals.collect();
    predecessor.add_to(&mut signals);
    signals
}

/// Records the arrivals of every pool if that is configured.
fn record(config: &Config, pools: &[Arc<Pool>]) -> Result<Option<Recording>, StartError> {
    let Some(settings) = &config.gateway.record_arrivals else { return Ok(None) };
    let recording = Recording::start(settings)
        .map_err(|source| StartError::Arrivals { file: settings.file.clone(), source })?;
    record_arrivals(&recording.recorder(), pools);
    Ok(Some(recording))
}

/// Records the arrivals of these pools from now on.
fn record_arrivals(recorder: &Recorder, pools: &[Arc<Pool>]) {
    for pool in pools {
        let _ = pool.recorder.set(recorder.clone());
    }
}
