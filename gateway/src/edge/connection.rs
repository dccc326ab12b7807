//! One connection of a client, from its handshake to its end: HTTP/1.1 or HTTP/2, by negotiation or
//! by its first bytes, within its time limits.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora_core::protocols::Stream;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::edge::layers::{Edge, Peer};
use crate::net::activity::{Activity, Over, Watched};
use crate::net::alarm::poll_alarm;
use crate::net::connection_limits::Counted;
use crate::net::h2_tasks::{Running, Streams};
use crate::net::linger::Linger;
use crate::net::socket::ClientSocket;
use crate::net::upload::Upload;
use crate::read::context::Client;
use crate::realtime::Sessions;

/// What an HTTP/2 client with prior knowledge begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How often an HTTP/2 client is asked whether it is still there, and how long it may take.
const PING: Duration = Duration::from_secs(20);
/// What is kept of one answer's stream for a client that takes nothing.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that a client has reset before they were looked at: beyond, it does nothing else.
const PENDING_RESETS: usize = 64;

/// Serves a connection until it ends.
pub(crate) async fn serve(stream: Stream, address: SocketAddr, counted: &Counted, edge: Arc<Edge>) {
    let client = Client { socket: ClientSocket::new(stream.id()), address: Some(address.ip()) };
    let digest = stream.get_socket_digest();
    let local = digest.and_then(|digest| Some(digest.local_addr()?.as_inet()?.ip()));
    let peer = Peer { client, local, encrypted: false };
    let greeted = async {
        match edge.tls() {
            None => plain(stream, peer, &edge).await,
            Some(tls) => secure(stream, tls, Peer { encrypted: true, ..peer }, &edge).await,
        }
    };
    let greeted = tokio::select! {
        // It may have sent something meanwhile.
        biased;
        greeted = greeted => greeted,
        () = counted.asked_to_close() => Err("closed for another's sake".into()),
    };
    let outcome = match greeted {
        Ok((io, http2, peer)) => serve_http(io, http2, peer, counted, edge).await,
        Err(error) => Err(error),
    };
    if let Err(error) = outcome {
        tracing::debug!(%address, "connection: {error}");
    }
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// A connection whose version of HTTP is known: whether that is HTTP/2.
type Greeted = (ClientIo, bool, Peer);

async fn plain(mut stream: Stream, peer: Peer, edge: &Edge) -> Result<Greeted, Error> {
    let limit = edge.limits().header_timeout;
    let Ok(sniffed) = timeout(limit, sniff(&mut stream)).await else {
        return Err("nothing came".into());
    };
    let Sniffed { read, http2 } = sniffed?;
    let io = ClientIo::new(Io::Plain(stream), read);
    Ok((io, http2, peer))
}

async fn secure(
    stream: Stream,
    tls: Arc<ServerConfig>,
    peer: Peer,
    edge: &Edge,
) -> Result<Greeted, Error> {
    let limit = edge.limits().header_timeout;
    let stream = timeout(limit, TlsAcceptor::from(tls).accept(stream))
        .await
        .map_err(|_| "the TLS handshake took too long")?
        .map_err(|error| format!("TLS: {error}"))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = ClientIo::new(Io::Tls(Box::new(stream)), Bytes::new());
    Ok((io, http2, peer))
}

/// The first bytes, as far as they were needed to know the version.
struct Sniffed {
    read: Bytes,
    http2: bool,
}

async fn sniff(stream: &mut Stream) -> io::Result<Sniffed> {
    let mut read = BytesMut::with_capacity(1024);
    loop {
        let known = read.len().min(PREFACE.len());
        if read[..known] != PREFACE[..known] || known == PREFACE.len() {
            return Ok(Sniffed {
                http2: known == PREFACE.len() && read[..known] == *PREFACE,
                read: read.freeze(),
            });
        }
        if stream.read_buf(&mut read).await? == 0 {
            // Left, maybe in the middle of a preface. HTTP/1 knows what to do of either.
            return Ok(Sniffed { read: read.freeze(), http2: false });
        }
    }
}

async fn serve_http(
    mut io: ClientIo,
    http2: bool,
    mut peer: Peer,
    counted: &Counted,
    edge: Arc<Edge>,
) -> Result<(), Error> {
    let limits = edge.limits();
    let activity = Activity::new(Instant::now(), !http2);
    counted.speaks(&activity);
    io.activity = Some(Arc::clone(&activity));
    let streams = Streams::default();
    if http2 {
        // A stream's end is told by the protocol, and the socket is always read.
        peer.client.socket = ClientSocket::unwatched();
    }
    let peer = Arc::new(peer);
    let sessions = Sessions::default();
    let service = {
        let (edge, activity, streams) = (Arc::clone(&edge), Arc::clone(&activity), streams.clone());
        let sessions = sessions.clone();
        service_fn(move |request: Request<Incoming>| {
            let request = request.map(|body| Upload::new(body, Arc::clone(&activity)));
            let flight = activity.begin(Instant::now());
            if http2 {
                streams.announce(&flight);
            }
            let (edge, peer, sessions) = (Arc::clone(&edge), Arc::clone(&peer), sessions.clone());
            async move {
                let response = edge.serve(request, &peer, &sessions).await;
                Ok::<_, Infallible>(response.map(|body| Watched::new(body, flight)))
            }
        })
    };
    let header_size = usize::try_from(limits.header_size.bytes()).unwrap_or(usize::MAX);
    if http2 {
        let mut builder = http2::Builder::new(streams.clone());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.streams_per_connection)
            .max_header_list_size(u32::try_from(header_size).unwrap_or(u32::MAX))
            .max_pending_accept_reset_streams(PENDING_RESETS)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING)
            .keep_alive_timeout(PING);
        let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
        let mut running = Running::new(streams, Arc::clone(&limits));
        let poll = |cx: &mut Context<'_>, action| match action {
            Drive::End => {
                connection.as_mut().graceful_shutdown();
                Poll::Pending
            }
            Drive::Poll => loop {
                running.poll(cx);
                if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                    return Poll::Ready(served);
                }
                if !running.poll(cx) {
                    return Poll::Pending;
                }
            },
        };
        drive(poll, &activity, counted, &edge, true).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // Ours, which tells heads from idleness.
            .header_read_timeout(None)
            .max_buf_size(header_size.max(8192))
            .max_header_size(header_size);
        if limits.header_count != 100 {
            // hyper's own number costs no allocation.
            builder.max_headers(limits.header_count.into());
        }
        let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let poll = |cx: &mut Context<'_>, action| match action {
            Drive::End => {
                connection.as_mut().graceful_shutdown();
                Poll::Pending
            }
            Drive::Poll => connection.as_mut().poll(cx),
        };
        drive(poll, &activity, counted, &edge, false).await?;
        // What it was upgraded to, which is as good as a request.
        let _flight = activity.begin(Instant::now());
        sessions.run().await;
        Ok(())
    }
}

