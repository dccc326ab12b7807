//! One connection of a client, from its handshake to its end, within its time limits. It speaks
//! HTTP/1.1 or HTTP/2: TLS negotiates the version, and without TLS the first bytes show it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use forebay_config::Limits;
use futures_util::future::Either;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;

use crate::edge::head::ServedHost;
use crate::edge::http1::{ConnectionError, Http1, Http1Settings};
use crate::edge::layers::{ClientConnection, Edge, Peer};
use crate::net::activity::{Activity, TimeLimit};
use crate::net::alarm::poll_alarm;
use crate::net::clock;
use crate::net::connection_limits::CountedConnection;
use crate::net::drain::Drain;
use crate::net::h2_tasks::{H2Executor, H2Tasks};
use crate::net::socket::ClientSocket;
use crate::net::upload::Upload;
use crate::net::wake_flag::WakeFlag;
use crate::read::context::Client;
use crate::realtime::session::ConnectionSessions;
use crate::wire::request::HeadLimits;

mod client_io;
#[cfg(test)]
mod tests;

use client_io::{ClientIo, Io};

/// The first bytes of an HTTP/2 client with prior knowledge.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The bytes that are read at once to find out the version: the whole of a usual request.
const FIRST_READ: usize = 4 << 10;
/// How often an HTTP/2 client is pinged, and how long its answer may take.
const PING: Duration = Duration::from_secs(20);
/// The bytes of one answer that are buffered for a client that takes nothing.
const SEND_BUFFER: usize = 64 << 10;
/// The most streams that a client may reset before the gateway has handled them. A client that
/// exceeds this does nothing but reset.
const PENDING_RESETS: usize = 64;

/// Serves a connection until it ends.
///
/// Every connection keeps this future. So it is not that of an `async fn`, which would keep its
/// arguments twice, and it keeps nothing but what its last step needs.
pub(crate) fn serve<'a>(
    stream: TcpStream,
    address: SocketAddr,
    counted: &'a CountedConnection,
    edge: &'a Arc<Edge>,
) -> impl Future<Output = ()> + use<'a> {
    let socket = ClientSocket::new(stream.as_raw_fd());
    async move {
        let negotiation = async {
            let client = Client { socket, address: Some(address.ip()) };
            let local = stream.local_addr().ok().map(|local| local.ip());
            let peer = Peer { client, local, encrypted: false, served_host: ServedHost::default() };
            match edge.tls() {
                None => plain(stream, peer, edge).await,
                // Boxed, like everything that most connections don't need: a connection's future
                // is as large as its largest branch.
                Some(tls) => {
                    Box::pin(secure(stream, tls, Peer { encrypted: true, ..peer }, edge)).await
                }
            }
        };
        let negotiated = tokio::select! {
            // A client whose first bytes have come is served.
            biased;
            negotiated = negotiation => negotiated,
            () = counted.close_requested() => Err("closed to make room for another".into()),
        };
        let serving = match negotiated {
            Ok((io, true, peer)) => Either::Left(Box::pin(serve_http2(io, peer, counted, edge))),
            Ok((io, false, peer)) => Either::Right(serve_http1(io, peer, counted, edge)),
            Err(error) => return tracing::debug!(%address, "connection: {error}"),
        };
        if let Err(error) = serving.await {
            tracing::debug!(%address, "connection: {error}");
        }
    }
}

/// A connection whose version of HTTP is known, with whether that is HTTP/2.
type Negotiated = (ClientIo, bool, Peer);

async fn plain(
    mut stream: TcpStream,
    peer: Peer,
    edge: &Edge,
) -> Result<Negotiated, ConnectionError> {
    let limit = edge.limits().header_timeout;
    let Ok(sniffed) = timeout(limit, sniff(&mut stream)).await else {
        return Err("the client sent nothing".into());
    };
    let FirstBytes { read, http2 } = sniffed?;
    let io = ClientIo::new(Io::Plain(stream), read);
    Ok((io, http2, peer))
}

async fn secure(
    stream: TcpStream,
    tls: Arc<ServerConfig>,
    peer: Peer,
    edge: &Edge,
) -> Result<Negotiated, ConnectionError> {
    let limit = edge.limits().header_timeout;
    let stream = timeout(limit, TlsAcceptor::from(tls).accept(stream))
        .await
        .map_err(|_| "the TLS handshake took too long")?
        .map_err(|error| format!("TLS: {error}"))?;
    let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let io = ClientIo::new(Io::Tls(Box::new(stream)), Bytes::new());
    Ok((io, http2, peer))
}

