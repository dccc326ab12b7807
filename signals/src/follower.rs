//! Reads a feed for as long as it is wanted: connects, applies, notices gaps, reconnects.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use forebay_system::Resource;
use futures_util::{Stream, stream};
use http::{Request, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::feed::{Delta, Frame, View};
use crate::token::Token;

/// A sender writes at least once a second; one that is silent for so long is not there.
const SILENCE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(2);
/// A snapshot of a thousand pools fits many times.
const MAX_EVENT: usize = 64 << 20;
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(1));

/// What a feed tells its reader.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// A snapshot came, or a change.
    Update {
        /// All that is known of the sender now.
        view: Arc<View<P>>,
        /// The pools that this event touched.
        touched: Vec<String>,
    },
    /// The sender left in good order: nothing of it counts any more.
    Goodbye,
    /// The connection is down, with the reason; it is tried again with back-off.
    Lost {
        /// For the log.
        error: String,
    },
    /// The connection is down and can't be made for want of something of this process's own, which
    /// says nothing about the sender; it is tried again with back-off.
    Short {
        /// For the log.
        error: String,
    },
}

/// Why a feed can't be read just now.
#[derive(Debug)]
enum Fault {
    Lost(String),
    Short(String),
}

impl From<String> for Fault {
    fn from(error: String) -> Self {
        Self::Lost(error)
    }
}

/// A feed being read. Dropping it closes the connection.
pub type Feed<P> = Pin<Box<dyn Stream<Item = Event<P>> + Send>>;

/// Reads the feed at `url` (`http://host:port/path`), sending `token` as a bearer. Never ends.
pub fn follow<P>(url: String, token: Option<Token>) -> Feed<P>
where
    P: Delta + DeserializeOwned + Send + Sync + 'static,
{
    let reader = Reader::<P> {
        url,
        token,
        body: None,
        buffer: BytesMut::new(),
        state: None,
        failures: 0,
        queue: VecDeque::new(),
    };
    Box::pin(stream::unfold(reader, |mut reader| async move {
        let event = reader.next().await;
        Some((event, reader))
    }))
}

struct Reader<P> {
    url: String,
    token: Option<Token>,
    body: Option<Connection>,
    buffer: BytesMut,
    state: Option<Arc<View<P>>>,
    failures: u32,
    queue: VecDeque<Event<P>>,
}

/// A response body with the task that drives its connection, ended together.
struct Connection {
    body: Incoming,
    driver: tokio::task::JoinHandle<()>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl<P: Delta + DeserializeOwned> Reader<P> {
    async fn next(&mut self) -> Event<P> {
        loop {
            if let Some(event) = self.queue.pop_front() {
                return event;
            }
            if let Err(error) = self.advance().await {
                self.body = None;
                self.state = None;
                self.buffer.clear();
                self.failures = self.failures.saturating_add(1);
                self.queue.push_back(match error {
                    Fault::Lost(error) => Event::Lost { error },
                    Fault::Short(error) => Event::Short { error },
                });
            }
        }
    }

    /// One step: connects, or reads once and queues the events that are complete.
    async fn advance(&mut self) -> Result<(), Fault> {
        let Some(connection) = &mut self.body else {
            if self.failures > 0 {
                tokio::time::sleep(self.backoff()).await;
            }
            self.body = Some(connect(&self.url, self.token.as_ref()).await?);
            return Ok(());
        };
        let frame = timeout(SILENCE, connection.body.frame())
            .await
            .map_err(|_| format!("silent for {} s", SILENCE.as_secs()))?
            .ok_or_else(|| "the stream ended".to_owned())?
            .map_err(|error| error.to_string())?;
        if let Ok(data) = frame.into_data() {
            self.buffer.extend_from_slice(&data);
        }
        while let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\n\n") {
            let event = self.buffer.split_to(end);
            self.buffer.advance(2);
            self.event(&event)?;
        }
        if self.buffer.len() > MAX_EVENT {
            return Err(format!("an event is larger than {MAX_EVENT} bytes").into());
        }
        Ok(())
    }

    fn event(&mut self, event: &[u8]) -> Result<(), String> {
        let Some(json) = event.strip_prefix(b"data: ") else { return Ok(()) };
        let frame: Frame<P> = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        self.failures = 0;
        if frame.goodbye {
            self.queue.push_back(Event::Goodbye);
            return Ok(());
        }
        let touched = match &mut self.state {
            None => {
                let view = View::begin(frame).map_err(|gap| gap.to_string())?;
                let touched = view.pools.keys().cloned().collect();
                self.state = Some(Arc::new(view));
                touched
            }
            // The view is copied only while an earlier one is still being read.
            Some(view) => Arc::make_mut(view).apply(frame).map_err(|gap| gap.to_string())?,
        };
        let view = self.state.clone().expect("set just above");
        self.queue.push_back(Event::Update { view, touched });
        Ok(())
    }

    fn backoff(&self) -> Duration {
        let (first, most) = BACKOFF;
        let doubled = first * 2u32.saturating_pow(self.failures.saturating_sub(1).min(10));
        doubled.min(most).mul_f64(rand::rng().random_range(0.5..1.0))
    }
}

async fn connect(url: &str, token: Option<&Token>) -> Result<Connection, Fault> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let authority = uri.authority().ok_or_else(|| format!("{url}: no host"))?.clone();
    let address = (authority.host().trim_matches(['[', ']']), authority.port_u16().unwrap_or(80));
    let stream = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| format!("no connection within {} s", CONNECT.as_secs()))?
        .map_err(|error| match Resource::of(&error) {
            Some(resource) => {
                forebay_system::report(resource, &format_args!("cannot connect to {url}: {error}"));
                Fault::Short(error.to_string())
            }
            None => Fault::Lost(error.to_string()),
        })?;
    stream.set_nodelay(true).map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let driver = tokio::spawn(async move {
        // Its error reaches the reader through the body.
        let _ = connection.await;
    });
    let mut request = Request::get(uri.path())
        .header(header::HOST, authority.as_str())
        .header(header::ACCEPT, "text/event-stream");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.current()));
    }
    let request = request.body(Empty::<bytes::Bytes>::new()).map_err(|error| error.to_string())?;
    let response = timeout(CONNECT, sender.send_request(request)).await;
    // From here on the task is aborted with the connection, also on the way out.
    let response = match response {
        Ok(Ok(response)) if response.status().is_success() => response,
        other => {
            driver.abort();
            return Err(Fault::Lost(match other {
                Ok(Ok(response)) => format!("answered {}", response.status()),
                Ok(Err(error)) => error.to_string(),
                Err(_) => format!("no answer within {} s", CONNECT.as_secs()),
            }));
        }
    };
    Ok(Connection { body: response.into_body(), driver })
}
