//! Outgoing TCP connections: to replicas, feeds, admin ports.
//!
//! An error shows which end is at fault. A shortage of this process says nothing about the other
//! end, so it is reported as such ([`shortage`]), and [`dial_until`] waits until it is over.

use std::fmt::Display;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, ToSocketAddrs};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::backoff::{Backoff, Spread};
use crate::shortage::{self, Resource};

/// Probes that the other end's kernel answers, also for a process that is busy or stopped. A node
/// that lost its power answers nothing, and one that was restarted resets the connection.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(10))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);
/// How long the other end's kernel may leave sent bytes unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// Pauses while this process is short of a resource. Its requests meet the shortage together, so
/// chance spreads their tries.
const PAUSES: Backoff =
    Backoff::new(Duration::from_millis(20), Duration::from_secs(1), Spread::Below);

/// The cause of a connection that was not made.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// This process is short of a resource, which is reported already.
    #[error("{error}")]
    Shortage {
        /// The resource.
        resource: Resource,
        /// The system's error.
        error: io::Error,
    },
    /// No connection within this time.
    #[error("no connection within {0:?}")]
    TimedOut(Duration),
    /// The address is not reachable, or its name unknown.
    #[error("{0}")]
    Failed(io::Error),
}

/// Connects to `address`, `within` this time.
///
/// # Errors
/// See [`DialError`]. Tries once.
pub async fn dial<A: ToSocketAddrs + Display>(
    address: A,
    within: Duration,
) -> Result<TcpStream, DialError> {
    let error = match timeout(within, connect(&address)).await {
        Ok(Ok(stream)) => return Ok(stream),
        Ok(Err(error)) => error,
        Err(_) => return Err(DialError::TimedOut(within)),
    };
    let Some(resource) = Resource::of(&error) else { return Err(DialError::Failed(error)) };
    shortage::report(resource, &format_args!("cannot connect to {address}: {error}"));
    Err(DialError::Shortage { resource, error })
}

/// Connects to `address`, `within` this time for each try. While this process is short of a
/// resource, tries again until `deadline`.
///
/// # Errors
/// See [`DialError`].
pub async fn dial_until(
    address: SocketAddr,
    within: Duration,
    deadline: Instant,
) -> Result<TcpStream, DialError> {
    let mut pauses = PAUSES;
    loop {
        let error = match dial(address, within).await {
            Err(error @ DialError::Shortage { .. }) => error,
            outcome => return outcome,
        };
        let pause = pauses.next(&mut rand::rng());
        if timeout_at(deadline, sleep(pause)).await.is_err() {
            return Err(error);
        }
    }
}

/// A socket that sends small writes at once, and notices when its other end vanishes.
async fn connect(address: impl ToSocketAddrs) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test]
    async fn an_address_that_refuses_is_not_a_shortage_of_ours() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("bound");
        let stream = dial(address, 60 * SECOND).await.expect("it listens");
        assert!(stream.nodelay().expect("a socket"));
        drop((listener, stream));
        let error = dial_until(address, 60 * SECOND, Instant::now() + SECOND).await;
        let error = error.expect_err("nothing listens");
        assert!(matches!(error, DialError::Failed(_)), "{error:?}");
    }
}
