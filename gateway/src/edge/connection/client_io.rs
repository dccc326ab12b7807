//! The bytes of a client's connection, with or without TLS, and its end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use crate::net::activity::Activity;
use crate::net::linger::Linger;

/// A connection with or without TLS.
pub(super) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Io {
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(io) => io,
            Self::Tls(io) => io.get_ref().0,
        }
    }
}

/// A client's bytes, beginning with those that were read to find out the version.
pub(super) struct ClientIo {
    io: Io,
    pub(super) read: Bytes,
    pub(super) activity: Option<Arc<Activity>>,
    /// Set when the gateway's side is closed and the client's is not.
    linger: Option<Box<Linger>>,
}

impl ClientIo {
    pub(super) fn new(io: Io, read: Bytes) -> Self {
        Self { io, read, activity: None, linger: None }
    }
}

impl Drop for ClientIo {
    /// Ends the connection by a reset if its client would take a part of an answer for the whole.
    fn drop(&mut self) {
        if self.activity.as_ref().is_some_and(|activity| activity.is_unframed()) {
            let _ = SockRef::from(self.io.socket()).set_linger(Some(Duration::ZERO));
        }
    }
}

impl AsyncRead for ClientIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buf.filled().len();
        if this.read.is_empty() {
            ready!(match &mut this.io {
                Io::Plain(io) => Pin::new(io).poll_read(cx, buf),
                Io::Tls(io) => Pin::new(io).poll_read(cx, buf),
            })?;
        } else {
            let count = this.read.len().min(buf.remaining());
            buf.put_slice(&this.read[..count]);
            this.read.advance(count);
            if this.read.is_empty() {
                // Its memory is not needed any longer.
                this.read = Bytes::new();
            }
        }
        if buf.filled().len() > before
            && let Some(activity) = &this.activity
        {
            activity.received();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Io::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_write_vectored(cx, bufs),
            Io::Tls(io) => Pin::new(io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match &self.io {
            Io::Plain(io) => io.is_write_vectored(),
            Io::Tls(io) => io.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Io::Plain(io) => Pin::new(io).poll_flush(cx),
            Io::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.linger.is_none() {
            ready!(match &mut this.io {
                Io::Plain(io) => Pin::new(io).poll_shutdown(cx),
                Io::Tls(io) => Pin::new(io).poll_shutdown(cx),
            })?;
            let Some(activity) = this.activity.as_ref().filter(|activity| activity.is_unread())
            else {
                return Poll::Ready(Ok(()));
            };
            activity.closed();
        }
        let linger = this.linger.get_or_insert_with(|| Box::new(Linger::new(Instant::now())));
        ready!(match &mut this.io {
            Io::Plain(io) => linger.poll(cx, Pin::new(io)),
            Io::Tls(io) => linger.poll(cx, Pin::new(io)),
        });
        Poll::Ready(Ok(()))
    }
}
