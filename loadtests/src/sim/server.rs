//! The server's life: bound, listening, ending; and its connections.
//!
//! The port is bound from the start, but connections are refused until the cold start is over, as
//! with the real one. How it ends depends on what it was told: see [`end`].

use super::args::{Args, SigtermOutcome};
use super::engine::{Event, State};
use super::reply::ConnState;
use super::route;
use super::shared::{Phase, Shared, Stop};
use super::wire::Wire;
use anyhow::Context as _;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// uvicorn closes a connection that was idle this long after a response.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// From the engine's end until connections are refused.
const LISTENS_AFTER_ABORT: Duration = Duration::from_millis(130);
const LISTENS_AFTER_CRASH: Duration = Duration::from_millis(50);

const BACKLOG: u32 = 2048;

/// Takes the port without listening on it.
pub(crate) fn bind(args: &Args) -> anyhow::Result<TcpSocket> {
    let address = SocketAddr::new(args.host, args.port);
    let new = || if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    // Two sockets that both allow reuse can share a port until one listens; so reuse is allowed
    // only where an earlier server's closing connections are in the way.
    let socket = new()?;
    if socket.bind(address).is_ok() {
        return Ok(socket);
    }
    let socket = new()?;
    socket.set_reuseaddr(true)?;
    socket.bind(address).with_context(|| format!("can't bind {address}"))?;
    Ok(socket)
}

/// Serves until the server has been told to end and has ended.
pub(crate) async fn serve(
    shared: Arc<Shared>,
    socket: TcpSocket,
    listening: watch::Sender<bool>,
) -> anyhow::Result<()> {
    let mut stop = shared.stop.subscribe();
    tokio::select! {
        () = sleep(shared.args.cold_start) => {}
        _ = stop.wait_for(Option::is_some) => return Ok(()),
    }
    let listener = socket.listen(BACKLOG)?;
    // What is accepted inherits it, so that its last moments do not keep the next server out. A
    // listening socket shares its port with nobody all the same.
    socket2::SockRef::from(&listener).set_reuse_address(true)?;
    listening.send_replace(true);
    let mut background = JoinSet::new();
    background.spawn(Arc::clone(&shared.engine).run());
    background.spawn(misfortunes(Arc::clone(&shared)));
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

/// What was ordered to go wrong by itself.
async fn misfortunes(shared: Arc<Shared>) {
    let args = &shared.args;
    let hang = async {
        if let Some(after) = args.hang_after {
            sleep(after).await;
            shared.engine.set(State::Hung);
        }
    };
    let crash = async {
        if let Some(after) = args.crash_after {
            sleep(after).await;
            shared.end(Stop::Crash);
        }
    };
    tokio::join!(hang, crash);
}

/// Ends the server as the real one ends.
///
/// - SIGTERM without a shutdown timeout: in-flight requests fail or are cut at once; for a moment
///   new ones get 500 and /health 503; then connections are refused.
/// - With one: in-flight requests go on, /health stays 200, new work gets 500. If they all end in
///   time the server ends; if not, the engine stops and the listener closes, and the open
///   connections stay open without a word until their clients leave.
/// - Sometimes the first goes wrong: the listener closes, and the open connections stay open without
///   a word until their clients leave.
/// - A dead engine: as the first, always failing.
async fn end(server: &mut Server, how: Stop) {
    let shared = Arc::clone(&server.shared);
    let patience = Duration::from_secs(shared.args.shutdown_timeout);
    let delay = shared.args.stop_delay;
    if how == Stop::Terminate && !patience.is_zero() {
        shared.enter(Phase::Draining);
        let drained = timeout(patience, shared.engine.idle(false));
        if server.accept_until(drained).await.is_ok() {
            server.accept_until(sleep(delay)).await;
        } else {
            shared.engine.set(State::Hung);
        }
        server.close().await;
        return;
    }
    if how == Stop::Terminate && shared.args.sigterm_outcome == SigtermOutcome::Mute {
        shared.engine.set(State::Hung);
        server.close().await;
        return;
    }
    shared.enter(Phase::Dying);
    let fails = how == Stop::Crash || shared.fails_on_sigterm();
    shared.engine.kill(if fails { Event::Failed } else { Event::Aborted });
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
    /// Tells connections to end with their current response.
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
                    // No descriptors left, most likely: let some connections end.
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
        // Ends an idle connection now, a busy one with its response.
        ending = true;
        Pin::new(&mut connection).graceful_shutdown();
    };
    let mut wire = connection.into_parts().io.into_inner();
    if result.is_err_and(|error| error.is_parse()) {
        let _ = wire.stream.write_all(Wire::invalid().as_bytes()).await;
    }
    let _ = wire.stream.shutdown().await;
}

/// Returns once no request was open for [`KEEP_ALIVE`]. Never before the first request.
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
