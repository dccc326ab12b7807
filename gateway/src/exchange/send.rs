//! Sending one request to a replica, up to the head of its answer.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use crate::answer::failure::{Cause, Failure};
use crate::exchange::outgoing::Outgoing;
use crate::exchange::upstream::{Connection, NoAnswer, UpstreamBody};
use crate::wire::head::ResponseHead;

/// Sends a request and waits for the answer's head, until `due` if that is limited. `deadline` is the
/// end of the request's time.
pub(crate) async fn send(
    outgoing: &Outgoing<'_>,
    endpoint: SocketAddr,
    settings: &forebay_config::Upstream,
    due: Option<Instant>,
    deadline: Instant,
) -> Result<(ResponseHead, UpstreamBody), Failure> {
    let mut stale = None;
    loop {
        let fresh = stale.is_some();
        let connection = Connection::get(endpoint, fresh, settings.connect_timeout, deadline)
            .await
            .map_err(|NoAnswer { failure, .. }| match failure.cause {
                Cause::Shortage => failure,
                // Nothing listens any more: the replica died, perhaps of this request.
                _ => stale.take().unwrap_or(failure),
            })?;
        let sending = connection.send(outgoing);
        let sent = match due {
            Some(due) => {
                timeout_at(due, sending).await.map_err(|_| stalled(settings.stall_timeout))?
            }
            None => sending.await,
        };
        match sent {
            Ok(answer) => return Ok(answer),
            // The replica had closed an idle connection, which is not a failure. On a new
            // connection, it would be.
            Err(no_answer) if no_answer.stale && stale.is_none() => {
                stale = Some(no_answer.failure);
            }
            Err(no_answer) => return Err(no_answer.failure),
        }
    }
}

/// The failure of a replica that was silent for this long.
pub(crate) fn stalled(stall: Duration) -> Failure {
    Failure::new(Cause::Stalled, format!("The replica sent nothing for {stall:?}."))
}
