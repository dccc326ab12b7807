//! Sockets whose other sides may hang up, many in one set.
//!
//! The runtime's own epoll takes a descriptor only once, and wakes for bytes as well. So there is a
//! second epoll for hang-ups alone, which the first one watches.

use std::convert::Infallible;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A set of sockets, each with a number.
pub(crate) struct HangupSet(Epoll);

impl AsRawFd for HangupSet {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl HangupSet {
    /// An empty set.
    ///
    /// # Errors
    /// The system has no descriptor for it.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?))
    }

    /// Adds a socket, or gives the one that is in the set another number. Its hang-up is reported
    /// once, and bytes that come are not. A socket leaves the set when it is closed.
    ///
    /// # Errors
    /// The system has no memory for it, or allows no more.
    pub(crate) fn add(&self, socket: impl AsFd, number: u64) -> io::Result<()> {
        let mut event = EpollEvent::new(EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET, number);
        match self.0.add(&socket, event) {
            Err(Errno::EEXIST) => Ok(self.0.modify(socket, &mut event)?),
            added => Ok(added?),
        }
    }

    /// Removes a socket, if it is in the set.
    pub(crate) fn remove(&self, socket: impl AsFd) {
        let _ = self.0.delete(socket);
    }

    /// Reports the numbers of sockets whose other sides hang up, while it is polled.
    ///
    /// # Errors
    /// The runtime can't watch the set.
    pub(crate) async fn report(
        self: &Arc<Self>,
        mut hung_up: impl FnMut(u64),
    ) -> io::Result<Infallible> {
        let ready = self.register()?;
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let mut guard = ready.readable().await?;
            loop {
                let count = match self.0.wait(&mut events, EpollTimeout::ZERO) {
                    Err(Errno::EINTR) => continue,
                    count => count?,
                };
                events[..count].iter().for_each(|event| hung_up(event.data()));
                if count < events.len() {
                    break;
                }
            }
            guard.clear_ready();
        }
    }

    #[allow(unsafe_code)]
    fn register(self: &Arc<Self>) -> io::Result<AsyncFd<Arc<Self>>> {
        let (set, interest) = (Arc::clone(self), Interest::READABLE);
        // SAFETY: the set is open, with the same descriptor, while it lives.
        Ok(unsafe { AsyncFd::register_with_interest(set, interest) }?)
    }
}
