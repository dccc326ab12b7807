//! The listener for KEDA's operator: HTTP/2, plain or with TLS, and the gRPC health service.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use forebay_bounds::{Bounds, CountedLayer, Listener};
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
use super::service::{Known, Service};

/// After this a connection is no longer waited for.
const GRACE: Duration = Duration::from_secs(3);
/// A client that answers no ping for so long is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(20);
/// KEDA has one connection, or a few; whoever says nothing is not waited for.
const BOUNDS: Bounds = Bounds {
    connections: 128,
    head: Duration::from_secs(10),
    idle: None,
    write: Duration::from_secs(30),
    multiplexed: true,
};
/// Calls at once on a connection: each ScaledObject has a stream and a few short calls.
const CALLS: u32 = 4096;
/// Bytes of a call's metadata.
const HEAD_SIZE: u32 = 32 << 10;

/// What the operator calls.
pub struct KedaServer {
    address: SocketAddr,
    config: watch::Sender<Arc<Config>>,
    known: watch::Sender<Known>,
    opened: CancellationToken,
    stop: CancellationToken,
    task: Mutex<Option<AbortOnDropHandle<()>>>,
    /// A copy of its socket, for a process that takes over, with the address as configured.
    socket: Mutex<Option<(SocketAddr, TcpListener)>>,
}

/// Why KEDA can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address can't be had.
    #[error("scaler.keda.listen: cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
    /// A file of `scaler.keda.tls` can't be read.
    #[error("scaler.keda.tls.{field}: cannot read {path}: {source}")]
    File {
        /// Its name in the configuration.
        field: &'static str,
        /// Its path.
        path: String,
        /// The system's reason.
        source: io::Error,
    },
    /// The files are no certificate and key.
    #[error("scaler.keda.tls: {0}")]
    Tls(tonic::transport::Error),
}

impl KedaServer {
    /// Listens, where a pool's target is `keda`. Calls are answered from the first
    /// [`publish`](Self::publish) on; health checks say so.
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

    /// The same, but nothing is accepted before [`open`](Self::open). `inherited` is the socket of a
    /// process that this one takes over from.
    pub(crate) fn prepare(
        config: &Arc<Config>,
        inherited: Option<TcpListener>,
    ) -> Result<Option<Self>, ServeError> {
        let driven = |pool: &forebay_config::Pool| matches!(pool.target, Some(Target::Keda(_)));
        if !config.pools.iter().any(driven) {
            return Ok(None);
        }
        let settings = &config.scaler.keda;
        let configured = settings.listen;
        let failed = |source| ServeError::Listen { address: configured, source };
        let bind = || forebay_bounds::bind(configured, &BOUNDS);
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
            .layer(CountedLayer);
        if let Some(files) = &settings.tls {
            server = server.tls_config(tls(files)?).map_err(ServeError::Tls)?;
        }
        let (known, receiver) = watch::channel(Known::default());
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
                tracing::error!("KEDA's port is gone: {error}");
            }
        }));
        let task = Mutex::new(Some(task));
        Ok(Some(Self { address, config, known, opened, stop, task, socket }))
    }

    /// Begins to answer.
    pub(crate) fn open(&self) {
        if !self.opened.is_cancelled() {
            tracing::info!("KEDA is answered on {}", self.address);
        }
        self.opened.cancel();
    }

    pub(crate) fn socket(&self) -> Option<(SocketAddr, TcpListener)> {
        let socket = self.socket.lock();
        let (configured, socket) = socket.as_ref()?;
        Some((*configured, socket.try_clone().ok()?))
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Understands triggers by another configuration from now on. A pool that is driven otherwise
    /// than it says is asked for as it is driven.
    pub(crate) fn reload(&self, config: &Config, is_driven: impl Fn(&str) -> bool) {
        let mut config = config.clone();
        self.config.send_modify(|known| {
            for pool in &mut config.pools {
                let is_asked = matches!(pool.target, Some(Target::Keda(_)));
                if is_asked != is_driven(&pool.name) {
                    let before = known.pools.iter().find(|it| it.name == pool.name);
                    pool.target = before.and_then(|it| it.target.clone()).filter(|_| !is_asked);
                }
            }
            *known = Arc::new(config);
        });
    }

    /// What is answered from now on: the leader's decisions, whoever leads. Pools that are not in
    /// it keep their last one.
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

    /// The pools that triggers may ask for.
    #[cfg(test)]
    pub(crate) fn pools(&self) -> Vec<String> {
        let asked = |pool: &&forebay_config::Pool| matches!(pool.target, Some(Target::Keda(_)));
        self.config.borrow().pools.iter().filter(asked).map(|it| it.name.clone()).collect()
    }

    /// Whether there is an answer on this pool.
    pub(crate) fn knows(&self, pool: &str) -> bool {
        self.known.borrow().contains_key(pool)
    }

    /// Ends every stream with OK, and then the connections.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.socket.lock().take();
        let Some(task) = self.task.lock().take() else { return };
        if tokio::time::timeout(GRACE, task).await.is_err() {
            tracing::debug!("KEDA kept its connection; it is cut off");
        }
    }
}

/// Says on the health service whether calls are answered.
async fn report(
    reporter: tonic_health::server::HealthReporter,
    mut known: watch::Receiver<Known>,
    stop: CancellationToken,
) {
    let name = <ExternalScalerServer<Service> as tonic::server::NamedService>::NAME;
    let say = async |status| {
        for service in ["", name] {
            reporter.set_service_status(service, status).await;
        }
    };
    say(ServingStatus::NotServing).await;
    tokio::select! {
        () = stop.cancelled() => return,
        there = known.wait_for(|known| !known.is_empty()) => if there.is_err() { return },
    }
    say(ServingStatus::Serving).await;
    stop.cancelled().await;
    say(ServingStatus::NotServing).await;
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
