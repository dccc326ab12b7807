//! Connections to replicas, within their share of the open files.
//!
//! A shortage of the gateway itself is waited out, with growing pauses: it is not the replica's
//! fault, and the request loses only time.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_base::dial::{DialError, dial_until};
use forebay_base::shortage::{self, Resource};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

use crate::answer::failure::{Cause, Failure};
use crate::net::file_shares::{FilePermit, UPSTREAM_FILES};

/// How long a connection to a replica may be idle. vLLM's server, uvicorn, closes it after exactly 5 s.
pub(crate) const LONGEST_IDLE: Duration = Duration::from_millis(4500);

/// A connection, and its place among the open files.
pub(crate) struct NewConnection {
    pub(crate) stream: TcpStream,
    pub(crate) place: FilePermit,
}

/// Connects within `connect_timeout`. A shortage of the gateway itself is waited out until
/// `deadline`.
pub(crate) async fn dial(
    address: SocketAddr,
    connect_timeout: Duration,
    deadline: Instant,
) -> Result<NewConnection, Failure> {
    let place = place(deadline).await?;
    match dial_until(address, connect_timeout, deadline).await {
        Ok(stream) => Ok(NewConnection { stream, place }),
        Err(DialError::Shortage { resource, .. }) => Err(short(resource)),
        Err(error @ DialError::TimedOut(_)) => Err(Failure::new(Cause::Connect, error.to_string())),
        Err(DialError::Failed(error)) => {
            Err(Failure::new(Cause::Connect, format!("connect: {error}")))
        }
    }
}

async fn place(deadline: Instant) -> Result<FilePermit, Failure> {
    if let Some(place) = UPSTREAM_FILES.try_place() {
        return Ok(place);
    }
    let resource = Resource::Files;
    shortage::report(resource, &"every place for a connection to a replica is taken");
    let place = timeout_at(deadline, UPSTREAM_FILES.place()).await.ok().flatten();
    place.ok_or_else(|| short(resource))
}

fn short(resource: Resource) -> Failure {
    let message = format!(
        "The gateway itself is short of {resource}, so no replica was tried. Try again later."
    );
    Failure::new(Cause::Shortage, message)
}