/// The bytes that were read to find out the version, and whether it is HTTP/2.
struct FirstBytes {
    read: Bytes,
    http2: bool,
}

async fn sniff(stream: &mut TcpStream) -> io::Result<FirstBytes> {
    let mut read = BytesMut::with_capacity(FIRST_READ);
    loop {
        let known = read.len().min(PREFACE.len());
        if read[..known] != PREFACE[..known] || known == PREFACE.len() {
            return Ok(FirstBytes {
                http2: known == PREFACE.len() && read[..known] == *PREFACE,
                read: read.freeze(),
            });
        }
        if stream.read_buf(&mut read).await? == 0 {
            // The client left, perhaps within a preface. HTTP/1 handles both.
            return Ok(FirstBytes { read: read.freeze(), http2: false });
        }
    }
}

/// Begins a connection whose version of HTTP is known.
fn begin(
    io: &mut ClientIo,
    peer: Peer,
    serial: bool,
    counted: &CountedConnection,
    edge: &Arc<Edge>,
) -> (Arc<Activity>, Arc<ClientConnection>) {
    let activity = Activity::new(Instant::now(), serial);
    counted.set_activity(&activity);
    io.activity = Some(Arc::clone(&activity));
    let sessions = ConnectionSessions::default();
    (activity, Arc::new(ClientConnection { edge: Arc::clone(edge), peer, sessions }))
}

fn header_size(limits: &Limits) -> usize {
    usize::try_from(limits.header_size.bytes()).unwrap_or(usize::MAX)
}

fn serve_http1<'a>(
    mut io: ClientIo,
    peer: Peer,
    counted: &'a CountedConnection,
    edge: &'a Arc<Edge>,
) -> impl Future<Output = Result<(), ConnectionError>> + use<'a> {
    let limits = edge.limits();
    // Each request watches the socket for its client's close. Only the connection can read the end
    // of a TLS connection.
    let watches = peer.encrypted;
    let (activity, client) = begin(&mut io, peer, true, counted, edge);
    let read = std::mem::take(&mut io.read);
    if !read.is_empty() {
        activity.received();
    }
    let limits = HeadLimits { bytes: header_size(&limits), headers: limits.header_count.into() };
    let serve = {
        let (activity, client) = (Arc::clone(&activity), Arc::clone(&client));
        move |request| Arc::clone(&client).serve(request, activity.begin())
    };
    let settings = Http1Settings { limits, watches };
    let mut connection = Http1::new(io, read, settings, Arc::clone(&activity), serve);
    async move {
        let poll = |cx: &mut Context<'_>, action| match action {
            Drive::End => {
                connection.end();
                Poll::Pending
            }
            Drive::Poll => connection.poll(cx),
        };
        let served = drive(poll, &activity, counted, (edge.limits(), edge.drain()), false).await;
        served?;
        if let Some((upgrade, mut io, read)) = connection.into_switched() {
            io.read = read;
            let _ = upgrade.send(Box::new(io));
            // A session counts as a request.
            let _flight = activity.begin();
            Box::pin(client.sessions.clone().run()).await;
        }
        Ok(())
    }
}

async fn serve_http2(
    mut io: ClientIo,
    mut peer: Peer,
    counted: &CountedConnection,
    edge: &Arc<Edge>,
) -> Result<(), ConnectionError> {
    let limits = edge.limits();
    // The protocol reports the end of a stream, and the socket is always read.
    peer.client.socket = ClientSocket::unwatched();
    let (activity, client) = begin(&mut io, peer, false, counted, edge);
    let streams = H2Executor::default();
    let service = {
        let (activity, streams) = (Arc::clone(&activity), streams.clone());
        service_fn(move |request: Request<Incoming>| {
            let request = request.map(|body| Upload::http2(body, Arc::clone(&activity)));
            let flight = activity.begin();
            streams.announce(&flight);
            Arc::clone(&client).serve(request, flight)
        })
    };
    let mut builder = http2::Builder::new(streams.clone());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.streams_per_connection)
        .max_header_list_size(u32::try_from(header_size(&limits)).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(PENDING_RESETS)
        .max_send_buf_size(SEND_BUFFER)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    let mut connection = std::pin::pin!(builder.serve_connection(TokioIo::new(io), service));
    let mut running = H2Tasks::new(streams, Arc::clone(&limits));
    let poll = |cx: &mut Context<'_>, action| match action {
        Drive::End => {
            connection.as_mut().graceful_shutdown();
            Poll::Pending
        }
        Drive::Poll => loop {
            running.poll(cx);
            if let Poll::Ready(served) = connection.as_mut().poll(cx) {
                return Poll::Ready(served.map_err(Into::into));
            }
            if !running.poll(cx) {
                return Poll::Pending;
            }
        },
    };
    drive(poll, &activity, counted, (edge.limits(), edge.drain()), true).await
}

