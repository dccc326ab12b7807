//! The client's side: a thread a core, each with its own runtime and socket.
//!
//! Every thread owns an `SO_REUSEPORT` socket of the same address, so that no connection is handed
//! between cores. The first is bound without it, once: a taken port is an error and not a silent
//! share. pingora's listener accepts. Where there is no place for what was accepted, nothing else is
//! until there is one: the rest wait in the kernel's backlog. `connection` serves.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_bounds::Heartbeats;
use forebay_system::Resource;
use pingora_core::protocols::GetSocketDigest;
use pingora_core::protocols::l4::listener::Listener;
use pingora_core::protocols::l4::stream::Stream;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;

use crate::edge::connection;
use crate::edge::layers::Edge;
use crate::exchange::upstream;
use crate::net::share::Place;
use crate::net::socket::watch_hangups;

/// The pause after a failed `accept`, which would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);

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
                let runtime = Builder::new_current_thread().enable_all().build()?;
                let (edge, accepting, stopped) =
                    (Arc::clone(&edge), accepting.clone(), stopped.clone());
                let name = format!("gateway-{i}");
                let beat = heartbeats.beat(&name);
                let serve = move || serve(&runtime, socket, edge, beat, accepting, stopped);
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
    runtime: &Runtime,
    socket: TcpListener,
    edge: Arc<Edge>,
    beat: impl Future<Output = ()> + Send + 'static,
    accepting: watch::Receiver<bool>,
    mut stopped: watch::Receiver<bool>,
) {
    runtime.block_on(async move {
        let listener = match tokio::net::TcpListener::from_std(socket) {
            Ok(listener) => Listener::from(listener),
            Err(error) => {
                tracing::error!("a gateway thread can't watch its socket: {error}");
                return;
            }
        };
        let _beating = AbortOnDropHandle::new(tokio::spawn(beat));
        let serving = async {
            // Connections are tasks of this runtime, and go on when accepting stops.
            accept(listener, edge, accepting).await;
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        tokio::select! {
            biased;
            never = watch_hangups() => match never {},
            never = upstream::close_idle() => match never {},
            () = serving => {}
        }
    });
}

/// Accepts until `stop`.
async fn accept(listener: Listener, edge: Arc<Edge>, mut stop: watch::Receiver<bool>) {
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(stream) => {
                let place = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => return,
                    place = edge.clients.place() => place,
                };
                tokio::spawn(serve_one(stream, place, Arc::clone(&edge)));
            }
            Err(error) => match Resource::of(&error) {
                Some(resource) => {
                    forebay_system::report(resource, &format_args!("cannot accept: {error}"));
                    sleep(PAUSE).await;
                }
                // The client's end: it left before it was accepted, or its network did.
                None => tracing::debug!("not accepted: {error}"),
            },
        }
    }
}

async fn serve_one(mut stream: Stream, place: Place, edge: Arc<Edge>) {
    let peer = stream.get_socket_digest().and_then(|digest| digest.peer_addr()?.as_inet().copied());
    let Some(address) = peer else { return };
    if let Err(error) = stream.set_nodelay() {
        tracing::debug!(%address, "connection: {error}");
        return;
    }
    let limits = edge.limits();
    let (most, most_per_client) = (limits.connections, limits.connections_per_client);
    let counted = match edge.clients.admit(address.ip(), place, most, most_per_client) {
        Ok(counted) => counted,
        Err(full) => {
            tracing::debug!(%address, "connection closed: {full} is reached");
            return;
        }
    };
    // A drain waits for connections, not only requests: the last bytes are still to be written.
    let _waited_for = edge.drain().count();
    connection::serve(Box::new(stream), address, &counted, Arc::clone(&edge)).await;
}
