//! One connection: its bytes, and its end when its time is over.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::seat::{Over, Peer, Place};

/// A client's connection within a listener's bounds: reading and writing fail when it is over.
pub struct Connection<S = TcpStream> {
    stream: S,
    peer: Peer,
    alarm: Pin<Box<Sleep>>,
    _place: Place,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, peer: Peer, place: Place) -> Self {
        let alarm = Box::pin(sleep_until(Instant::now()));
        Self { stream, peer, alarm, _place: place }
    }

    /// Who is connected.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// Sees to it that whoever drives this comes back when it is over.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.peer.seat.driver.register(cx.waker());
        let Some((due, over)) = self.peer.seat.due() else { return Ok(()) };
        // By the clock: a busy task may not hear of its timers.
        if due > Instant::now() {
            if self.alarm.deadline() != due {
                self.alarm.as_mut().reset(due);
            }
            if self.alarm.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
        }
        tracing::debug!(address = %self.peer.address, "connection closed: {over}");
        let kind = match over {
            Over::MadeWay => io::ErrorKind::ConnectionAborted,
            Over::Head | Over::Idle | Over::Write => io::ErrorKind::TimedOut,
        };
        Err(io::Error::new(kind, over))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Connection<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buf))?;
        if buf.filled().len() > before {
            self.peer.seat.received(Instant::now());
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Connection<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(feature = "tonic")]
impl tonic::transport::server::Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer()
    }
}
