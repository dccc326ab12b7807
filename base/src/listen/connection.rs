//! One connection, which ends at its time limit.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::table::{CloseReason, Peer, TableEntry};

/// A client's connection within a listener's bounds: reads and writes fail after a time limit.
pub struct Connection<S = TcpStream> {
    stream: S,
    peer: Peer,
    alarm: Pin<Box<Sleep>>,
    _entry: TableEntry,
}

impl<S> Connection<S> {
    pub(crate) fn new(stream: S, peer: Peer, entry: TableEntry) -> Self {
        let alarm = Box::pin(sleep_until(Instant::now()));
        Self { stream, peer, alarm, _entry: entry }
    }

    /// The client.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.peer.clone()
    }

    /// Fails once the connection has reached a limit, and otherwise arranges a wake-up for that time.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        self.peer.activity.driver.register(cx.waker());
        let Some((due, reason)) = self.peer.activity.due() else { return Ok(()) };
        // By the clock too: a busy runtime fires its timers late.
        if due > Instant::now() {
            if self.alarm.deadline() != due {
                self.alarm.as_mut().reset(due);
            }
            if self.alarm.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
        }
        tracing::debug!(address = %self.peer.address, "connection closed: {reason}");
        let kind = match reason {
            CloseReason::MadeWay => io::ErrorKind::ConnectionAborted,
            CloseReason::Head | CloseReason::Idle | CloseReason::Write => io::ErrorKind::TimedOut,
        };
        Err(io::Error::new(kind, reason))
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
            self.peer.activity.received(Instant::now());
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
