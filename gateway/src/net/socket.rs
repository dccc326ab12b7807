//! The client's socket: notices its close without reading from it.
//!
//! While a request is answered, its connection is not read: what comes may be the next one, pipelined. So a
//! close would go unnoticed while the request is held, and a held request watches the socket
//! itself. Each thread has one set for the hang-ups of all its clients: no request needs a descriptor
//! for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::os::fd::{BorrowedFd, RawFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::sleep;

use crate::net::hangup_set::HangupSet;

/// The socket of a client connection, for a request that has to notice its close.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientSocket(Option<RawFd>);

impl ClientSocket {
    /// `fd` must be a socket of this thread.
    pub(crate) fn new(fd: RawFd) -> Self {
        Self(Some(fd))
    }

    /// The socket of a connection whose protocol reports a client that leaves, as HTTP/2 does.
    pub(crate) fn unwatched() -> Self {
        Self(None)
    }

    /// Resolves when the client has closed its side.
    pub(crate) async fn closed(self) {
        let Some(fd) = self.0 else { return pending().await };
        match HangupWatch::begin(fd) {
            Some(watch) => watch.await,
            // The system gives no memory for another watch.
            None => {
                while !has_hung_up(fd) {
                    // Boxed, as it hardly ever happens.
                    Box::pin(sleep(LOOK)).await;
                }
            }
        }
    }
}

/// The interval at which a socket that can't be watched is looked at.
const LOOK: Duration = Duration::from_millis(500);

/// Whether the other side has closed the connection, or at least its own half.
fn has_hung_up(fd: RawFd) -> bool {
    let mut polled = [PollFd::new(borrow(fd), PollFlags::from_bits_retain(libc::POLLRDHUP))];
    // An error here is one of `poll` itself, after which the next look may succeed.
    poll(&mut polled, PollTimeout::ZERO).is_ok_and(|count| count > 0)
}

thread_local! {
    /// Set while [`watch_hangups`] runs.
    static HANGUPS: RefCell<Option<Hangups>> = const { RefCell::new(None) };
}

/// The sockets of this thread whose close a request waits for.
struct Hangups {
    set: Arc<HangupSet>,
    watched: HashMap<RawFd, WatchedSocket>,
    /// Distinguishes a watch from later ones of the same descriptor.
    next: u32,
}

struct WatchedSocket {
    id: u32,
    closed: bool,
    waker: Option<Waker>,
}

/// Serves the watches of this thread while it is polled.
pub(crate) async fn watch_hangups() -> Infallible {
    match hangups().await {
        Ok(never) => never,
        Err(error) => {
            tracing::warn!("clients that leave are noticed late: {error}");
            pending().await
        }
    }
}

async fn hangups() -> io::Result<Infallible> {
    let set = Arc::new(HangupSet::new()?);
    let _cleared = Cleared;
    HANGUPS.set(Some(Hangups { set: Arc::clone(&set), watched: HashMap::new(), next: 0 }));
    let hung_up = |data| {
        HANGUPS.with_borrow_mut(|hangups| {
            if let Some(hangups) = hangups {
                hangups.hung_up(data);
            }
        });
    };
    set.report(hung_up).await
}

/// Clears [`HANGUPS`] when dropped, so that no watch begins that would never be woken.
struct Cleared;

impl Drop for Cleared {
    fn drop(&mut self) {
        HANGUPS.set(None);
    }
}

impl Hangups {
    /// Wakes the watch whose [`HangupWatch::data`] this is.
    fn hung_up(&mut self, data: u64) {
        let (fd, id) = (data as u32 as RawFd, (data >> 32) as u32);
        if let Some(watched) = self.watched.get_mut(&fd).filter(|watched| watched.id == id) {
            watched.closed = true;
            if let Some(waker) = watched.waker.take() {
                waker.wake();
            }
        }
    }
}

/// One request's watch of its client's socket.
struct HangupWatch {
    fd: RawFd,
    id: u32,
}

impl HangupWatch {
    fn begin(fd: RawFd) -> Option<Self> {
        HANGUPS.with_borrow_mut(|hangups| {
            let hangups = hangups.as_mut()?;
            hangups.next = hangups.next.wrapping_add(1);
            let watch = Self { fd, id: hangups.next };
            // An earlier watch of the same connection may not have been removed yet.
            hangups.set.add(borrow(fd), watch.data()).ok()?;
            hangups.watched.insert(fd, WatchedSocket { id: watch.id, closed: false, waker: None });
            Some(watch)
        })
    }

