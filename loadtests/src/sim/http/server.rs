//! The server's life: bound, listening, ending; and its connections.
//!
//! The port is bound from the start, but connections are refused until the cold start is over, as
//! with the real server. [`end`] lists the ways in which the server ends.

use crate::sim::args::{SigtermOutcome, SimArgs};
use crate::sim::engine::{SeqEvent, State};
use crate::sim::http::realtime;
use crate::sim::http::reply::ConnState;
use crate::sim::http::route;
use crate::sim::http::wire::Wire;
use crate::sim::shared::{Phase, Shared, Stop};
use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// uvicorn closes a connection after this much idle time behind a response.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Time from the engine's end until connections are refused.
const LISTENS_AFTER_ABORT: Duration = Duration::from_millis(130);
const LISTENS_AFTER_CRASH: Duration = Duration::from_millis(50);

const BACKLOG: u32 = 2048;

/// Takes the port without listening on it.
pub(crate) fn bind(args: &SimArgs) -> anyhow::Result<TcpSocket> {
    let address = SocketAddr::new(args.host, args.port);
    let new = || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    // Two sockets that both allow reuse can share a port until one listens; so reuse is allowed
    // only where closing connections of an earlier server are in the way.
    let socket = new()?;
    if socket.bind(address).is_ok() {
        return Ok(socket);
    }
    let socket = new()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("can't bind {address}"))?;
    Ok(socket)
}

/// Serves until the server has ended, after a signal, a crash or an order.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    socket: TcpSocket,
    listening: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        () = sleep(shared.args.speed.cold_start) => {}
        _ = stop.wait_for(Option::is_some) => return Ok(()),
    }
    let listener = socket.listen(BACKLOG)?;
    // Accepted connections inherit the option, so that their last moments do not keep the next
    // server from the port. A listening socket still has its port to itself.
    socket2::SockRef::from(&listener).set_reuse_address(true)?;
    listening.send_replace(true);
    let mut background = JoinSet::new();
    background.spawn(Arc::clone(&shared.engine).run());
    background.spawn(scheduled_faults(Arc::clone(&shared)));
    let mut server = Server {
        shared: Arc::clone(&shared),
        listener: Some(listener),
        connections: JoinSet::new(),
        closing: watch::Sender::new(false),
    };
    server.accept_until(async { stop.wait_for(Option::is_some).await.map(|how| *how) }).await.ok();
    let how = *shared.stop.borrow();
    end(&mut server, how.unwrap_or(Stop::Terminate)).await;
    Ok(())
}

/// Hangs or kills the engine at the times that the flags set.
async fn scheduled_faults(shared: Arc<Shared>) {
    let args = &shared.args;
    let hang = async {
        if let Some(after) = args.faults.hang_after {
            sleep(after).await;
            shared.engine.set(State::Hung);
        }
    };
    let crash = async {
        if let Some(after) = args.faults.crash_after {
            sleep(after).await;
            shared.end(Stop::Crash);
        }
    };
    tokio::join!(hang, crash);
}

