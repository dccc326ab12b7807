//! A reply's head, in the real server's order, and its body.
//!
//! Order: date, server, what the handler adds, content-length, content-type, vary, x-request-id,
//! connection; hyper puts transfer-encoding last, as uvicorn does.

use crate::sim::api::events::EventBody;
use crate::sim::api::fault::Fault;
use crate::sim::metrics::stats::HttpAnswer;
use crate::sim::shared::Shared;
use crate::sim::wall;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::task::{Context, Poll};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

const JSON: &str = "application/json";

/// The reply of a handler.
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    /// Headers before content-length.
    early: Vec<(HeaderName, String)>,
    location: Option<String>,
    content_type: Option<&'static str>,
    varies: bool,
    content: Content,
}

enum Content {
    Whole(Bytes),
    Chunked(Box<EventBody>),
}

impl Reply {
    fn new(status: StatusCode, content_type: Option<&'static str>, content: Content) -> Self {
        Self { status, early: Vec::new(), location: None, content_type, varies: true, content }
    }

    pub(crate) fn json(body: impl Into<Bytes>) -> Self {
        Self::new(StatusCode::OK, Some(JSON), Content::Whole(body.into()))
    }

    /// A body, with its type if it has one.
    pub(crate) fn text(body: impl Into<Bytes>, content_type: Option<&'static str>) -> Self {
        Self::new(StatusCode::OK, content_type, Content::Whole(body.into()))
    }

    pub(crate) fn empty(status: StatusCode) -> Self {
        Self::new(status, None, Content::Whole(Bytes::new()))
    }

    pub(crate) fn events(body: EventBody) -> Self {
        let content_type = Some("text/event-stream; charset=utf-8");
        Self::new(StatusCode::OK, content_type, Content::Chunked(Box::new(body)))
    }

    pub(crate) fn chunked(body: EventBody, content_type: &'static str) -> Self {
        Self::new(StatusCode::OK, Some(content_type), Content::Chunked(Box::new(body)))
    }

    pub(crate) fn fault(fault: &Fault) -> Self {
        let body = fault.body();
        Self { varies: fault.varies(), ..Self::new(fault.status, Some(JSON), whole(body)) }
    }

    /// A failure in Anthropic's shape.
    pub(crate) fn anthropic(fault: &Fault) -> Self {
        Self::new(fault.status, Some(JSON), whole(fault.anthropic()))
    }

    pub(crate) fn not_allowed(allow: &str) -> Self {
        Self::fault(&Fault::method_not_allowed()).with(header::ALLOW, allow.into())
    }

    /// A redirect to the same path without its last slash.
    pub(crate) fn redirect(location: String) -> Self {
        let empty = Self::empty(StatusCode::TEMPORARY_REDIRECT);
        Self { location: Some(location), ..empty }
    }

    /// The reply to a preflight of a foreign page: no origin is allowed by default.
    pub(crate) fn foreign_origin() -> Self {
        let content = Content::Whole(Bytes::from_static(b"Disallowed CORS origin"));
        let reply = Self::new(StatusCode::BAD_REQUEST, Some("text/plain; charset=utf-8"), content);
        Self { varies: false, ..reply }
            .with(
                header::VARY,
                "Origin, Access-Control-Request-Method, Access-Control-Request-Headers, \
                 Access-Control-Request-Private-Network"
                    .into(),
            )
            .with(
                header::ACCESS_CONTROL_ALLOW_METHODS,
                "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT, QUERY".into(),
            )
            .with(header::ACCESS_CONTROL_MAX_AGE, "600".into())
    }

    /// The reply that makes a connection a WebSocket.
    pub(crate) fn websocket(key: &str, done: OpenRequest) -> Response<Body> {
        let accept = derive_accept_key(key.as_bytes());
        let mut response = Response::new(Body { content: BodyPart::Whole(None), _done: done });
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let date = wall::http_date(wall::now());
        for (name, value) in [
            (header::UPGRADE, "websocket"),
            (header::CONNECTION, "Upgrade"),
            (header::SEC_WEBSOCKET_ACCEPT, &accept),
            (header::DATE, &date),
            (header::SERVER, "uvicorn"),
        ] {
            if let Ok(value) = HeaderValue::from_str(value) {
                response.headers_mut().append(name, value);
            }
        }
        response
    }