    fn data(&self) -> u64 {
        u64::from(self.id) << 32 | u64::from(self.fd as u32)
    }
}

impl Future for HangupWatch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        HANGUPS.with_borrow_mut(|hangups| {
            let watched = hangups.as_mut().and_then(|hangups| hangups.watched.get_mut(&self.fd));
            match watched.filter(|watched| watched.id == self.id) {
                Some(WatchedSocket { closed: true, .. }) => Poll::Ready(()),
                Some(watched) => {
                    watched.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Pending,
            }
        })
    }
}

impl Drop for HangupWatch {
    fn drop(&mut self) {
        // While the thread ends, the thread-local may be gone.
        let _ = HANGUPS.try_with(|hangups| {
            let mut hangups = hangups.borrow_mut();
            let Some(hangups) = hangups.as_mut() else { return };
            if hangups.watched.get(&self.fd).is_some_and(|watched| watched.id == self.id) {
                hangups.watched.remove(&self.fd);
                // A closed socket has left the set on its own, and its number can't stand for
                // another socket in the set yet: only this thread adds to it.
                hangups.set.remove(borrow(self.fd));
            }
        });
    }
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: used for one call of `epoll_ctl` or `poll`, which report a descriptor that is closed
    // as an error, and touch no memory of it.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use tokio::io::AsyncWriteExt;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::timeout;

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let client = TcpStream::connect(listener.local_addr().expect("bound")).await;
        (client.expect("connected"), listener.accept().await.expect("accepted").0)
    }

    async fn with_watches<T>(test: impl Future<Output = T>) -> T {
        tokio::select! {
            biased;
            never = watch_hangups() => match never {},
            done = test => done,
        }
    }

    fn watched() -> usize {
        HANGUPS.with_borrow(|hangups| hangups.as_ref().map_or(0, |hangups| hangups.watched.len()))
    }

    const SOON: Duration = Duration::from_secs(20);

    async fn notices_a_close_behind_unread_bytes() {
        let (mut client, server) = pair().await;
        let mut closed = std::pin::pin!(ClientSocket::new(server.as_raw_fd()).closed());
        client.write_all(b"the next request").await.expect("sent");
        assert!(timeout(Duration::from_millis(50), &mut closed).await.is_err());
        client.shutdown().await.expect("closed");
        timeout(SOON, closed).await.expect("noticed");
    }

    #[tokio::test]
    async fn a_close_is_noticed_behind_unread_bytes() {
        with_watches(async {
            tokio::task::yield_now().await;
            notices_a_close_behind_unread_bytes().await;
        })
        .await;
    }

    #[tokio::test]
    async fn a_close_before_the_watch_is_noticed_and_a_watch_leaves_nothing_behind() {
        with_watches(async {
            tokio::task::yield_now().await;
            let (client, server) = pair().await;
            let socket = ClientSocket::new(server.as_raw_fd());
            assert!(timeout(Duration::from_millis(20), socket.closed()).await.is_err());
            assert_eq!(watched(), 0, "the first watch is gone");
            drop(client);
            timeout(SOON, socket.closed()).await.expect("noticed");
            assert_eq!(watched(), 0);
        })
        .await;
    }

    #[tokio::test]
    async fn a_close_is_noticed_where_no_watch_can_begin() {
        notices_a_close_behind_unread_bytes().await;
    }

    #[tokio::test]
    async fn a_watch_that_outlives_its_socket_does_not_affect_the_next() {
        with_watches(async {
            tokio::task::yield_now().await;
            let (_client, server) = pair().await;
            let watch = HangupWatch::begin(server.as_raw_fd()).expect("watched");
            drop(server);
            let (other, server) = pair().await;
            let mut closed = Box::pin(ClientSocket::new(server.as_raw_fd()).closed());
            assert!(timeout(Duration::from_millis(20), &mut closed).await.is_err());
            drop(watch);
            drop(other);
            timeout(SOON, closed).await.expect("noticed");
        })
        .await;
    }
}
