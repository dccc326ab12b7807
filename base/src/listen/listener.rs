//! A listener that no client can fill.

use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use crate::open_files;
use crate::shortage::{self, Resource};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::{Instant, sleep};

use super::connection::Connection;
use super::table::{Bounds, ConnectionTable, Peer};
use crate::metric;
use crate::trouble::Trouble;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: i32 = 1024;
/// The kernel's buffer for answers of one connection; it reserves twice as much.
const SEND_BUFFER: usize = 128 << 10;
/// Pause after a failure that may last, such as a shortage of descriptors or memory.
const AGAIN: Duration = Duration::from_millis(100);
/// A listener takes at most one in this many of the files that the process may open.
const FILES: u64 = 32;
/// Connections that are allowed however few files there are.
const LEAST: usize = 8;

/// Binds and listens. Accepted sockets inherit the time after which the kernel cuts off a client
/// that reads nothing or has vanished.
///
/// # Errors
/// The address can't be bound.
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
    table: Arc<ConnectionTable>,
    trouble: Trouble,
}

impl Listener {
    /// Accepts from a socket that listens. `name` names it on `/metrics` and in the log. A low limit
    /// on open files allows fewer connections than `bounds` does.
    ///
    /// # Errors
    /// Outside of a runtime.
    pub fn new(name: &'static str, socket: TcpListener, mut bounds: Bounds) -> io::Result<Self> {
        let part = usize::try_from(open_files::limit() / FILES).unwrap_or(usize::MAX).max(LEAST);
        bounds.connections = bounds.connections.min(part);
        let socket = tokio::net::TcpListener::from_std(socket)?;
        let table = ConnectionTable::new(bounds, metric::closed_connections(name));
        Ok(Self { name, socket, table, trouble: Trouble::default() })
    }

    /// The next connection; errors are reported and retried here. Cancel-safe.
    pub async fn accept(&mut self) -> Connection {
        loop {
            let (stream, address) = match self.socket.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    self.failed(&error).await;
                    continue;
                }
            };
            if self.trouble.ends() {
                tracing::info!("{}: connections are accepted again", self.name);
            }
            let Some((entry, activity)) = self.table.take(Instant::now()) else {
                tracing::debug!(%address, "{}: connection closed: all others have a request in flight", self.name);
                continue;
            };
            // Answers are small, and the client waits for each.
            let _ = stream.set_nodelay(true);
            return Connection::new(stream, Peer { address, activity }, entry);
        }
    }

    async fn failed(&mut self, error: &io::Error) {
        // These concern one connection, which is gone.
        let lost =
            [ErrorKind::ConnectionAborted, ErrorKind::ConnectionReset, ErrorKind::Interrupted];
        if lost.contains(&error.kind()) {
            return;
        }
        if let Some(resource) = Resource::of(error) {
            shortage::report(resource, &format_args!("{}: cannot accept: {error}", self.name));
        } else if self.trouble.begins(error.to_string()) {
            tracing::warn!("{}: no connection can be accepted: {error}", self.name);
        }
        sleep(AGAIN).await;
    }
}
