//! The client's socket: a watch for its closing that does not depend on reading.
//!
//! Once hyper has read bytes beyond a request (the next one, pipelined) it no longer watches the
//! socket, and a close would go unnoticed for as long as the request is held. So a held request
//! watches for itself. The runtime's own epoll takes a descriptor once, so each thread has a second
//! epoll for the hang-ups of all its clients, which is watched by the first: no request needs a
//! descriptor more for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, pending};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// One client connection, as far as a request needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClientSocket(Option<RawFd>);

impl ClientSocket {
    /// `fd` is a socket of this thread.
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
        match self.0.and_then(Watch::begin) {
            Some(watch) => watch.await,
            None => pending().await,
        }
    }
}

thread_local! {
    /// There while [`watch_hangups`] runs.
    static HANGUPS: RefCell<Option<Hangups>> = const { RefCell::new(None) };
}

/// The sockets of this thread whose closing is waited for.
struct Hangups {
    set: Rc<Set>,
    watched: HashMap<RawFd, Watched>,
    /// Tells one watch of a descriptor from the next one's.
    next: u32,
}

struct Watched {
    id: u32,
    closed: bool,
    waker: Option<Waker>,
}

struct Set(Epoll);

impl AsRawFd for Set {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

impl AsFd for Set {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.0.as_fd()
    }
}

/// Sees to the watches of this thread for as long as it is polled.
pub(crate) async fn watch_hangups() -> Infallible {
    match hangups().await {
        Ok(never) => never,
        Err(error) => {
            tracing::warn!("a client that leaves may be noticed late: {error}");
            pending().await
        }
    }
}

async fn hangups() -> io::Result<Infallible> {
    let set = Rc::new(Set(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?));
    let ready = register(Rc::clone(&set))?;
    let _cleared = Cleared;
    HANGUPS.set(Some(Hangups { set: Rc::clone(&set), watched: HashMap::new(), next: 0 }));
    let mut events = [EpollEvent::empty(); 64];
    loop {
        let mut guard = ready.readable().await?;
        loop {
            let count = match set.0.wait(&mut events, EpollTimeout::ZERO) {
                Err(Errno::EINTR) => continue,
                count => count?,
            };
            HANGUPS.with_borrow_mut(|hangups| {
                let Some(hangups) = hangups else { return };
                events[..count].iter().for_each(|event| hangups.hung_up(event.data()));
            });
            if count < events.len() {
                break;
            }
        }
        guard.clear_ready();
    }
}

/// Leaves no watch behind that is never woken.
struct Cleared;

impl Drop for Cleared {
    fn drop(&mut self) {
        HANGUPS.set(None);
    }
}

impl Hangups {
    /// `data` is what [`Watch::data`] gave.
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
struct Watch {
    fd: RawFd,
    id: u32,
}

impl Watch {
    fn begin(fd: RawFd) -> Option<Self> {
        HANGUPS.with_borrow_mut(|hangups| {
            let hangups = hangups.as_mut()?;
            hangups.next = hangups.next.wrapping_add(1);
            let watch = Self { fd, id: hangups.next };
            // Once is enough, and nothing is told of bytes that come.
            let flags = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
            let mut event = EpollEvent::new(flags, watch.data());
            let set = &hangups.set.0;
            match set.add(borrow(fd), event) {
                // An earlier watch of the same connection is not quite gone.
                Err(Errno::EEXIST) => set.modify(borrow(fd), &mut event).ok()?,
                added => added.ok()?,
            }
            hangups.watched.insert(fd, Watched { id: watch.id, closed: false, waker: None });
            Some(watch)
        })
    }

    fn data(&self) -> u64 {
        u64::from(self.id) << 32 | u64::from(self.fd as u32)
    }
}

impl Future for Watch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        HANGUPS.with_borrow_mut(|hangups| {
            let watched = hangups.as_mut().and_then(|it| it.watched.get_mut(&self.fd));
            match watched.filter(|watched| watched.id == self.id) {
                Some(Watched { closed: true, .. }) => Poll::Ready(()),
                Some(watched) => {
                    watched.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                None => Poll::Pending,
            }
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // While the thread ends there may be nothing to take it out of.
        let _ = HANGUPS.try_with(|hangups| {
            let mut hangups = hangups.borrow_mut();
            let Some(hangups) = hangups.as_mut() else { return };
            if hangups.watched.get(&self.fd).is_some_and(|watched| watched.id == self.id) {
                hangups.watched.remove(&self.fd);
                // A socket that is closed already took itself out, and its number can't be another
                // socket in this set yet: only this thread adds to it.
                let _ = hangups.set.0.delete(borrow(self.fd));
            }
        });
    }
}

#[allow(unsafe_code)]
fn register(set: Rc<Set>) -> io::Result<AsyncFd<Rc<Set>>> {
    // SAFETY: the set is open, and the same descriptor, for as long as it lives.
    Ok(unsafe { AsyncFd::register_with_interest(set, Interest::READABLE) }?)
}

#[allow(unsafe_code)]
fn borrow<'a>(fd: RawFd) -> BorrowedFd<'a> {
    // SAFETY: used for one call of `epoll_ctl`, which reads no memory and answers with an error for
    // a descriptor that is closed.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
        HANGUPS.with_borrow(|hangups| hangups.as_ref().map_or(0, |it| it.watched.len()))
    }

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn a_close_is_noticed_behind_bytes_that_nobody_reads() {
        with_watches(async {
            tokio::task::yield_now().await;
            let (mut client, server) = pair().await;
            let mut closed = std::pin::pin!(ClientSocket::new(server.as_raw_fd()).closed());
            client.write_all(b"the next request").await.expect("sent");
            assert!(timeout(Duration::from_millis(50), &mut closed).await.is_err());
            client.shutdown().await.expect("closed");
            timeout(SOON, closed).await.expect("noticed");
        })
        .await;
    }

    #[tokio::test]
    async fn a_close_before_the_watch_counts_too_and_a_watch_leaves_nothing_behind() {
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
    async fn a_watch_that_outlives_its_socket_harms_no_other() {
        with_watches(async {
            tokio::task::yield_now().await;
            let (_client, server) = pair().await;
            let watch = Watch::begin(server.as_raw_fd()).expect("watched");
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
