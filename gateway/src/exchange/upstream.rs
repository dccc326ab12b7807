//! Connections to replicas: one request at a time, polled inline, kept for the next.
//!
//! hyper hands back a sender and a connection future. Spawning the latter would cost two more
//! wake-ups a request; kept beside the request and polled in the same `poll`, it costs none. Each
//! thread keeps its own idle connections: a socket is registered with the runtime that made it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body as _;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use crate::answer::failure::{Cause, Failure};
use crate::net::dial::{Dialed, dial};
use crate::net::share::{Place, UPSTREAMS};
use crate::text::rope::Pieces;

/// How often those are looked for that have been idle for too long.
const LOOK: Duration = Duration::from_secs(2);
/// vLLM's uvicorn closes an idle connection after exactly 5 s.
const IDLE: Duration = Duration::from_millis(4500);
const IDLE_PER_ENDPOINT: usize = 128;
/// A keep-alive gone stale shows at once. What breaks later broke while the replica worked.
const STALE_WITHIN: Duration = Duration::from_millis(50);

type Driver = http1::Connection<TokioIo<TcpStream>, Pieces>;

type Idle = HashMap<SocketAddr, Vec<(Instant, Connection)>>;

thread_local! {
    static POOL: RefCell<Idle> = RefCell::new(HashMap::new());
}

/// One connection with its driver. Dropping it closes the socket at once, which aborts at vLLM.
pub(crate) struct Connection {
    address: SocketAddr,
    sender: SendRequest<Pieces>,
    driver: Option<Pin<Box<Driver>>>,
    /// It has answered a request before: its failure may be a keep-alive gone stale.
    reused: bool,
    _place: Place,
}

/// A try that brought no response head.
#[derive(Debug)]
pub(crate) struct NoAnswer {
    pub(crate) failure: Failure,
    /// On a reused connection, at once: most likely not the endpoint's fault.
    pub(crate) stale: bool,
}

impl Connection {
    /// An idle connection, or a new one. What the gateway is short of is waited for until `deadline`.
    pub(crate) async fn get(
        address: SocketAddr,
        fresh: bool,
        connect_timeout: Duration,
        deadline: Instant,
    ) -> Result<Self, NoAnswer> {
        if !fresh && let Some(connection) = take_idle(address) {
            return Ok(connection);
        }
        let no_answer = |failure| NoAnswer { failure, stale: false };
        let Dialed { stream, place } =
            dial(address, connect_timeout, deadline).await.map_err(no_answer)?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| no_answer(Failure::new(Cause::Connect, error.to_string())))?;
        let driver = Some(Box::pin(driver));
        Ok(Self { address, sender, driver, reused: false, _place: place })
    }

    /// Sends a request and waits for the response's head.
    pub(crate) async fn send(
        mut self,
        request: Request<Pieces>,
    ) -> Result<Response<Answer>, NoAnswer> {
        let since = Instant::now();
        let mut response = std::pin::pin!(self.sender.send_request(request));
        let (driver, reused) = (&mut self.driver, self.reused);
        let outcome = poll_fn(|cx| {
            poll_driver(driver, cx);
            response.as_mut().poll(cx)
        })
        .await;
        match outcome {
            Ok(response) => Ok(response.map(|body| Answer { body, connection: Some(self) })),
            Err(error) => {
                let stale = reused && since.elapsed() < STALE_WITHIN;
                Err(NoAnswer { failure: broken(&error), stale })
            }
        }
    }

    /// Back to the idle ones, if it is ready for another request.
    fn keep(mut self) {
        poll_driver(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        if self.driver.is_none() || !self.sender.is_ready() || UPSTREAMS.is_scarce() {
            return;
        }
        self.reused = true;
        POOL.with_borrow_mut(|pool| {
            let now = Instant::now();
            drop_old(pool, now);
            let idle = pool.entry(self.address).or_default();
            if idle.len() < IDLE_PER_ENDPOINT {
                idle.push((now, self));
            }
        });
    }
}

/// Of every address: replicas come and go on ever other ports.
fn drop_old(pool: &mut Idle, now: Instant) {
    pool.retain(|_, idle| {
        // Oldest first, so what is too old is at the front.
        let old = idle.iter().take_while(|(since, _)| now - *since > IDLE).count();
        idle.drain(..old);
        !idle.is_empty()
    });
}

/// Closes this thread's connections that have been idle for too long, and all that are idle when
/// another request wants a place; for as long as it is polled.
pub(crate) async fn close_idle() -> Infallible {
    loop {
        tokio::select! {
            () = sleep(LOOK) => POOL.with_borrow_mut(|pool| drop_old(pool, Instant::now())),
            () = UPSTREAMS.wanted() => POOL.with_borrow_mut(HashMap::clear),
        }
    }
}

/// Ends in `None` once the connection is over, whose reason the sender or the body tells.
fn poll_driver(driver: &mut Option<Pin<Box<Driver>>>, cx: &mut Context<'_>) {
    if let Some(running) = driver
        && running.as_mut().poll(cx).is_ready()
    {
        *driver = None;
    }
}

/// Last in first out; one that the peer has closed, or on which it sent something unasked, is
/// found out by polling it once.
fn take_idle(address: SocketAddr) -> Option<Connection> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.get_mut(&address)?;
        while let Some((since, mut connection)) = idle.pop() {
            if since.elapsed() > IDLE {
                idle.clear();
                return None;
            }
            poll_driver(&mut connection.driver, &mut Context::from_waker(Waker::noop()));
            if connection.driver.is_some() && connection.sender.is_ready() {
                return Some(connection);
            }
        }
        None
    })
}

/// A response's body together with the connection that it comes on.
pub(crate) struct Answer {
    body: Incoming,
    connection: Option<Connection>,
}

impl Answer {
    /// The next bytes; `None` at the end. With the end, or with the last bytes where a length tells
    /// which those are, the connection goes back to the idle ones.
    pub(crate) fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Failure>>> {
        loop {
            let frame = if self.is_over() { None } else { ready!(self.poll_once(cx)) };
            let Some(frame) = frame else {
                self.keep();
                return Poll::Ready(None);
            };
            match frame.map(Frame::into_data) {
                Ok(Ok(data)) => {
                    if self.is_over() {
                        self.keep();
                    }
                    return Poll::Ready(Some(Ok(data)));
                }
                Ok(Err(_trailers)) => {}
                Err(error) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(broken(&error))));
                }
            }
        }
    }

    fn poll_once(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        // The driver first; and once more when the body has nothing, or a wake-up is lost: taking
        // from the body makes room for what the driver reads.
        for _ in 0..2 {
            if let Some(connection) = &mut self.connection {
                poll_driver(&mut connection.driver, cx);
            }
            if let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) {
                return Poll::Ready(frame);
            }
        }
        Poll::Pending
    }

    pub(crate) async fn data(&mut self) -> Option<Result<Bytes, Failure>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    fn keep(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.keep();
        }
    }

    /// Whether all has come, as a length tells before the end itself is seen. Chunks do not.
    pub(crate) fn is_over(&self) -> bool {
        self.body.is_end_stream()
    }

    pub(crate) fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What hyper says, with what caused it, which its own text leaves out.
fn broken(error: &hyper::Error) -> Failure {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    Failure::new(Cause::Connection, text)
}