/// What a connection is to do next.
enum Drive {
    Poll,
    /// Answer what is there and take nothing new.
    End,
}

/// How long a connection that came too late may take to ask.
const LINGER: Duration = Duration::from_secs(1);

/// How long a connection without a request may stay with a gateway that has retired. Its next
/// answer ends it without doubt; to close it before could cross a request that is on its way.
const LAST_REQUEST: Duration = Duration::from_secs(10);

/// Drives a connection within its limits; when the gateway drains or retires, to its orderly end.
async fn drive(
    mut connection: impl FnMut(&mut Context<'_>, Drive) -> Poll<hyper::Result<()>>,
    activity: &Activity,
    counted: &Counted,
    edge: &Edge,
    http2: bool,
) -> Result<(), Error> {
    let limits = edge.limits();
    // One that came while the gateway drained still gets its first request's answer, a refusal.
    let late = edge.drain().has_begun();
    let mut draining = std::pin::pin!(async {
        let retired = async {
            edge.drain().retired().await;
            // HTTP/2 says which requests it still answers.
            if !http2 {
                sleep(LAST_REQUEST.min(limits.idle_timeout)).await;
            }
        };
        tokio::select! {
            () = edge.drain().begun() => if late {
                sleep(LINGER).await;
            },
            () = retired => {}
        }
    });
    let mut alarm = std::pin::pin!(sleep_until(activity.due(&limits).0));
    let mut asked = std::pin::pin!(counted.asked_to_close());
    let (mut drains, mut ending) = (false, false);
    std::future::poll_fn(|cx| {
        if !drains && draining.as_mut().poll(cx).is_ready() {
            drains = true;
            let _ = connection(cx, Drive::End);
        }
        if let Poll::Ready(served) = connection(cx, Drive::Poll) {
            return Poll::Ready(served.map_err(Error::from));
        }
        if asked.as_mut().poll(cx).is_ready() {
            // One that is in use again by now is left alone, and may be asked anew.
            asked.set(counted.asked_to_close());
            if activity.unused().is_some() {
                ending = true;
                alarm.as_mut().reset(Instant::now());
                let _ = connection(cx, Drive::End);
                if let Poll::Ready(served) = connection(cx, Drive::Poll) {
                    return Poll::Ready(served.map_err(Error::from));
                }
            }
            cx.waker().wake_by_ref();
        }
        // Moved when it must ring earlier, or has rung: not with each request.
        if !ending && activity.due(&limits).0 < alarm.deadline() {
            alarm.as_mut().reset(activity.due(&limits).0);
        }
        loop {
            ready!(poll_alarm(alarm.as_mut(), cx));
            let (now, (due, over)) = (Instant::now(), activity.due(&limits));
            if ending {
                return Poll::Ready(Err("did not end in time".into()));
            }
            if due > now {
                alarm.as_mut().reset(due);
                continue;
            }
            match over {
                Over::Idle => {
                    ending = true;
                    alarm.as_mut().reset(now + limits.write_timeout);
                    let _ = connection(cx, Drive::End);
                    if let Poll::Ready(served) = connection(cx, Drive::Poll) {
                        return Poll::Ready(served.map_err(Error::from));
                    }
                }
                Over::Head => return Poll::Ready(Err("a head took too long".into())),
                Over::Total => return Poll::Ready(Err("an answer took too long".into())),
            }
        }
    })
    .await
}

enum Io {
    Plain(Stream),
    Tls(Box<TlsStream<Stream>>),
}

/// A client's bytes, those first that were read to know the version.
struct ClientIo {
    io: Io,
    read: Bytes,
    activity: Option<Arc<Activity>>,
    /// Our side is closed, and the client's is not yet.
    linger: Option<Linger>,
}

impl ClientIo {
    fn new(io: Io, read: Bytes) -> Self {
        Self { io, read, activity: None, linger: None }
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
        }
        if buf.filled().len() > before
            && let Some(activity) = &this.activity
        {
            activity.received(Instant::now());
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
            let Some(activity) = this.activity.as_ref().filter(|it| it.is_unread()) else {
                return Poll::Ready(Ok(()));
            };
            activity.closed(Instant::now());
        }
        let linger = this.linger.get_or_insert_with(|| Linger::new(Instant::now()));
        ready!(match &mut this.io {
            Io::Plain(io) => linger.poll(cx, Pin::new(io)),
            Io::Tls(io) => linger.poll(cx, Pin::new(io)),
        });
        Poll::Ready(Ok(()))
    }
}
