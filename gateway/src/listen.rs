//! The client's side: a thread a core, each with its own runtime and socket.
//!
//! Every thread owns an `SO_REUSEPORT` socket of the same address, so that no connection is handed
//! between cores. The first is bound without it, once: a taken port is an error and not a silent
//! share. pingora accepts; `connection` serves.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::IntoRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use async_trait::async_trait;
use forebay_bounds::Heartbeats;
use parking_lot::Mutex;
use pingora_core::apps::ServerApp;
use pingora_core::listeners::{L4BufferSettings, ListenerConfig};
use pingora_core::protocols::Stream;
use pingora_core::server::{Fds, ShutdownWatch};
use pingora_core::services::Service as _;
use pingora_core::services::listening::Service;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::connection;
use crate::edge::Edge;

/// The threads that serve clients.
pub(crate) struct Listeners {
    pub(crate) address: SocketAddr,
    stop_accepting: watch::Sender<bool>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Binds and begins to serve, on threads whose hearts beat in `heartbeats`.
    pub(crate) fn start(
        address: SocketAddr,
        threads: usize,
        edge: Arc<Edge>,
        heartbeats: &Heartbeats,
    ) -> io::Result<Self> {
        let patience = edge.limits().write_timeout;
        let probe = bind(address, None)?;
        let address = probe.local_addr()?;
        drop(probe);
        let sockets: Vec<_> =
            (0..threads).map(|_| bind(address, Some(patience))).collect::<io::Result<_>>()?;
        let (stop_accepting, accepting) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let threads = sockets
            .into_iter()
            .enumerate()
            .map(|(i, socket)| {
                let (edge, accepting, stopped) =
                    (Arc::clone(&edge), accepting.clone(), stopped.clone());
                let name = format!("gateway-{i}");
                let beat = heartbeats.beat(&name);
                let serve = move || serve(socket, address, edge, beat, accepting, stopped);
                std::thread::Builder::new().name(name).spawn(serve)
            })
            .collect::<io::Result<_>>()?;
        Ok(Self { address, stop_accepting, stop, threads })
    }

    /// Closes the sockets; connections go on.
    pub(crate) fn stop_accepting(&self) {
        let _ = self.stop_accepting.send(true);
    }

    /// Ends the threads, and with them whatever connections are left.
    pub(crate) fn stop(self) {
        let _ = self.stop.send(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a gateway thread panicked");
            }
        }
    }
}

/// Without `patience`: alone, and not yet listening.
///
/// With it: shared, and a client that takes nothing for so long is cut off by the kernel, whose
/// accepted sockets inherit the option. The server does not poll an answer while its client's socket
/// is full, so no timer of the answer's own would ring.
fn bind(address: SocketAddr, patience: Option<Duration>) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(patience.is_some())?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    if patience.is_some() {
        socket.set_tcp_user_timeout(patience)?;
        socket.listen(4096)?;
    }
    Ok(socket.into())
}

fn serve(
    socket: TcpListener,
    address: SocketAddr,
    edge: Arc<Edge>,
    beat: impl Future<Output = ()> + Send + 'static,
    accepting: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("no runtime for a gateway thread: {error}");
            return;
        }
    };
    runtime.block_on(async move {
        let _beating = AbortOnDropHandle::new(tokio::spawn(beat));
        let mut fds = Fds::new();
        fds.add(address.to_string(), socket.into_raw_fd());
        let mut service = Service::new("gateway".to_owned(), App { edge });
        // hyper buffers by itself; twice costs memory for each held request.
        let listener =
            ListenerConfig::tcp(address.to_string()).l4_buffer(L4BufferSettings::unbuffered());
        service.endpoints().add_listener(listener);
        // Returns when accepting stops; connections are tasks of this runtime.
        service.start_service(Some(Arc::new(Mutex::new(fds))), accepting, 1).await;
        let _ = stopped.wait_for(|stopped| *stopped).await;
    });
}

struct App {
    edge: Arc<Edge>,
}

#[async_trait]
impl ServerApp for App {
    async fn process_new(self: &Arc<Self>, stream: Stream, _: &ShutdownWatch) -> Option<Stream> {
        let edge = &self.edge;
        let address = stream.get_socket_digest()?.peer_addr()?.as_inet().copied()?;
        let limits = edge.limits();
        let admitted =
            edge.clients.admit(address.ip(), limits.connections, limits.connections_per_client);
        let _counted = match admitted {
            Ok(counted) => counted,
            Err(full) => {
                tracing::debug!(%address, "connection closed: {full} is reached");
                return None;
            }
        };
        // A drain waits for connections, not only requests: the last bytes are still to be written.
        let _waited_for = edge.drain().count();
        connection::serve(stream, address, Arc::clone(edge)).await;
        None
    }
}
