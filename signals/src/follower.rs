//! Reads a feed until dropped: connects, applies changes, notices gaps, reconnects.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use forebay_base::backoff::{Backoff, Spread};
use forebay_base::dial::{DialError, dial};
use forebay_base::http1::{self, DrivenBody};
use futures_util::{Stream, stream};
use http::{Request, Response, Uri, header};
use http_body_util::{BodyExt, Collected, Empty, Limited};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::feed::{Delta, Frame, View};
use crate::token::Token;

/// Time without an event after which a feed counts as lost. A sender writes at least once a second.
pub const SILENCE: Duration = Duration::from_secs(5);
const CONNECT: Duration = Duration::from_secs(2);
/// A snapshot of a thousand pools fits many times.
const MAX_EVENT: usize = 64 << 20;
/// Bytes to read of a refusal.
const MAX_REFUSAL: usize = 4 << 10;
const BACKOFF: Backoff =
    Backoff::new(Duration::from_millis(50), Duration::from_secs(1), Spread::Below);

/// An event of a feed that is read.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// A snapshot came, or a change.
    Update {
        /// The sender's present state.
        view: Arc<View<P>>,
        /// The pools that this event touched.
        touched: Vec<String>,
    },
    /// The sender left in good order: its figures no longer count.
    Goodbye,
    /// The connection is down, with the reason; it is tried again with back-off.
    Lost {
        /// For the log.
        error: String,
    },
    /// The connection is down, and can't be made because this process is short of a resource. That says
    /// nothing about the sender; it is tried again with back-off.
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
        failed: false,
        backoff: BACKOFF,
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
    body: Option<DrivenBody<Empty<Bytes>>>,
    buffer: BytesMut,
    state: Option<Arc<View<P>>>,
    /// The last try failed: pause before the next.
    failed: bool,
    backoff: Backoff,
    queue: VecDeque<Event<P>>,
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
                self.failed = true;
                self.queue.push_back(match error {
                    Fault::Lost(error) => Event::Lost { error },
                    Fault::Short(error) => Event::Short { error },
                });
            }
        }
    }

    /// One step: connects, or reads once and queues the events that are complete.
    async fn advance(&mut self) -> Result<(), Fault> {
        let Some(body) = &mut self.body else {
            if self.failed {
                self.backoff.pause().await;
            }
            self.body = Some(connect(&self.url, self.token.as_ref()).await?);
            return Ok(());
        };
        let frame = timeout(SILENCE, body.frame())
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
        self.backoff.reset();
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
}

async fn connect(url: &str, token: Option<&Token>) -> Result<DrivenBody<Empty<Bytes>>, Fault> {
    let uri: Uri = url.parse().map_err(|error| format!("{url}: {error}"))?;
    let authority = uri.authority().ok_or_else(|| format!("{url}: no host"))?;
    let address = format!("{}:{}", authority.host(), authority.port_u16().unwrap_or(80));
    let stream = dial(address, CONNECT).await.map_err(|error| match error {
        DialError::Shortage { .. } => Fault::Short(error.to_string()),
        error => Fault::Lost(error.to_string()),
    })?;
    let mut request = Request::get(uri.path())
        .header(header::HOST, authority.as_str())
        .header(header::ACCEPT, "text/event-stream");
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", token.current()));
    }
    let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
    let response = timeout(CONNECT, http1::send(stream, request))
        .await
        .map_err(|_| format!("no answer within {} s", CONNECT.as_secs()))?
        .map_err(|error| error.to_string())?;
    if !response.status().is_success() {
        return Err(Fault::Lost(refusal(response).await));
    }
    Ok(response.into_body())
}

/// The status of a refusal, with the words in its body.
async fn refusal(response: Response<DrivenBody<Empty<Bytes>>>) -> String {
    let (head, body) = response.into_parts();
    let body = timeout(CONNECT, Limited::new(body, MAX_REFUSAL).collect()).await;
    let body = body.ok().and_then(Result::ok).map(Collected::to_bytes).unwrap_or_default();
    match String::from_utf8_lossy(&body).trim() {
        "" => format!("answered {}", head.status),
        words => format!("answered {}: {words}", head.status),
    }
}
