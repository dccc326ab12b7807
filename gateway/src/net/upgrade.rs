//! The hand-over of a connection to another protocol, once the answer with status 101 is written.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;

/// A connection that speaks another protocol than HTTP from now on, with the bytes behind the request.
pub(crate) type Upgraded = Box<dyn UpgradedStream + Send>;

/// A connection's bytes, both ways.
pub(crate) trait UpgradedStream: AsyncRead + AsyncWrite + Unpin {}

impl<T: AsyncRead + AsyncWrite + Unpin> UpgradedStream for T {}

/// The connection of a request that asks for another protocol: it comes if the answer agrees. In the
/// extensions of the request's head, which must be able to be cloned.
#[derive(Clone)]
pub(crate) struct OnUpgrade(Arc<Mutex<oneshot::Receiver<Upgraded>>>);

impl OnUpgrade {
    /// A hand-over, and the end that the connection goes into.
    pub(crate) fn new() -> (oneshot::Sender<Upgraded>, Self) {
        let (sender, receiver) = oneshot::channel();
        (sender, Self(Arc::new(Mutex::new(receiver))))
    }
}

impl Future for OnUpgrade {
    /// `None` if the connection ends without a hand-over.
    type Output = Option<Upgraded>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Upgraded>> {
        Pin::new(&mut *self.0.lock()).poll(cx).map(Result::ok)
    }
}
