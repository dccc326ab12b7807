//! Connections to replicas, made within the gateway's share of files.
//!
//! A shortage of our own is waited out, with growing pauses: it says nothing about the replica, and
//! the request has lost nothing but time.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use forebay_system::Resource;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::answer::failure::{Cause, Failure};
use crate::net::share::{Place, UPSTREAMS};

/// The probes of the other end's kernel, which answers for a process that is busy or stopped. A
/// node that lost its power answers nothing, and one that was restarted resets the connection.
const KEEPALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(10))
    .with_interval(Duration::from_secs(5))
    .with_retries(3);
/// How long what was sent may go without the other kernel's receipt.
const UNANSWERED: Duration = Duration::from_secs(30);
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// A connection, and its place among the gateway's.
pub(crate) struct Dialed {
    pub(crate) stream: TcpStream,
    pub(crate) place: Place,
}

/// Connects within `patience`; what the gateway itself is short of is waited for until `deadline`.
pub(crate) async fn dial(
    address: SocketAddr,
    patience: Duration,
    deadline: Instant,
) -> Result<Dialed, Failure> {
    let place = place(deadline).await?;
    let (mut pause, longest) = PAUSES;
    loop {
        let error = match timeout(patience, connect(address)).await {
            Ok(Ok(stream)) => return Ok(Dialed { stream, place }),
            Ok(Err(error)) => error,
            Err(_) => {
                let reason = format!("no connection within {patience:?}");
                return Err(Failure::new(Cause::Connect, reason));
            }
        };
        let Some(resource) = Resource::of(&error) else {
            return Err(Failure::new(Cause::Connect, format!("connect: {error}")));
        };
        forebay_system::report(resource, &format_args!("cannot connect to {address}: {error}"));
        if timeout_at(deadline, sleep(pause)).await.is_err() {
            return Err(short(resource));
        }
        pause = (pause * 2).min(longest);
    }
}

/// By a socket that notices when its other end is gone without a word.
async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    socket.set_tcp_user_timeout(Some(UNANSWERED))?;
    Ok(stream)
}

async fn place(deadline: Instant) -> Result<Place, Failure> {
    if let Some(place) = UPSTREAMS.try_place() {
        return Ok(place);
    }
    let resource = Resource::Files;
    forebay_system::report(resource, &"every place for a connection to a replica is taken");
    let place = timeout_at(deadline, UPSTREAMS.place()).await.ok().flatten();
    place.ok_or_else(|| short(resource))
}

fn short(resource: Resource) -> Failure {
    let message = format!(
        "The gateway itself is short of {resource}; no replica was asked. Try again later."
    );
    Failure::new(Cause::Shortage, message)
}
