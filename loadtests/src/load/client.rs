//! HTTP/1.1 connections to the endpoint, kept and reused, each polled by the request that uses it.
//!
//! A connection is kept only after the whole answer. An idle one is not polled; the next request
//! checks once whether the endpoint has closed it.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::time::Instant;
use tower::ServiceExt;

/// Less than the 5 s after which vLLM closes an idle connection.
const IDLE: Duration = Duration::from_secs(4);

type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>>>>;

/// A connection and what drives it.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    /// `None` once it has ended.
    driver: Option<Driver>,
    idle_since: Instant,
    /// Whether it has carried an answer before.
    used: bool,
}

/// A request without its body.
#[derive(Clone, Debug)]
pub(crate) struct Head {
    pub(crate) method: Method,
    /// The path, and nothing before it.
    pub(crate) path: Uri,
    pub(crate) headers: HeaderMap,
}

impl Head {
    fn with(&self, body: &Bytes) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.path.clone();
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// Failures before an answer's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SendFailure {
    /// No connection could be made.
    Connect,
    /// The connection ended, or the answer was not HTTP.
    Connection,
}

/// Sends requests to one endpoint.
pub(crate) struct Client {
    uri: Uri,
    connector: HttpsConnector<HttpConnector>,
    keep_alive: bool,
    /// The connection that was used last is used next.
    idle: RefCell<Vec<Connection>>,
}

impl Client {
    /// # Errors
    /// The system has no certificates to check an `https` endpoint by.
    pub(crate) fn new(uri: Uri, keep_alive: bool) -> anyhow::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let builder = if uri.scheme() == Some(&http::uri::Scheme::HTTPS) {
            builder
                .with_provider_and_native_roots(provider)
                .context("cannot read the system's certificates")?
        } else {
            // Never used; reading the system's certificates takes a while.
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config)
        };
        let mut http = HttpConnector::new();
        http.set_nodelay(true);
        http.enforce_http(false);
        let connector = builder.https_or_http().enable_http1().wrap_connector(http);
        Ok(Self { uri, connector, keep_alive, idle: RefCell::default() })
    }

    /// Sends a request and waits for the answer's head. A kept connection that turns out to be
    /// closed is replaced by a new one.
    pub(crate) async fn send(
        &self,
        head: &Head,
        body: &Bytes,
    ) -> Result<(Connection, Response<Incoming>), SendFailure> {
        loop {
            let mut connection = match self.take_idle() {
                Some(connection) => connection,
                None => self.dial().await.map_err(|_| SendFailure::Connect)?,
            };
            match connection.send(head.with(body)).await {
                Ok(response) => return Ok((connection, response)),
                Err(_) if connection.used => {}
                Err(_) => return Err(SendFailure::Connection),
            }
        }
    }

    fn take_idle(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle.borrow_mut().pop()?;
            let fresh = connection.idle_since.elapsed() < IDLE;
            if fresh && connection.is_open() {
                return Some(connection);
            }
        }
    }

    async fn dial(&self) -> anyhow::Result<Connection> {
        let stream = self.connector.clone().oneshot(self.uri.clone()).await;
        let stream = stream.map_err(|error| anyhow::anyhow!(error))?;
        let (sender, driver) = http1::handshake(stream).await?;
        let driver: Driver = Box::pin(driver);
        Ok(Connection { sender, driver: Some(driver), idle_since: Instant::now(), used: false })
    }

    /// Keeps the connection of an answer that was read to its end.
    pub(crate) fn keep(&self, mut connection: Connection) {
        if self.keep_alive && connection.is_open() {
            connection.used = true;
            connection.idle_since = Instant::now();
            self.idle.borrow_mut().push(connection);
        }
    }
}

impl Connection {
    async fn send(&mut self, request: Request<Full<Bytes>>) -> hyper::Result<Response<Incoming>> {
        let response = self.sender.send_request(request);
        drive(&mut self.driver, response).await
    }

    /// The next data of the answer's body; `None` at its end.
    pub(crate) async fn data(&mut self, body: &mut Incoming) -> Option<hyper::Result<Bytes>> {
        loop {
            match drive(&mut self.driver, body.frame()).await? {
                Ok(frame) => {
                    if let Ok(data) = frame.into_data() {
                        return Some(Ok(data));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Whether it can carry a request, as far as can be seen without waiting.
    fn is_open(&mut self) -> bool {
        let mut context = TaskContext::from_waker(Waker::noop());
        poll_driver(&mut self.driver, &mut context);
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Runs `future` and, in the same task, the connection that it waits for.
async fn drive<T>(driver: &mut Option<Driver>, future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    poll_fn(|context| {
        poll_driver(driver, context);
        if let Poll::Ready(output) = future.as_mut().poll(context) {
            return Poll::Ready(output);
        }
        // The future may have handed the connection something to do.
        poll_driver(driver, context);
        future.as_mut().poll(context)
    })
    .await
}

fn poll_driver(driver: &mut Option<Driver>, context: &mut TaskContext<'_>) {
    if driver.as_mut().is_some_and(|driver| driver.as_mut().poll(context).is_ready()) {
        *driver = None;
    }
}
