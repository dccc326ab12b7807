//! Connections to replicas: one request at a time, kept for the next one.
//!
//! A connection has no task of its own: it is read and written where its request is polled. It
//! keeps no buffers between two polls. What a request needs is in its future, and each thread has
//! one buffer for reading.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::SizeHint;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::answer::failure::{Cause, Failure};
use crate::exchange::outgoing::Outgoing;
use crate::net::dial::{NewConnection, dial};
use crate::net::file_shares::FilePermit;
use crate::read::known_headers::{is_for_client, strip_connection};
use crate::wire::WireError;
use crate::wire::body::MessageBody;
use crate::wire::head::{HeadReader, ResponseHead, ResponseStart};

mod idle;
#[cfg(test)]
mod tests;
mod writer;

pub(crate) use idle::close_idle;
use writer::{RequestRest, RequestWriter};

/// A failure within this time after sending means that the replica had closed the idle connection.
/// A later failure happened while the replica worked.
const STALE_WITHIN: Duration = Duration::from_millis(50);
/// The bytes that are read at once.
const READ: usize = 64 << 10;

thread_local! {
    /// The bytes of one read, of whichever connection.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ].into());
}

/// One connection. Dropping it closes the socket at once, which makes vLLM abort the request.
pub(crate) struct Connection {
    address: SocketAddr,
    /// The address as the replica's name.
    host: Box<str>,
    stream: TcpStream,
    /// When it was taken for another request, if it has carried one before: the replica may have
    /// closed it since.
    reused: Option<Instant>,
    _place: FilePermit,
}

/// A try without a response head.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    pub(crate) failure: Failure,
    /// Whether the connection was reused and failed at once: most likely it was closed while idle.
    pub(crate) stale: bool,
}

impl Connection {
    /// Takes an idle connection, or makes a new one. If the gateway itself is short of something,
    /// this waits for it until `deadline`.
    pub(crate) async fn get(
        address: SocketAddr,
        fresh: bool,
        connect_timeout: Duration,
        deadline: Instant,
    ) -> Result<Box<Self>, NoAnswer> {
        if !fresh && let Some(connection) = idle::take(address) {
            return Ok(connection);
        }
        let dialed = dial(address, connect_timeout, deadline).await;
        let NewConnection { stream, place } =
            dialed.map_err(|failure| NoAnswer { failure, stale: false })?;
        let host = address.to_string().into();
        Ok(Box::new(Self { address, host, stream, reused: None, _place: place }))
    }

    /// Sends a request and waits for the response's head, with the headers for the client. A response
    /// that begins before the whole request is sent is the answer as well.
    pub(crate) async fn send(
        self: Box<Self>,
        request: &Outgoing<'_>,
    ) -> Result<(ResponseHead, UpstreamBody), NoAnswer> {
        let mut connection = self;
        let asked = writer::head(request, &connection.host);
        let mut writer = RequestWriter::new(&asked, request.body());
        let mut reader = HeadReader::passing(is_for_client);
        // The reason why the replica takes nothing more. It may have answered before.
        let mut refused = None;
        let outcome = poll_fn(|cx| {
            let stream = &mut connection.stream;
            if refused.is_none()
                && let Poll::Ready(Err(error)) = writer.poll(stream, cx)
            {
                refused = Some(error);
            }
            loop {
                let start = ready!(poll_read(stream, cx, |read| match read {
                    Ok([]) => Err(WireError::Cut),
                    Ok(bytes) => reader.feed(bytes, request.method()),
                    Err(error) => Err(error.into()),
                }));
                if let Some(start) = start.transpose() {
                    return Poll::Ready(start);
                }
            }
        })
        .await;
        match outcome {
            Ok(ResponseStart { mut head, body, keep_alive }) => {
                if head.has_connection {
                    strip_connection(&mut head.headers);
                }
                let sent = writer.is_complete();
                // A client that hears of an error stops sending (RFC 9112, 9.5).
                let goes_on = !sent && refused.is_none() && head.status.as_u16() < 400;
                let rest = goes_on.then(|| Box::new(writer.rest()));
                let keep_alive = keep_alive && (sent || goes_on);
                let body = UpstreamBody { body, connection: Some(connection), rest, keep_alive };
                Ok((head, body))
            }
            Err(error) => {
                let at_once =
                    || connection.reused.is_some_and(|since| since.elapsed() < STALE_WITHIN);
                let stale = error.is_end() && at_once();
                let error = match refused {
                    Some(refused) if error.is_end() => WireError::Io(refused),
                    _ => error,
                };
                Err(NoAnswer { failure: broken(&error), stale })
            }
        }
    }

    /// Whether the replica has neither closed it nor sent bytes that answer no request, as far as
    /// this thread has noticed.
    fn is_quiet(&self) -> bool {
        let read = self.stream.try_read(&mut [0]);
        matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Reads once, and gives the bytes, none at the connection's end, to `take`.
fn poll_read<T>(
    stream: &mut TcpStream,
    cx: &mut Context<'_>,
    take: impl FnOnce(io::Result<&[u8]>) -> T,
) -> Poll<T> {
    BUFFER.with_borrow_mut(|buffer| {
        let mut buffer = ReadBuf::new(buffer);
        let read = ready!(Pin::new(stream).poll_read(cx, &mut buffer));
        Poll::Ready(take(read.map(|()| buffer.filled())))
    })
}

/// A response's body together with the connection that it comes on.
pub(crate) struct UpstreamBody {
    body: MessageBody,
    /// `None` after the body's end.
    connection: Option<Box<Connection>>,
    rest: Option<Box<RequestRest>>,
    /// The connection can carry another request if this one and its answer come to their end.
    keep_alive: bool,
}

impl UpstreamBody {
    /// The next bytes, or `None` at the end. The connection becomes idle at the end, or with the
    /// last bytes if those are known to be the last.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Failure>>> {
        loop {
            let data = self.body.take();
            if self.body.is_over() {
                self.keep();
            }
            if let Some(data) = data {
                return Poll::Ready(Some(Ok(data)));
            }
            if let Some(error) = self.body.take_error() {
                self.connection = None;
                return Poll::Ready(Some(Err(broken(&error))));
            }
            let Some(connection) = &mut self.connection else { return Poll::Ready(None) };
            let stream = &mut connection.stream;
            if let Some(rest) = &mut self.rest
                && let Poll::Ready(sent) = rest.poll(stream, cx)
            {
                self.rest = None;
                // The replica does not want the rest. Its answer goes on.
                self.keep_alive &= sent.is_ok();
            }
            ready!(poll_read(stream, cx, |read| match read {
                Ok([]) => self.body.close(None),
                Ok(bytes) => self.body.feed(bytes),
                Err(error) => self.body.close(Some(error.into())),
            }));
        }
    }

    pub(crate) async fn data(&mut self) -> Option<Result<Bytes, Failure>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Gives the connection up for the next request, or closes it.
    fn keep(&mut self) {
        if let Some(connection) = self.connection.take()
            && self.keep_alive
            && self.rest.is_none()
            && !self.body.has_excess()
        {
            idle::keep(connection);
        }
    }

    /// Whether all bytes have come and are taken.
    pub(crate) fn is_over(&self) -> bool {
        self.body.is_over()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.left().map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn broken(error: &WireError) -> Failure {
    let cause = if error.is_end() { Cause::Connection } else { Cause::Server };
    Failure::new(cause, error.to_string())
}
