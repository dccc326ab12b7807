//! The loop: signals in, decisions out.
//!
//! One task serves all pools. It wakes at every push of a gateway and every change of a target, and
//! decides at once. It also wakes once a second: leases are renewed, and windows move on.

pub(crate) mod decisions;
mod event_loop;
mod managed_pool;
pub(crate) mod metric;
pub(crate) mod pool;
mod spans;
mod standing;

use std::io;
use std::net::TcpListener;
use std::sync::Arc;

use axum::Router;
use axum::middleware::from_fn_with_state;
use forebay_config::Config;
use forebay_discovery::Cluster;
use forebay_signals::PoolReplicas;
use forebay_signals::publisher::Publisher;
use forebay_telemetry::Telemetry;
use futures_util::future::join_all;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::act::drains;
use crate::act::overrides;
use crate::clock::Clock;
use crate::keda::{KedaServer, ServeError};
use crate::lead::config_map::StateMaps;
use crate::lead::leader::{Election, Leadership};
use crate::lead::readiness::Readiness;
use crate::lead::store::{Folder, SnapshotStore};
use crate::observe::feeds::{Feeds, Gateways};
use crate::observe::sources::Client;
use crate::view::{self, Board};

use decisions::Decisions;
use event_loop::leading::Role;
use event_loop::persistence::Persistence;
use event_loop::succession::Succession;
pub use event_loop::succession::{Handover, ScalerState};
use event_loop::{DuePools, Inbox, Loop, Outputs, TICK};
use managed_pool::{Context, ManagedPool, leaving};

/// Drain requests, commands and inquiries that may wait for the loop.
const REQUESTS: usize = 64;
/// A running scaler.
pub struct Scaler {
    publisher: Arc<Publisher<PoolReplicas>>,
    decisions: Arc<Decisions>,
    board: Arc<Board>,
    config: watch::Sender<Arc<Config>>,
    stop: CancellationToken,
    task: AbortOnDropHandle<Vec<ManagedPool>>,
    keda: Option<Arc<KedaServer>>,
    election: Option<Election>,
    requests: Router,
    readiness: Readiness,
    succession: mpsc::Sender<Succession>,
}

/// The sources of a rehearsal of a pool's last day.
#[derive(Clone)]
pub struct Rehearsable {
    config: watch::Receiver<Arc<Config>>,
    board: Arc<Board>,
}

impl Rehearsable {
    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.config.borrow())
    }

    /// A pool's arrivals in the last day as CSV, as `forebay replay` reads it, if there were any.
    #[must_use]
    pub fn arrivals(&self, pool: &str) -> Option<String> {
        self.board.arrivals(pool).map(Iterator::collect)
    }
}

/// The reason why a scaler does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The target of a pool can't be used.
    #[error("pools: target of pool `{pool}`: {source}")]
    Target {
        /// The pool.
        pool: String,
        /// The reason.
        source: io::Error,
    },
    /// The certificates for triggers' sources can't be read.
    #[error("prometheus.caFile: {0}")]
    Authorities(String),
    /// The port for KEDA can't be used.
    #[error(transparent)]
    Keda(#[from] ServeError),
}

impl Scaler {
    /// Starts to decide for every pool; a pool without a target is only reported. `own` is the base
    /// URL at which other scalers reach this one. `cluster` is needed if a target is in Kubernetes,
    /// or if a leader is elected.
    ///
    /// # Errors
    /// [`StartError`] if a target can't be used.
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

