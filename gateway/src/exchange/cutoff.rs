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
pub(crate) struct Cutoff {
    events: FuturesUnordered<Pin<Box<dyn Future<Output = CutEvent> + Send>>>,
    /// The number of replicas that gave parts of the answer before the present one.
    replica: u32,
}

/// An event, and which of the answer's replicas is lost if that is the event.
type CutEvent = (Cut, u32);

impl Cutoff {
    pub(crate) fn new(
        client_gone: ClientGone,
        replica_lost: CancellationToken,
        ending: CancellationToken,
    ) -> Self {
        let events = FuturesUnordered::<Pin<Box<dyn Future<Output = CutEvent> + Send>>>::new();
        events.push(Box::pin(async move {
            client_gone.await;
            (Cut::ClientLeft, 0)
        }));
        events.push(Box::pin(async move {
            ending.cancelled_owned().await;
            (Cut::ShuttingDown, 0)
        }));
        let mut cutoff = Self { events, replica: 0 };
        cutoff.watch(replica_lost);
        cutoff
    }

    /// Watches another replica from now on.
    pub(crate) fn next_replica(&mut self, lost: CancellationToken) {
        self.replica += 1;
        self.watch(lost);
    }

    fn watch(&mut self, lost: CancellationToken) {
        let replica = self.replica;
        self.events.push(Box::pin(async move {
            lost.cancelled_owned().await;
            (Cut::ReplicaLost, replica)
        }));
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        loop {
            match ready!(self.events.poll_next_unpin(cx)) {
                // An earlier replica, which has nothing to give any more.
                Some((Cut::ReplicaLost, replica)) if replica != self.replica => {}
                Some((cut, _)) => return Poll::Ready(cut),
                None => return Poll::Pending,
            }
        }
    }
}