/// Ends the server as the real one ends.
///
/// - SIGTERM without a shutdown timeout: requests in flight fail or are cut short at once; for a
///   moment new ones get 500 and /health 503; then connections are refused.
/// - SIGTERM with a shutdown timeout: requests in flight go on, /health stays 200, new requests get
///   500. If all end in time, the server ends. If not, the engine stops and the listener closes, and
///   open connections stay open and silent until their clients leave.
/// - `--sigterm-outcome=mute`: the listener closes, and open connections stay open and silent until
///   their clients leave.
/// - A dead engine: as the first, and every request fails.
async fn end(server: &mut Server, how: Stop) {
    let shared = Arc::clone(&server.shared);
    let drain_time = Duration::from_secs(shared.args.capacity.shutdown_timeout);
    let delay = shared.args.faults.stop_delay;
    if how == Stop::Terminate && !drain_time.is_zero() {
        shared.enter(Phase::Draining);
        let drained = timeout(drain_time, shared.engine.idle(false));
        if server.accept_until(drained).await.is_ok() {
            server.accept_until(sleep(delay)).await;
        } else {
            shared.engine.set(State::Hung);
        }
        server.close().await;
        return;
    }
    if how == Stop::Terminate && shared.args.faults.sigterm_outcome == SigtermOutcome::Mute {
        shared.engine.set(State::Hung);
        server.close().await;
        return;
    }
    shared.enter(Phase::Dying);
    let fails = how == Stop::Crash || shared.fails_on_sigterm();
    shared.engine.kill(if fails { SeqEvent::Failed } else { SeqEvent::Aborted });
    let listens = if how == Stop::Crash { LISTENS_AFTER_CRASH } else { LISTENS_AFTER_ABORT };
    server.accept_until(sleep(listens)).await;
    let gone = sleep(delay.saturating_sub(listens));
    server.close().await;
    gone.await;
}

struct Server {
    shared: Arc<Shared>,
    listener: Option<TcpListener>,
    connections: JoinSet<()>,
    /// Makes connections end with their current response.
    closing: watch::Sender<bool>,
}

impl Server {
    /// Accepts connections until `until` is ready.
    async fn accept_until<T>(&mut self, until: impl Future<Output = T>) -> T {
        tokio::pin!(until);
        let Some(listener) = &self.listener else { return until.await };
        loop {
            tokio::select! {
                done = &mut until => return done,
                Some(_) = self.connections.join_next() => {}
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let closing = self.closing.subscribe();
                        let shared = Arc::clone(&self.shared);
                        self.connections.spawn(connection(shared, stream, closing));
                    }
                    // Probably no descriptors are left: let some connections end.
                    Err(_) => sleep(Duration::from_millis(10)).await,
                },
            }
        }
    }

    /// Refuses connections from now on, closes idle ones, and waits for the others.
    async fn close(&mut self) {
        self.listener = None;
        self.closing.send_replace(true);
        while self.connections.join_next().await.is_some() {}
    }
}

async fn connection(shared: Arc<Shared>, stream: TcpStream, mut closing: watch::Receiver<bool>) {
    let _ = stream.set_nodelay(true);
    let state = ConnState::new();
    let mut idle = state.idle_since.subscribe();
    let wire = Wire::new(stream, Arc::clone(&state));
    let service = service_fn(|request| {
        let answer = route::answer(Arc::clone(&shared), Arc::clone(&state), request);
        Box::pin(async move { Ok::<_, Infallible>(answer.await) })
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(wire), service);
    let mut ending = false;
    let result = loop {
        tokio::select! {
            result = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break result,
            () = idle_too_long(&mut idle), if !ending => {}
            _ = closing.wait_for(|closing| *closing), if !ending => {}
        }
        // An idle connection ends now, a busy one with its response.
        ending = true;
        Pin::new(&mut connection).graceful_shutdown();
    };
    let parts = connection.into_parts();
    let mut wire = parts.io.into_inner();
    if result.is_ok() && state.upgraded.load(Relaxed) {
        realtime::serve(&shared, wire.stream, parts.read_buf.to_vec(), closing).await;
        return;
    }
    if result.is_err_and(|error| error.is_parse()) {
        let _ = wire.stream.write_all(Wire::invalid().as_bytes()).await;
    }
    let _ = wire.stream.shutdown().await;
}

/// Returns after [`KEEP_ALIVE`] without an open request. Never returns before the first request.
async fn idle_too_long(idle: &mut watch::Receiver<Option<Instant>>) {
    loop {
        let since = *idle.borrow_and_update();
        let deadline = async {
            match since {
                Some(since) => sleep_until(since + KEEP_ALIVE).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = deadline => return,
            changed = idle.changed() => if changed.is_err() { std::future::pending().await },
        }
    }
}
