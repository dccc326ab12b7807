//! The client's socket: a watch for its closing that does not depend on reading.
//!
//! Once hyper has read bytes beyond a request (the next one, pipelined) it no longer watches the
//! socket, and a close would go unnoticed for as long as the request is held. So a held request
//! watches for itself, on a duplicate of the descriptor registered for the hang-up alone.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One client connection, as far as a request needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientSocket(Option<RawFd>);

impl ClientSocket {
    /// `fd` must stay open while this is used: hyper drops a connection's requests before its
    /// stream.
    pub(crate) fn new(fd: RawFd) -> Self {
        Self(Some(fd))
    }

    /// Of a connection whose protocol tells of the client's leaving by itself, as HTTP/2 does.
    pub(crate) fn unwatched() -> Self {
        Self(None)
    }

    /// Resolves when the client has closed its side. Never, if that can't be watched: then the
    /// server's own reading has to notice.
    pub(crate) async fn closed(self) {
        if self.watch().await.is_none() {
            std::future::pending::<()>().await;
        }
    }

    async fn watch(self) -> Option<()> {
        let own = register(duplicate(self.0?)?)?;
        loop {
            let mut guard = own.readable().await.ok()?;
            if guard.ready().is_read_closed() {
                return Some(());
            }
            // Readable only: bytes of a next request. Wait for the next change.
            guard.clear_ready();
        }
    }
}

#[allow(unsafe_code)]
fn register(own: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open and the same descriptor for as long as it lives.
    unsafe { AsyncFd::register_with_interest(own, Interest::READABLE) }.ok()
}

#[allow(unsafe_code)]
fn duplicate(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the descriptor is open, see `ClientSocket::new`; it is borrowed for this call alone.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    debug_assert!(borrowed.as_raw_fd() >= 0);
    borrowed.try_clone_to_owned().ok()
}