    /// One more header, before content-length.
    pub(crate) fn with(mut self, name: HeaderName, value: String) -> Self {
        self.early.push((name, value));
        self
    }

    /// The length of the body; 0 for a stream.
    pub(crate) fn length(&self) -> u64 {
        match &self.content {
            Content::Whole(body) => body.len() as u64,
            Content::Chunked(_) => 0,
        }
    }

    /// The whole response.
    pub(crate) fn into_response(
        self,
        request_id: Option<HeaderValue>,
        close: bool,
        done: OpenRequest,
    ) -> Response<Body> {
        let mut headers = hyper::HeaderMap::with_capacity(12);
        let mut put = |name: HeaderName, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.append(name, value);
            }
        };
        put(header::DATE, &wall::http_date(wall::now()));
        put(header::SERVER, "uvicorn");
        for (name, value) in &self.early {
            put(name.clone(), value);
        }
        if matches!(self.content, Content::Whole(_)) {
            put(header::CONTENT_LENGTH, &self.length().to_string());
        }
        if let Some(content_type) = self.content_type {
            put(header::CONTENT_TYPE, content_type);
        }
        if let Some(location) = &self.location {
            put(header::LOCATION, location);
        }
        if self.varies {
            put(header::VARY, "Origin");
        }
        if let Some(id) = request_id {
            headers.append("x-request-id", id);
        }
        if close {
            headers.append(header::CONNECTION, HeaderValue::from_static("close"));
        }
        let content = match self.content {
            // hyper gets an empty body too: without one it would move content-length to the end.
            Content::Whole(body) => BodyPart::Whole(Some(body)),
            Content::Chunked(body) => BodyPart::Chunked(body),
        };
        let mut response = Response::new(Body { content, _done: done });
        *response.status_mut() = self.status;
        *response.headers_mut() = headers;
        response
    }
}

fn whole(body: String) -> Content {
    Content::Whole(body.into())
}

enum BodyPart {
    Whole(Option<Bytes>),
    Chunked(Box<EventBody>),
}

/// A response's body. Its request is open until it is dropped.
pub(crate) struct Body {
    content: BodyPart,
    _done: OpenRequest,
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let next = match &mut self.content {
            BodyPart::Whole(body) => Poll::Ready(body.take()),
            BodyPart::Chunked(body) => body.poll_next(cx),
        };
        next.map(|bytes| bytes.map(|bytes| Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, BodyPart::Whole(None))
    }
}

/// The state of a connection that its task and its requests share.
#[derive(Debug)]
pub(crate) struct ConnState {
    /// The time since which no request is open; `None` while one is, and before the first.
    pub(crate) idle_since: watch::Sender<Option<Instant>>,
    /// The client spoke HTTP/1.0.
    pub(crate) http10: AtomicBool,
    /// The connection is a WebSocket from the reply on.
    pub(crate) upgraded: AtomicBool,
}

impl ConnState {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            idle_since: watch::Sender::new(None),
            http10: AtomicBool::new(false),
            upgraded: AtomicBool::new(false),
        })
    }
}

/// One open request. Dropping it, on whatever path, counts the request's end.
#[must_use = "dropping it ends the request's accounting"]
pub(crate) struct OpenRequest {
    shared: Arc<Shared>,
    conn: Arc<ConnState>,
    begun: Instant,
    answered: Option<HttpAnswer>,
    loads: bool,
}

impl OpenRequest {
    pub(crate) fn begin(shared: &Arc<Shared>, conn: &Arc<ConnState>) -> Self {
        conn.idle_since.send_replace(None);
        Self {
            shared: Arc::clone(shared),
            conn: Arc::clone(conn),
            begun: Instant::now(),
            answered: None,
            loads: false,
        }
    }

    /// Counts the request in /load while it is open.
    pub(crate) fn load(&mut self) {
        self.loads = true;
        self.shared.load.fetch_add(1, Relaxed);
    }

    pub(crate) fn answered(&mut self, answered: HttpAnswer) {
        self.answered = Some(answered);
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        if self.loads {
            self.shared.load.fetch_sub(1, Relaxed);
        }
        if let Some(answered) = &self.answered {
            self.shared.answered(answered, self.begun.elapsed());
        }
        self.conn.idle_since.send_replace(Some(Instant::now()));
    }
}
