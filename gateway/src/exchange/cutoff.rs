//! The events that end an answer before its own end (its client leaves, its replica is lost, or a
//! shutdown stops waiting), or its part from the present replica, which drains.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

use crate::pool::UnderWay;

/// Resolves when the client has left.
pub(crate) type ClientGone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why an answer ends now, or its part from the present replica may.
pub(crate) enum Cut {
    ClientLeft,
    /// The replica will send nothing more.
    ReplicaLost,
    /// The replica's engine hangs, and another one is ready. It may send more if it wakes.
    ReplicaHangs,
    ShuttingDown,
    /// The replica has drained long enough: the stream should move.
    Drains,
    /// Another replica has room for the stream. `None`: the present one drains no longer.
    Room(Option<UnderWay>),
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

/// An event, and the number of the replica that it concerns, if it concerns one.
type CutEvent = (Cut, Option<u32>);

impl Cutoff {
    pub(crate) fn new(
        client_gone: ClientGone,
        replica_lost: CancellationToken,
        ending: CancellationToken,
    ) -> Self {
        let events = FuturesUnordered::<Pin<Box<dyn Future<Output = CutEvent> + Send>>>::new();
        events.push(Box::pin(async move {
            client_gone.await;
            (Cut::ClientLeft, None)
        }));
        events.push(Box::pin(async move {
            ending.cancelled_owned().await;
            (Cut::ShuttingDown, None)
        }));
        let mut cutoff = Self { events, replica: 0 };
        cutoff.watch_loss(replica_lost);
        cutoff
    }

    /// Ignores what concerns the present replica from now on.
    pub(crate) fn leave_replica(&mut self) {
        self.replica += 1;
    }

    /// Watches another replica from now on.
    pub(crate) fn next_replica(&mut self, lost: CancellationToken) {
        self.leave_replica();
        self.watch_loss(lost);
    }

    fn watch_loss(&mut self, lost: CancellationToken) {
        self.watch(async move {
            lost.cancelled_owned().await;
            Cut::ReplicaLost
        });
    }

    /// Watches for an event that concerns the present replica.
    pub(crate) fn watch(&mut self, event: impl Future<Output = Cut> + Send + 'static) {
        let replica = self.replica;
        self.events.push(Box::pin(async move { (event.await, Some(replica)) }));
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Cut> {
        loop {
            match ready!(self.events.poll_next_unpin(cx)) {
                // An earlier replica, which has nothing to give any more.
                Some((_, Some(replica))) if replica != self.replica => {}
                Some((cut, _)) => return Poll::Ready(cut),
                None => return Poll::Pending,
            }
        }
    }
}
