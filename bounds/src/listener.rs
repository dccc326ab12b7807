//! A listener that no client can fill.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use forebay_system::{Resource, files};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};

use crate::connection::Connection;
use crate::metric;
use crate::seat::{Bounds, Peer, Seats};

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// What the kernel keeps of answers, a connection: it doubles it for its own books.
const SEND_BUFFER: usize = 128 << 10;
/// After a failure that may last: descriptors, or memory.
const AGAIN: Duration = Duration::from_millis(100);
/// A listener's connections are at most this part of what the process may have open.
const FILES: u64 = 32;
/// As many may connect however few files there are.
const LEAST: usize = 8;

/// Binds and listens. Accepted sockets inherit that a client which takes nothing for too long, or
/// is gone without a word, is cut off by the kernel.
///
/// # Errors
/// The address can't be had.
pub fn bind(address: SocketAddr, bounds: &Bounds) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.set_tcp_user_timeout(Some(bounds.write))?;
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts connections within bounds.
pub struct Listener {
    name: &'static str,
    socket: tokio::net::TcpListener,
    seats: Arc<Seats>,
    failed: bool,
}

impl Listener {
    /// Of a socket that listens; `name` says which on `/metrics` and in the log. Where the limit on
    /// open files is low, fewer connections are allowed than `bounds` gives.
    ///
    /// # Errors
    /// Outside of a runtime.
    pub fn new(name: &'static str, socket: TcpListener, mut bounds: Bounds) -> io::Result<Self> {
        let part = usize::try_from(files::limit() / FILES).unwrap_or(usize::MAX).max(LEAST);
        bounds.connections = bounds.connections.min(part);
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let seats = Seats::new(bounds, metric::closed_connections(name));
        Ok(Self { name, socket, seats, failed: false })
    }

    /// The next connection, whatever happens to others. Cancel-safe.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let (stream, address) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.failed(&error).await;
                    continue;
                }
            };
            self.failed = false;
            let Some((place, seat)) = self.seats.take(Instant::now()) else {
                tracing::debug!(%address, "{}: connection closed: all are in a request", self.name);
                continue;
            };
            // Answers are small and each is waited for.
            let _ = stream.set_nodelay(true);
            return Connection::new(stream, Peer { address, seat }, place);
        }
    }

    async fn failed(&mut self, error: &io::Error) {
        // Of one connection, which is gone.
        let lost =
            [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset, ErrorKind::Interrupted];
        if lost.contains(&error.kind()) {
            return;
        }
        if let Some(resource) = Resource::of(error) {
            forebay_system::report(
                resource,
                &format_args!("{}: cannot accept: {error}", self.name),
            );
        } else if !std::mem::replace(&mut self.failed, true) {
            tracing::warn!("{}: no connection can be accepted: {error}", self.name);
        }
        sleep(AGAIN).await;
    }
}
