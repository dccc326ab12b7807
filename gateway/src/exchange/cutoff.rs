//! The events that end an answer before its own end: its client leaves, its replica is lost, or a
//! shutdown stops waiting.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

/// Resolves when the client has left.
pub(crate) type ClientGone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why an answer ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    ClientLeft,
    /// The replica will send nothing more.
    ReplicaLost,
    ShuttingDown,
}

/// Watches for the events that cut an answer off.
///
/// It is polled with every chunk. An event is looked at only when it has woken the task, so a poll
/// costs next to nothing.
pub(crate) struct Cutoff(FuturesUnordered<Pin<Box<dyn Future<Output = Cut> + Send>>>);

impl Cutoff {
    pub(crate) fn new(
        client_gone: ClientGone,
        replica_lost: CancellationToken,
        ending: CancellationToken,
    ) -> Self {
        let all = FuturesUnordered::<Pin<Box<dyn Future<Output = Cut> + Send>>>::new();
        all.push(Box::pin(async move {
            client_gone.await;
            Cut::ClientLeft
        }));
        all.push(Box::pin(async move {
            replica_lost.cancelled_owned().await;
            Cut::ReplicaLost
        }));
        all.push(Box::pin(async move {
            ending.cancelled_owned().await;
            Cut::ShuttingDown
        }));
        Self(all)
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        match ready!(self.0.poll_next_unpin(cx)) {
            Some(cut) => Poll::Ready(cut),
            None => Poll::Pending,
        }
    }
}
