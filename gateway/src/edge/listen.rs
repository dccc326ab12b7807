//! The client's side: a thread for each core, with its own runtime and socket.
//!
//! Every thread owns an `SO_REUSEPORT` socket of the same address, so no connection moves between
//! cores. First the address is bound once without the option: a port that is taken must be an
//! error, not a silent share. `connection` serves what is accepted. If no descriptor is free for a
//! connection, the next ones wait in the kernel's backlog.
//!
//! A process that takes over gets every socket of the one before it, still listening: closing a
//! socket would drop the connections that wait in its backlog. With fewer threads, each accepts
//! from several sockets. With more, the rest bind sockets of their own, which listen only when the
//! process serves.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use forebay_base::Heartbeats;
use forebay_base::shortage::Resource;
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::task::task_tracker::TaskTrackerToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use crate::edge::connection;
use crate::edge::layers::Edge;
use crate::exchange::late::ring_alarms;
use crate::exchange::upstream;
use crate::net::connection_limits::{CountedConnection, LimitReached};
use crate::net::file_shares::FilePermit;
use crate::net::socket::watch_hangups;

/// The pause after a failed `accept`: the next one would fail at once, too.
const PAUSE: Duration = Duration::from_millis(100);
/// The most connections that wait in the kernel to be accepted.
const BACKLOG: i32 = 4096;

/// The threads that serve clients.
pub(crate) struct Listeners {
    pub(crate) address: SocketAddr,
    /// Copies of all sockets, for a process that takes over.
    sockets: Mutex<Vec<TcpListener>>,
    begin: watch::Sender<bool>,
    stop_accepting: watch::Sender<bool>,
    /// The threads that still accept.
    accepting: TaskTracker,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Listeners {
    /// Uses the `inherited` sockets and binds the rest. The threads beat in `heartbeats`, and
    /// accept nothing before [`accept`](Self::accept).
    pub(crate) fn bind(
        address: SocketAddr,
        threads: usize,
        inherited: Vec<TcpListener>,
        edge: &Arc<Edge>,
        heartbeats: &Heartbeats,
    ) -> io::Result<Self> {
        let write_timeout = edge.limits().write_timeout;
        let sockets = sockets(address, threads, inherited, write_timeout)?;
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

    /// Starts accepting connections.
    pub(crate) fn accept(&self) {
        self.begin.send_replace(true);
    }

    /// Copies of all sockets; none once accepting has stopped.
    pub(crate) fn sockets(&self) -> io::Result<Vec<TcpListener>> {
        self.sockets.lock().iter().map(TcpListener::try_clone).collect()
    }

    /// Closes the sockets; connections go on. Returns when no thread accepts any more. By then the
    /// drain counts each connection that was accepted.
    pub(crate) async fn stop_accepting(&self) {
        self.sockets.lock().clear();
        self.stop_accepting.send_replace(true);
        self.accepting.close();
        self.accepting.wait().await;
    }

    /// Ends the threads, and all connections that are left.
    pub(crate) fn stop(self) {
        let _ = self.stop.send(true);
        for thread in self.threads {
            if thread.join().is_err() {
                tracing::error!("a gateway thread panicked");
            }
        }
    }
}

/// At least one socket for each thread, the inherited ones first.
///
/// The kernel cuts off a client that takes nothing for `write_timeout`: accepted sockets inherit
/// the option. A timer of the answer's own would not ring, since the server does not poll an answer
/// while its client's socket is full.
fn sockets(
    address: SocketAddr,
    threads: usize,
    mut sockets: Vec<TcpListener>,
    write_timeout: Duration,
) -> io::Result<Vec<TcpListener>> {
    let inherited = !sockets.is_empty();
    let address = match sockets.first() {
        Some(socket) => socket.local_addr()?,
        None => bind(address, false)?.local_addr()?,
    };
    for _ in sockets.len()..threads {
        let socket = bind(address, true)?;
        // If it listened, it would get clients while only the other process serves.
        if !inherited {
            SockRef::from(&socket).listen(BACKLOG)?;
        }
        sockets.push(socket);
    }
    for socket in &sockets {
        SockRef::from(socket).set_tcp_user_timeout(Some(write_timeout))?;
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

/// Something that a thread does beside its connections. The first to end is `serving`.
type Duty<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

/// One thread that serves clients.
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
                    let accept = |listener| accept(listener, Arc::clone(&edge), stopping.clone());
                    // Connections are tasks of this runtime, and go on when accepting stops.
                    join_all(listeners.map(accept)).await;
                }
                drop(accepting);
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            // Each is polled only when it is woken itself: alarms ring often.
            let mut duties = FuturesUnordered::<Duty<'_>>::new();
            duties.push(Box::pin(async { match watch_hangups().await {} }));
            duties.push(Box::pin(async { match upstream::close_idle().await {} }));
            duties.push(Box::pin(async { match ring_alarms().await {} }));
            duties.push(Box::pin(serving));
            duties.next().await;
        });
    }
}

/// Makes a socket listen, if it does not yet.
fn listen(socket: TcpListener) -> Option<tokio::net::TcpListener> {
    let listening = SockRef::from(&socket).listen(BACKLOG);
    match listening.and_then(|()| tokio::net::TcpListener::from_std(socket)) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::error!("a gateway thread can't watch its socket: {error}");
            None
        }
    }
}

/// Accepts connections until `stop`.
async fn accept(
    listener: tokio::net::TcpListener,
    edge: Arc<Edge>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let accepted = tokio::select! {
            _ = stop.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let place = tokio::select! {
                    _ = stop.wait_for(|stop| *stop) => None,
                    place = edge.connection_limits.place() => Some(place),
                };
                // The drain owns the task: it waits for the token. A connection that outlives the
                // drain ends with this thread's runtime.
                let token = edge.drain().count();
                tokio::spawn(serve_one(stream, address, place, token, Arc::clone(&edge)));
            }
            Err(error) => match Resource::of(&error) {
                Some(resource) => {
                    forebay_base::shortage::report(
                        resource,
                        &format_args!("cannot accept: {error}"),
                    );
                    sleep(PAUSE).await;
                }
                // The client left before it was accepted, or its network broke.
                None => tracing::debug!("not accepted: {error}"),
            },
        }
    }
}

/// Serves one connection. Without a place it waits for one: an accepted connection is served, also
/// when the thread has stopped accepting. The drain waits for `drain_token`, so it ends only when
/// the last bytes are written.
fn serve_one(
    stream: TcpStream,
    address: SocketAddr,
    place: Option<FilePermit>,
    drain_token: TaskTrackerToken,
    edge: Arc<Edge>,
) -> impl Future<Output = ()> {
    let undelayed = stream.set_nodelay(true);
    // Not an `async fn`: that would keep its arguments twice, as long as the connection lasts.
    async move {
        let _drain_token = drain_token;
        let place = match place {
            Some(place) => place,
            None => edge.connection_limits.place().await,
        };
        if let Err(error) = undelayed {
            tracing::debug!(%address, "connection: {error}");
            return;
        }
        let counted = match admit(&edge, address, place) {
            Ok(counted) => counted,
            Err(full) => {
                tracing::debug!(%address, "connection closed: the limit {full} is reached");
                return;
            }
        };
        connection::serve(stream, address, &counted, &edge).await;
    }
}

fn admit(
    edge: &Edge,
    address: SocketAddr,
    place: FilePermit,
) -> Result<CountedConnection, LimitReached> {
    let limits = edge.limits();
    let (most, most_per_client) = (limits.connections, limits.connections_per_client);
    edge.connection_limits.admit(address.ip(), place, most, most_per_client)
}
