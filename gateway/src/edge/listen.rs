//! The client's side: a thread a core, each with its own runtime and socket.
//!
//! Every thread owns an `SO_REUSEPORT` socket of the same address, so that no connection is handed
//! between cores. The first is bound without it, once: a taken port is an error and not a silent
//! share. pingora's listener accepts. Where there is no place for what was accepted, nothing else is
//! until there is one: the rest wait in the kernel's backlog. `connection` serves.
//!
//! A process that takes over gets every socket of the one before it, listening as it is: a socket
//! that is closed takes the connections with it that wait in it. With fewer threads each accepts
//! from several; with more, the rest bind sockets of their own, which listen only once it serves.
//! pingora's own way of passing sockets is not used: its message has room for 32, it knows one for
//! each address, and its path can be opened by every user of the machine.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_bounds::Heartbeats;
use forebay_system::Resource;
use futures_util::future::join_all;
use parking_lot::Mutex;
use pingora_core::protocols::GetSocketDigest;
use pingora_core::protocols::l4::listener::Listener;
use pingora_core::protocols::l4::stream::Stream;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::edge::connection;
use crate::edge::layers::Edge;
use crate::exchange::upstream;
use crate::net::share::Place;
use crate::net::socket::watch_hangups;

/// The pause after a failed `accept`, which would fail again at once.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections that wait in the kernel until they are accepted.
const BACKLOG: i32 = 4096;

/// The threads that serve clients.
pub(crate) struct Listeners {
    pub(crate) address: SocketAddr,
    /// Copies of all sockets, for a process that takes over.
    sockets: Mutex<Vec<TcpListener>>,
    begin: watch::Sender<bool>,
    stop_accepting: watch::Sender<bool>,
    /// Threads that accept.
    accepting: TaskTracker,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Binds what `inherited` sockets leave to do, for threads whose hearts beat in `heartbeats`.
    /// Nothing is accepted before [`accept`](Self::accept).
    pub(crate) fn bind(
        address: SocketAddr,
        threads: usize,
        inherited: Vec<TcpListener>,
        edge: &Arc<Edge>,
        heartbeats: &Heartbeats,
    ) -> io::Result<Self> {
        let patience = edge.limits().write_timeout;
        let sockets = sockets(address, threads, inherited, patience)?;
        let address = sockets[0].local_addr()?;
        let copies = sockets.iter().map(TcpListener::try_clone).collect::<io::Result<_>>()?;
        let (begin, begun) = watch::channel(false);
        let (stop_accepting, stopping) = watch::channel(false);
        let (stop, stopped) = watch::channel(false);
        let accepting = TaskTracker::new();
        let mut shares: Vec<Vec<_>> = (0..threads).map(|_| Vec::new()).collect();
        for (at, socket) in sockets.into_iter().enumerate() {
            shares[at % threads].push(socket);
        }
        let threads = shares.into_iter().enumerate().map(|(i, sockets)| {
            let name = format!("gateway-{i}");
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let beat = heartbeats.beat(&name);
            let thread = Thread {
                sockets,
                edge: Arc::clone(edge),
                begun: begun.clone(),
                stopping: stopping.clone(),
                accepting: accepting.token(),
                stopped: stopped.clone(),
            };
            std::thread::Builder::new().name(name).spawn(move || thread.serve(&runtime, beat))
        });
        let threads = threads.collect::<io::Result<_>>()?;
        let sockets = Mutex::new(copies);
        Ok(Self { address, sockets, begin, stop_accepting, accepting, stop, threads })
    }

    /// Begins to accept.
    pub(crate) fn accept(&self) {
        self.begin.send_replace(true);
    }

    /// Copies of all sockets; none once accepting has stopped.
    pub(crate) fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        self.sockets.lock().iter().map(TcpListener::try_clone).collect()
    }

    /// Closes the sockets; connections go on. Returns when no thread accepts any more, and each
    /// connection that was accepted is counted.
    pub(crate) async fn stop_accepting(&self) {
        self.sockets.lock().clear();
        self.stop_accepting.send_replace(true);
        self.accepting.close();
        self.accepting.wait().await;
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

/// At least one socket for each thread, those first that were inherited.
///
/// A client that takes nothing for `patience` is cut off by the kernel, whose accepted sockets
/// inherit the option. The server does not poll an answer while its client's socket is full, so no
/// timer of the answer's own would ring.
fn sockets(
    address: SocketAddr,
    threads: usize,
    mut sockets: Vec<TcpListener>,
    patience: Duration,
) -> io::Result<Vec<TcpListener>> {
    let inherited = !sockets.is_empty();
    let address = match sockets.first() {
        Some(socket) => socket.local_addr()?,
        None => bind(address, false)?.local_addr()?,
    };
    for _ in sockets.len()..threads {
        let socket = bind(address, true)?;
        // Beside others that listen, it would get some of their clients before it serves any.
        if !inherited {
            SockRef::from(&socket).listen(BACKLOG)?;
        }
        sockets.push(socket);
    }
    for socket in &sockets {
        SockRef::from(socket).set_tcp_user_timeout(Some(patience))?;
    }
    Ok(sockets)
}

fn bind(address: SocketAddr, shared: bool) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// One thread, with all that it needs.
struct Thread {
    sockets: Vec<TcpListener>,
    edge: Arc<Edge>,
    begun: watch::Receiver<bool>,
    stopping: watch::Receiver<bool>,
    accepting: TaskTrackerToken,
    stopped: watch::Receiver<bool>,
}

impl Thread {
    fn serve(self, runtime: &Runtime, beat: impl Future<Output = ()> + Send + 'static) {
        let Self { sockets, edge, mut begun, stopping, accepting, mut stopped } = self;
        runtime.block_on(async move {
            let _beating = AbortOnDropHandle::new(tokio::spawn(beat));
            let mut stops = stopping.clone();
            let begins = tokio::select! {
                begun = begun.wait_for(|begun| *begun) => begun.is_ok(),
                _ = stops.wait_for(|stopping| *stopping) => false,
            };
            let serving = async {
                if begins {
                    let listeners = sockets.into_iter().filter_map(listen);
                    let accept = |it| accept(it, Arc::clone(&edge), stopping.clone());
                    // Connections are tasks of this runtime, and go on when accepting stops.
                    join_all(listeners.map(accept)).await;
                    // The tasks of those that were accepted last run once before this goes on.
                    tokio::task::yield_now().await;
                }
                drop(accepting);
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
}

/// Listens, where it does not yet.
fn listen(socket: TcpListener) -> Option<Listener> {
    let listening = SockRef::from(&socket).listen(BACKLOG);
    match listening.and_then(|()| tokio::net::TcpListener::from_std(socket)) {
        Ok(listener) => Some(Listener::from(listener)),
        Err(error) => {
            tracing::error!("a gateway thread can't watch its socket: {error}");
            None
        }
    }
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
                    _ = stop.wait_for(|stop| *stop) => None,
                    place = edge.clients.place() => Some(place),
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

/// Without a place it waits for one: what was accepted is served, also when nothing else is accepted
/// any more.
async fn serve_one(mut stream: Stream, place: Option<Place>, edge: Arc<Edge>) {
    // A drain waits for connections, not only requests: the last bytes are still to be written.
    let _waited_for = edge.drain().count();
    let place = match place {
        Some(place) => place,
        None => edge.clients.place().await,
    };
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
    connection::serve(Box::new(stream), address, &counted, Arc::clone(&edge)).await;
}
