//! The listener for KEDA's operator: HTTP/2, plain or with TLS, and the gRPC health service.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_base::listen::{Bounds, Listener, TrackLayer};
use forebay_config::{Config, KedaTls, Target};
use forebay_signals::PoolReplicas;
use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;

use super::proto::external_scaler_server::ExternalScalerServer;
use super::service::{KnownPools, Service};

/// Time to wait for connections at shutdown.
const GRACE: Duration = Duration::from_secs(3);
/// A client that answers no ping within this time is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// KEDA has a few connections. A connection that sends nothing is not waited for.
const BOUNDS: Bounds = Bounds {
    connections: 128,
    head: Duration::from_secs(10),
    idle: None,
    write: Duration::from_secs(30),
    multiplexed: true,
};
/// Concurrent calls on a connection: each ScaledObject has a stream and a few short calls.
const CALLS: u32 = 4096;
/// Size limit of a call's metadata.
const HEAD_SIZE: u32 = 32 << 10;

/// The server that the operator calls.
pub struct KedaServer {
    address: SocketAddr,
    config: watch::Sender<Arc<Config>>,
    known: watch::Sender<KnownPools>,
    opened: CancellationToken,
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
    /// A copy of its socket for a process that takes over, with the configured address.
    socket: Mutex<Option<(SocketAddr, TcpListener)>>,
}

