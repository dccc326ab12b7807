//! The admin port's listener, on a thread of its own: a scrape delays no chunk and no decision, and
//! health is answered however busy the others are.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use forebay_bounds::{Bounds, Connection, Counted, CountedLayer, Heartbeats, Listener};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service, service_fn};

use super::Scrape;

const BOUNDS: Bounds = Bounds {
    connections: 512,
    head: Duration::from_secs(10),
    idle: Some(Duration::from_secs(75)),
    write: Duration::from_secs(30),
    multiplexed: false,
};
/// Bytes of a head.
const HEAD_SIZE: usize = 32 << 10;
/// How long the feeds' last events have to go out.
const LAST: Duration = Duration::from_millis(100);
/// How long the thread has to end.
const END: Duration = Duration::from_secs(1);

/// The port, served until it is stopped or dropped.
pub(crate) struct Port {
    stop: CancellationToken,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
}

/// Takes the address, so that a port that is taken is known before anything is started.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    forebay_bounds::bind(address, &BOUNDS)
}

impl Port {
    /// Serves `router`, keeps `scrape` small, and watches the other threads' hearts.
    pub(crate) fn serve(
        socket: TcpListener,
        router: Router,
        scrape: Scrape,
        heartbeats: Heartbeats,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let (running, ended) = sync_channel(0);
        let run = move || {
            let serve = async {
                tokio::select! {
                    served = accept(socket, router) => {
                        let Err(error) = served;
                        tracing::error!("the admin port is gone: {error}");
                    }
                    () = scrape.upkeep() => {}
                    () = heartbeats.watch() => {}
                    () = stopped.cancelled() => sleep(LAST).await,
                }
            };
            runtime.block_on(serve);
            runtime.shutdown_background();
            drop(running);
        };
        std::thread::Builder::new().name("admin".to_owned()).spawn(run)?;
        Ok(Self { stop, ended })
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
        if self.ended.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!("the admin port's thread does not end; it is left alone");
        }
    }
}

async fn accept(socket: TcpListener, router: Router) -> io::Result<std::convert::Infallible> {
    let mut listener = Listener::new("admin", socket, BOUNDS)?;
    let router = CountedLayer.layer(router);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                connections.spawn(answer(connection, router.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(connection: Connection, router: Counted<Router>) {
    let peer = connection.peer();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        router.clone().call(request)
    });
    let mut http = http1::Builder::new();
    // The connection has its own limits of time.
    http.header_read_timeout(None).max_buf_size(HEAD_SIZE).max_header_size(HEAD_SIZE);
    let service = TowerToHyperService::new(service);
    if let Err(error) = http.serve_connection(TokioIo::new(connection), service).await {
        tracing::debug!("admin: connection: {error}");
    }
}