    /// Like [`start`](Self::start), but decides nothing and does not answer KEDA before it takes over
    /// from another process. `keda_socket` is that process's, if any.
    ///
    /// # Errors
    /// [`StartError`] if a target can't be used.
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
        let ca_file = config.prometheus.ca_file.as_deref();
        let client = Client::new(ca_file).map_err(StartError::Authorities)?;
        let context = Context { clock: Clock::start(), cluster: cluster.cloned(), client };
        let mut pools = Vec::new();
        for pool in &config.pools {
            let failed = |source| StartError::Target { pool: pool.name.clone(), source };
            pools.push(ManagedPool::start(pool, &config, &context).map_err(failed)?);
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
        let (drain_sender, drains) = mpsc::channel(REQUESTS);
        let requests = drains::route(drain_sender, leadership.clone(), token.clone());
        let (command_sender, commands) = mpsc::channel(REQUESTS);
        let requests = requests.merge(overrides::route(command_sender));
        let board = Board::new(&config);
        let (inquiry_sender, inquiries) = mpsc::channel(REQUESTS);
        let requests = requests.merge(view::routes::routes(&board, inquiry_sender, token.clone()));
        let (succession_sender, succession) = mpsc::channel(1);
        let (latest, configs) = watch::channel(Arc::clone(&config));
        let keda = KedaServer::prepare(&config, keda_socket)?.map(Arc::new);
        let readiness = Readiness::new();
        let work = Loop {
            feeds: Feeds::new(gateways),
            pools,
            due: DuePools::all(),
            outputs: Outputs::new(
                Arc::clone(&publisher),
                Arc::clone(&decisions),
                Arc::clone(&board),
                keda.clone(),
            ),
            role: Role { leadership, standby, relay: None, token },
            memory: Persistence::new(store_of(&config, cluster)),
            inbox: Inbox { drains, commands, inquiries, configs, succession },
            config,
            context,
            waiting: Vec::new(),
            leaving: JoinSet::new(),
            readiness: readiness.clone(),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(work.run(stop.clone())));
        let config = latest;
        Ok(Self {
            publisher,
            decisions,
            board,
            config,
            stop,
            task,
            keda,
            election,
            requests,
            readiness,
            succession: succession_sender,
        })
    }

    /// Exports a span for each decision from now on, if traces are exported.
    pub fn export_to(&self, telemetry: &Telemetry) {
        if let Some(tracer) = &telemetry.tracer {
            self.decisions.trace(Arc::clone(tracer));
        }
    }

    /// Whether it can answer KEDA and gateways.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }

    /// The base URL of the scaler that leads, if it is known and not this one.
    pub fn other_leader(&self) -> impl Fn() -> Option<String> + Send + Sync + 'static + use<> {
        let leadership = self.election.as_ref().map(|election| election.leadership.clone());
        move || match &*leadership.as_ref()?.borrow() {
            Leadership::Theirs(url) => Some(url.clone()),
            Leadership::Ours | Leadership::Unknown => None,
        }
    }

    /// For rehearsals of the last day.
    #[must_use]
    pub fn rehearsable(&self) -> Rehearsable {
        Rehearsable { config: self.config.subscribe(), board: Arc::clone(&self.board) }
    }

    /// `GET /replicas` and `/decisions`, those of the console, `POST /drain`, and operators' commands
    /// below `/pools/NAME`.
    pub fn routes(&self) -> Router {
        let board = Arc::clone(&self.board);
        let while_deciding = from_fn_with_state(board, view::routes::while_deciding);
        Router::new()
            .route("/replicas", self.publisher.route())
            .route("/decisions", self.decisions.route().layer(while_deciding))
            .merge(self.requests.clone())
    }

    /// Applies another configuration: pools keep their names and all that was learned. A pool's
    /// changed target is used from the next start of the process.
    pub fn reload(&self, config: Arc<Config>) {
        self.config.send_replace(config);
    }

    /// Stops deciding, then stops every replica, and returns when no process is left. Meanwhile
    /// gateways that keep running hear that these replicas are draining.
    pub async fn shutdown(self) {
        self.stop.cancel();
        if let Some(keda) = &self.keda {
            keda.shutdown().await;
        }
        match self.task.await {
            Ok(pools) => {
                let all = pools.iter().map(|managed| managed.target.shutdown());
                let mut stopped = std::pin::pin!(join_all(all));
                let mut ticks = interval(TICK);
                loop {
                    tokio::select! {
                        biased; // The first tick comes at once, before anything is stopped.
                        _ = ticks.tick() => self.publisher.publish(leaving(&pools)),
                        _ = &mut stopped => break,
                    }
                }
            }
            Err(error) => tracing::error!("the scaler's loop ended early: {error}"),
        }
        // Not earlier: the last decision has to be saved first.
        if let Some(election) = self.election {
            election.resign().await;
        }
        self.publisher.goodbye();
    }
}

/// The store for snapshots: the configured folder, or ConfigMaps if a leader is elected.
fn store_of(config: &Config, cluster: Option<&Cluster>) -> Option<Arc<dyn SnapshotStore>> {
    if let Some(path) = &config.scaler.state_dir {
        return Some(Arc::new(Folder::new(path)));
    }
    let election = config.scaler.leader_election.as_ref()?;
    Some(Arc::new(StateMaps::new(election, cluster?)))
}