/// The reason why KEDA can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can't be bound.
    #[error("scaler.keda.listen: can't listen on {address}: {source}")]
    Listen {
        /// The configured address.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of `scaler.keda.tls` can't be read.
    #[error("scaler.keda.tls.{field}: can't read {path}: {source}")]
    File {
        /// The field's name in the configuration.
        field: &'static str,
        /// The file's path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The files contain no valid certificate and key.
    #[error("scaler.keda.tls: {0}")]
    Tls(tonic::transport::Error),
}

impl KedaServer {
    /// Listens, if a pool's target is `keda`. Calls are answered from the first
    /// [`publish`](Self::publish) on; until then health checks report that it does not serve.
    ///
    /// # Errors
    /// [`ServeError`], with the field's name.
    pub fn start(config: &Arc<Config>) -> Result<Option<Self>, ServeError> {
        let server = Self::prepare(config, None)?;
        if let Some(server) = &server {
            server.open();
        }
        Ok(server)
    }

    /// Like [`start`](Self::start), but accepts nothing before [`open`](Self::open). `inherited` is
    /// the socket of a process that this one takes over from.
    pub(crate) fn prepare(
        config: &Arc<Config>,
        inherited: Option<TcpListener>,
    ) -> Result<Option<Self>, ServeError> {
        let by_keda = |pool: &forebay_config::Pool| matches!(pool.target, Some(Target::Keda(_)));
        if !config.pools.iter().any(by_keda) {
            return Ok(None);
        }
        let settings = &config.scaler.keda;
        let configured = settings.listen;
        let failed = |source| ServeError::Listen { address: configured, source };
        let bind = || forebay_base::listen::bind(configured, &BOUNDS);
        let listener = inherited.map_or_else(bind, Ok).map_err(failed)?;
        let socket = Mutex::new(Some((configured, listener.try_clone().map_err(failed)?)));
        let address = listener.local_addr().map_err(failed)?;
        let listener = Listener::new("keda", listener, BOUNDS).map_err(failed)?;
        let incoming = stream::unfold(listener, |mut listener| async {
            Some((Ok::<_, Infallible>(listener.accept().await), listener))
        });

        let mut server = Server::builder()
            .http2_keepalive_interval(Some(KEEP_ALIVE))
            .http2_keepalive_timeout(Some(KEEP_ALIVE))
            .max_concurrent_streams(CALLS)
            .http2_max_header_list_size(HEAD_SIZE)
            .layer(TrackLayer);
        if let Some(files) = &settings.tls {
            server = server.tls_config(tls(files)?).map_err(ServeError::Tls)?;
        }
        let (known, receiver) = watch::channel(KnownPools::default());
        let stop = CancellationToken::new();
        let (config, configs) = watch::channel(Arc::clone(config));
        let service = Service { config: configs, known: receiver.clone(), stop: stop.clone() };
        let (reporter, health) = tonic_health::server::health_reporter();
        let router = server.add_service(ExternalScalerServer::new(service)).add_service(health);
        let opened = CancellationToken::new();
        let (begin, stopped) = (opened.clone(), stop.clone());
        let task = AbortOnDropHandle::new(tokio::spawn(async move {
            tokio::select! {
                () = begin.cancelled() => {}
                () = stopped.cancelled() => return,
            }
            let health = report(reporter, receiver, stopped.clone());
            let serve = router.serve_with_incoming_shutdown(incoming, stopped.cancelled_owned());
            if let (Err(error), ()) = tokio::join!(serve, health) {
                tracing::error!("KEDA's port has failed: {error}");
            }
        }));
        let task = Mutex::new(Some(task));
        Ok(Some(Self { address, config, known, opened, stop, task, socket }))
    }

    /// Starts to accept connections.
    pub(crate) fn open(&self) {
        if !self.opened.is_cancelled() {
            tracing::info!("answering KEDA on {}", self.address);
        }
        self.opened.cancel();
    }

    pub(crate) fn socket(&self) -> Option<(SocketAddr, TcpListener)> {
        let socket = self.socket.lock();
        let (configured, socket) = socket.as_ref()?;
        Some((*configured, socket.try_clone().ok()?))
    }

    /// The address it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Parses triggers by another configuration from now on. A pool whose running target differs
    /// from its configuration is answered by the running one.
    pub(crate) fn reload(&self, config: &Config, is_run_by_keda: impl Fn(&str) -> bool) {
        let mut config = config.clone();
        self.config.send_modify(|known| {
            for pool in &mut config.pools {
                let configured = matches!(pool.target, Some(Target::Keda(_)));
                if configured != is_run_by_keda(&pool.name) {
                    let before = known.pools.iter().find(|one| one.name == pool.name);
                    let before = before.and_then(|one| one.target.clone());
                    pool.target = before.filter(|_| !configured);
                }
            }
            *known = Arc::new(config);
        });
    }

    /// Sets the decisions to answer from: the leader's, whichever scaler leads. Pools that are not
    /// among them keep their last one.
    pub fn publish<'a>(&self, pools: impl IntoIterator<Item = (&'a String, &'a PoolReplicas)>) {
        self.known.send_if_modified(|known| {
            let is_new = |(name, pool): &(&String, &PoolReplicas)| known.get(*name) != Some(*pool);
            let new: Vec<_> = pools.into_iter().filter(is_new).collect();
            if new.is_empty() {
                return false;
            }
            let new = new.into_iter().map(|(name, pool)| (name.clone(), pool.clone()));
            Arc::make_mut(known).extend(new);
            true
        });
    }

    /// The pools that triggers may name.
    #[cfg(test)]
    pub(crate) fn pools(&self) -> Vec<String> {
        let by_keda = |pool: &&forebay_config::Pool| matches!(pool.target, Some(Target::Keda(_)));
        self.config.borrow().pools.iter().filter(by_keda).map(|pool| pool.name.clone()).collect()
    }

    /// Whether a decision of this pool is known.
    pub(crate) fn knows(&self, pool: &str) -> bool {
        self.known.borrow().contains_key(pool)
    }

    /// Ends every stream with OK, then closes the connections.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.socket.lock().take();
        let Some(task) = self.task.lock().take() else { return };
        if tokio::time::timeout(GRACE, task).await.is_err() {
            tracing::debug!("KEDA kept its connection open; it is cut off");
        }
    }
}

/// Reports on the health service whether calls are answered.
async fn report(
    reporter: tonic_health::server::HealthReporter,
    mut known: watch::Receiver<KnownPools>,
    stop: CancellationToken,
) {
    let name = <ExternalScalerServer<Service> as tonic::server::NamedService>::NAME;
    let set = async |status| {
        for service in ["", name] {
            reporter.set_service_status(service, status).await;
        }
    };
    set(ServingStatus::NotServing).await;
    tokio::select! {
        () = stop.cancelled() => return,
        first = known.wait_for(|known| !known.is_empty()) => if first.is_err() { return },
    }
    set(ServingStatus::Serving).await;
    stop.cancelled().await;
    set(ServingStatus::NotServing).await;
}

fn tls(files: &KedaTls) -> Result<ServerTlsConfig, ServeError> {
    let read = |field, path: &Path| {
        let failed = |source| ServeError::File { field, path: path.display().to_string(), source };
        std::fs::read(path).map_err(failed)
    };
    let certificate = read("certFile", &files.cert_file)?;
    let key = read("keyFile", &files.key_file)?;
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(certificate, key));
    Ok(match &files.client_ca_file {
        Some(path) => tls.client_ca_root(Certificate::from_pem(read("clientCaFile", path)?)),
        None => tls,
    })
}
