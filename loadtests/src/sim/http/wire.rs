//! A socket, and the two places where hyper's HTTP/1 differs from uvicorn's.
//!
//! uvicorn answers an HTTP/1.0 request as HTTP/1.1, chunked if it streams: the version in the
//! request line is changed on its way in, and the reply says `connection: close`. And uvicorn has a
//! text for bytes that are not HTTP: hyper's own bare refusal is dropped, and the connection's task
//! writes [`INVALID`] in its place.

use crate::sim::http::reply::ConnState;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// The body of the reply to bytes that are not HTTP/1.
const INVALID: &str = "Invalid HTTP request received.";

/// A client's socket.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    state: Arc<ConnState>,
    /// No byte has been read yet.
    fresh: bool,
}

impl Wire {
    pub(crate) fn new(stream: TcpStream, state: Arc<ConnState>) -> Self {
        Self { stream, state, fresh: true }
    }

    /// The whole reply to bytes that are not HTTP/1.
    pub(crate) fn invalid() -> String {
        format!(
            "HTTP/1.1 400 Bad Request\r\ndate: {}\r\nserver: uvicorn\r\n\
             content-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n\
             connection: close\r\n\r\n{INVALID}",
            crate::sim::wall::http_date(crate::sim::wall::now()),
            INVALID.len()
        )
    }
}

/// Replaces HTTP/1.0 in the first line by 1.1. True if it was there.
fn upgrade_version(first: &mut [u8]) -> bool {
    let Some(end) = first.windows(2).position(|pair| pair == b"\r\n") else { return false };
    let old = first[..end].ends_with(b" HTTP/1.0");
    if old {
        first[end - 1] = b'1';
    }
    old
}

/// Whether these bytes are hyper's own refusal: all our replies name their server.
fn is_refusal(bytes: &[u8]) -> bool {
    bytes.starts_with(b"HTTP/1.1 4") && !bytes.windows(8).any(|w| w == b"server: ")
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.fresh && buf.filled().len() > before {
            self.fresh = false;
            if upgrade_version(&mut buf.filled_mut()[before..]) {
                self.state.http10.store(true, Relaxed);
            }
        }
        read
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if is_refusal(buf) {
            return Poll::Ready(Ok(buf.len()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_request_line_s_version_is_changed() {
        for (case, sent, want) in [
            (
                "old",
                "GET / HTTP/1.0\r\nA: HTTP/1.0\r\n\r\n",
                Some("GET / HTTP/1.1\r\nA: HTTP/1.0\r\n\r\n"),
            ),
            ("new", "GET / HTTP/1.1\r\n\r\n", None),
            ("incomplete", "GET / HTTP/1.0", None),
        ] {
            let mut bytes = sent.as_bytes().to_vec();
            assert_eq!(upgrade_version(&mut bytes), want.is_some(), "{case}");
            assert_eq!(bytes, want.unwrap_or(sent).as_bytes(), "{case}");
        }
    }

    #[test]
    fn only_a_refusal_that_is_not_ours_is_held_back() {
        assert!(is_refusal(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"));
        assert!(!is_refusal(b"HTTP/1.1 404 Not Found\r\ndate: x\r\nserver: uvicorn\r\n\r\n"));
        assert!(!is_refusal(b"HTTP/1.1 100 Continue\r\n\r\n"));
    }
}
