//! The admin port's listener, on a thread of its own: a scrape delays no chunk and no decision, and
//! health is answered however busy the other threads are.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use forebay_base::Heartbeats;
use forebay_base::listen::{Bounds, Connection, Listener, TrackLayer, Tracked};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tower::{Layer, Service, service_fn};

const BOUNDS: Bounds = Bounds {
    connections: 512,
    head: Duration::from_secs(10),
    idle: Some(Duration::from_secs(75)),
    write: Duration::from_secs(30),
    multiplexed: false,
};
/// Most bytes of a head.
const HEAD_SIZE: usize = 32 << 10;
/// Longest time to send the feeds' last events.
const LAST: Duration = Duration::from_millis(100);
/// Longest time for the thread to end.
const END: Duration = Duration::from_secs(1);
/// How long connections may stay when another process has taken over.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// The port, served until it is stopped or dropped, or another process has taken over.
pub(crate) struct Port {
    begin: CancellationToken,
    retire: CancellationToken,
    finished: CancellationToken,
    stop: CancellationToken,
    /// Disconnected when the thread ends.
    ended: Receiver<()>,
}

/// Binds the address, so that a port in use is noticed before anything starts.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    forebay_base::listen::bind(address, &BOUNDS)
}

impl Port {
    /// Starts the thread, which watches the heartbeats of the other threads. It serves `router` from
    /// [`accept`](Self::accept) on.
    pub(crate) fn prepare(
        socket: TcpListener,
        router: Router,
        heartbeats: Heartbeats,
    ) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let [begin, retire, finished, stop] = std::array::from_fn(|_| CancellationToken::new());
        let (begun, retired, stopped) = (begin.clone(), retire.clone(), stop.clone());
        let finish = finished.clone().drop_guard();
        let (running, ended) = sync_channel(0);
        let run = move || {
            let serve = async {
                let accepted = async {
                    begun.cancelled().await;
                    accept(socket, router, retired).await
                };
                tokio::select! {
                    served = accepted => if let Err(error) = served {
                        tracing::error!("the admin port has failed: {error}");
                    },
                    () = heartbeats.watch() => {}
                    () = stopped.cancelled() => sleep(LAST).await,
                }
            };
            runtime.block_on(serve);
            runtime.shutdown_background();
            drop(finish);
            drop(running);
        };
        std::thread::Builder::new().name("admin".to_owned()).spawn(run)?;
        Ok(Self { begin, retire, finished, stop, ended })
    }

    /// Begins to serve.
    pub(crate) fn accept(&self) {
        self.begin.cancel();
    }

    /// Leaves new connections to another process that has the socket too. The open ones end with their
    /// next answer.
    pub(crate) fn retire(&self) {
        self.retire.cancel();
    }

    /// Waits until the port has stopped serving.
    pub(crate) async fn ended(&self) {
        self.finished.cancelled().await;
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.stop.cancel();
        if self.ended.recv_timeout(END) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(
                "the admin port's thread has not ended within {END:?}; exiting without it"
            );
        }
    }
}

async fn accept(socket: TcpListener, router: Router, retire: CancellationToken) -> io::Result<()> {
    let mut listener = Listener::new("admin", socket, BOUNDS)?;
    let router = TrackLayer.layer(router);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                connections.spawn(answer(connection, router.clone(), retire.clone()));
            }
            Some(_) = connections.join_next() => {}
            () = retire.cancelled() => break,
        }
    }
    drop(listener);
    let _ = timeout(LAST_ANSWERS, connections.join_all()).await;
    Ok(())
}

async fn answer(connection: Connection, router: Tracked<Router>, retire: CancellationToken) {
    let peer = connection.peer();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        let (answer, retire) = (router.clone().call(request), retire.clone());
        async move {
            let mut answer = answer.await?;
            if retire.is_cancelled() {
                // The next connection reaches the process that took over.
                let close = HeaderValue::from_static("close");
                answer.headers_mut().insert(header::CONNECTION, close);
            }
            Ok::<_, Infallible>(answer)
        }
    });
    let mut http = http1::Builder::new();
    // The connection has its own limits of time.
    http.header_read_timeout(None).max_buf_size(HEAD_SIZE).max_header_size(HEAD_SIZE);
    let service = TowerToHyperService::new(service);
    if let Err(error) = http.serve_connection(TokioIo::new(connection), service).await {
        tracing::debug!("admin: connection: {error}");
    }
}
