//! What ends an answer before its own end: its client's leaving, its replica's, or the end of a
//! shutdown's patience.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;

/// The client's leaving.
pub(crate) type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Why an answer ends now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cut {
    ClientLeft,
    /// Nothing more will come from the replica.
    Lost,
    ShuttingDown,
}

/// Polled with every chunk: what it waits for is looked at only when that woke, which costs a chunk
/// next to nothing.
pub(crate) struct Watch(FuturesUnordered<Pin<Box<dyn Future<Output = Cut> + Send>>>);

impl Watch {
    pub(crate) fn new(gone: Gone, lost: CancellationToken, ending: CancellationToken) -> Self {
        let all = FuturesUnordered::<Pin<Box<dyn Future<Output = Cut> + Send>>>::new();
        all.push(Box::pin(async move {
            gone.await;
            Cut::ClientLeft
        }));
        all.push(Box::pin(async move {
            lost.cancelled_owned().await;
            Cut::Lost
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