/// The next step of a connection.
enum Drive {
    Poll,
    /// Answer the present requests, and take no others.
    End,
}

/// How long a connection that comes during a drain may take to send its request.
const LINGER: Duration = Duration::from_secs(1);

/// How long an idle connection may stay with a gateway that has retired. The answer to its next
/// request ends it safely; closing it at once could cross a request that is on its way.
const LAST_REQUEST: Duration = Duration::from_secs(10);

/// Drives a connection within its limits. If the gateway drains or retires, the connection ends in
/// good order.
async fn drive(
    mut connection: impl FnMut(&mut Context<'_>, Drive) -> Poll<Result<(), ConnectionError>>,
    activity: &Activity,
    counted: &CountedConnection,
    (limits, drain): (Arc<Limits>, &Drain),
    http2: bool,
) -> Result<(), ConnectionError> {
    // A connection that comes during a drain still gets the answer to its first request, a refusal.
    let late = drain.has_begun();
    let mut draining = std::pin::pin!(async {
        // One wait for both, and a box for the rest: every connection keeps this.
        drain.closing().await;
        let retired = async {
            drain.retired().await;
            // With HTTP/2, the gateway can say which requests it still answers.
            if !http2 {
                sleep(LAST_REQUEST.min(limits.idle_timeout)).await;
            }
        };
        Box::pin(async {
            tokio::select! {
                () = drain.begun() => if late {
                    sleep(LINGER).await;
                },
                () = retired => {}
            }
            // The runtime looks at its sockets before it goes on: a request that has come is answered.
            yield_now().await;
        })
        .await;
    });
    let mut alarm = std::pin::pin!(sleep_until(activity.due(&limits).0));
    let mut close_requested = std::pin::pin!(counted.close_requested());
    let (mut drains, mut ending) = (false, false);
    // Nearly always, a poll is the socket's or a request's doing, and these three wait on. Two of
    // them would lock what all threads share.
    let events = WakeFlag::new();
    let event_waker = Waker::from(Arc::clone(&events));
    std::future::poll_fn(|cx| {
        let (woken, now) = (events.take(cx), Instant::now());
        activity.set_now(now);
        let mut connection = |cx: &mut Context<'_>, step| clock::hold(now, || connection(cx, step));
        let event_cx = &mut Context::from_waker(&event_waker);
        if woken && !drains && draining.as_mut().poll(event_cx).is_ready() {
            drains = true;
            let _ = connection(cx, Drive::End);
        }
        if let Poll::Ready(served) = connection(cx, Drive::Poll) {
            return Poll::Ready(served);
        }
        if woken && close_requested.as_mut().poll(event_cx).is_ready() {
            // A connection that is in use again stays. It may get another request to close later.
            close_requested.set(counted.close_requested());
            if activity.unused().is_some() {
                let _ = connection(cx, Drive::End);
                if let Poll::Ready(served) = connection(cx, Drive::Poll) {
                    return Poll::Ready(served);
                }
                // A request that came meanwhile is answered.
                if activity.unused().is_some() {
                    ending = true;
                    alarm.as_mut().reset(Instant::now());
                }
            }
            event_waker.wake_by_ref();
        }
        // The alarm is moved only if it must ring earlier, or has rung: not for each request.
        let due = activity.due(&limits).0;
        let moved = !ending && due < alarm.deadline();
        if moved {
            alarm.as_mut().reset(due);
        }
        if !woken && !moved && alarm.deadline() > now {
            return Poll::Pending;
        }
        loop {
            ready!(poll_alarm(alarm.as_mut(), event_cx));
            let (now, (due, over)) = (Instant::now(), activity.due(&limits));
            if ending {
                return Poll::Ready(Err("it did not close in time".into()));
            }
            if due > now {
                alarm.as_mut().reset(due);
                continue;
            }
            match over {
                TimeLimit::Idle => {
                    let _ = connection(cx, Drive::End);
                    if let Poll::Ready(served) = connection(cx, Drive::Poll) {
                        return Poll::Ready(served);
                    }
                    // A request that came meanwhile is answered, within limits of its own.
                    if activity.due(&limits).1 == TimeLimit::Idle {
                        ending = true;
                        alarm.as_mut().reset(now + limits.write_timeout);
                    }
                }
                TimeLimit::Head => return Poll::Ready(Err("a head took too long".into())),
                TimeLimit::Total => return Poll::Ready(Err("an answer took too long".into())),
            }
        }
    })
    .await
}
