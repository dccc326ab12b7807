//! A server for tests: it answers as the request's path asks for, and notes what it has read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, DuplexStream, ReadBuf, duplex};
use tokio::time::Instant;

use super::{Http1, Http1Settings};
use crate::net::activity::Activity;
use crate::wire::lines::{BringsLines, HeaderLines};
use crate::wire::request::HeadLimits;

/// A request as the server has read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SeenRequest {
    pub(crate) head: String,
    pub(crate) method: Method,
    pub(crate) path: String,
    /// Its body; `None` if its end could not be found.
    pub(crate) body: Option<Vec<u8>>,
}

/// Everything that becomes of some bytes of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Course {
    pub(crate) seen: Vec<SeenRequest>,
    /// The bytes that the client gets.
    pub(crate) out: Vec<u8>,
    /// Whether the connection goes on.
    pub(crate) open: bool,
}

pub(crate) type SeenRequests = Arc<Mutex<Vec<SeenRequest>>>;

/// The body of an answer, frame by frame.
pub(crate) struct EchoBody {
    frames: VecDeque<Bytes>,
    sized: bool,
    breaks: bool,
}

impl EchoBody {
    fn new(frames: &[&[u8]], sized: bool) -> Self {
        let frames = frames.iter().map(|frame| Bytes::copy_from_slice(frame)).collect();
        Self { frames, sized, breaks: false }
    }
}

impl BringsLines for EchoBody {
    fn take_lines(&mut self) -> HeaderLines {
        HeaderLines::default()
    }
}

impl Body for EchoBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Ready(match self.frames.pop_front() {
            Some(data) => Some(Ok(Frame::data(data))),
            None => self.breaks.then(|| Err("it broke".into())),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.frames.is_empty() && !self.breaks
    }

    fn size_hint(&self) -> SizeHint {
        match self.sized {
            true => SizeHint::with_exact(self.frames.iter().map(|frame| frame.len() as u64).sum()),
            false => SizeHint::new(),
        }
    }
}

/// Answers one request, by its path.
pub(crate) async fn answer<B>(
    request: Request<B>,
    all: SeenRequests,
) -> Result<Response<EchoBody>, Infallible>
where
    B: Body<Data = Bytes> + Unpin,
{
    let (head, mut body) = request.into_parts();
    let headers: Vec<(&HeaderName, &HeaderValue)> = head.headers.iter().collect();
    let path = head.uri.path().to_owned();
    let mut seen = SeenRequest {
        head: format!("{} {:?} {:?} {headers:?}", head.method, head.uri, head.version),
        method: head.method.clone(),
        path: path.clone(),
        body: Some(Vec::new()),
    };
    if path != "/unread" {
        while let (Some(frame), Some(read)) = (body.frame().await, &mut seen.body) {
            match frame.map(Frame::into_data) {
                Ok(data) => read.extend(data.unwrap_or_default()),
                Err(_) => seen.body = None,
            }
        }
    }
    drop(body);
    let read = seen.body.as_ref().map(Vec::len);
    all.lock().push(seen);
    let Some(read) = read else {
        let mut response = Response::new(EchoBody::new(&[b"half a body"], true));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    };
    if path == "/held" {
        std::future::pending::<()>().await;
    }
    let text = format!("{read} bytes");
    let long = [b'x'; 5000];
    let mut response = Response::new(match &*path {
        "/stream" => EchoBody::new(&[text.as_bytes(), b"", b"event", &long, b"end"], false),
        "/sized" => EchoBody::new(&[text.as_bytes(), &long, b"end"], true),
        "/empty" => EchoBody::new(&[], true),
        "/broken" => EchoBody { breaks: true, ..EchoBody::new(&[text.as_bytes()], false) },
        _ => EchoBody::new(&[text.as_bytes()], true),
    });
    let status = path.strip_prefix("/status/").and_then(|status| status.parse().ok());
    if let Some(status @ (200 | 204 | 304 | 404 | 503)) = status {
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    }
    let name = match &*path {
        "/close" => Some(("connection", "close")),
        "/connection" => Some(("connection", "x-a, Close")),
        "/date" => Some(("date", "long ago")),
        "/length" => Some(("content-length", "7")),
        _ => None,
    };
    if let Some((name, value)) = name {
        let name = HeaderName::from_static(name);
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    if head.method == Method::HEAD || path == "/length" {
        response.body_mut().frames = [Bytes::from_static(b"7 bytes")].into();
        if head.method == Method::HEAD {
            response.body_mut().frames.clear();
        }
    }
    Ok(response)
}

/// The course of a connection that gets these pieces, one after the other, and at last its client's
/// end if the client closes. `begin` makes the server's future.
pub(crate) fn course<F, E>(
    pieces: &[&[u8]],
    closes: bool,
    begin: impl FnOnce(DuplexStream, SeenRequests) -> F,
) -> Course
where
    F: Future<Output = Result<(), E>>,
{
    /// Enough for each step that one piece causes.
    const POLLS: usize = 40;
    let cx = &mut Context::from_waker(Waker::noop());
    let (near, mut far) = duplex(4 << 20);
    let seen = SeenRequests::default();
    let mut server = Some(Box::pin(begin(near, Arc::clone(&seen))));
    let mut out = Vec::new();
    let turns = pieces.iter().map(Some).chain([None]);
    for piece in turns {
        match piece {
            Some(piece) => {
                let _ = pin!(far.write_all(piece)).poll(cx);
            }
            None if closes => {
                let _ = Pin::new(&mut far).poll_shutdown(cx);
            }
            None => {}
        }
        for _ in 0..POLLS {
            if let Some(running) = &mut server
                && running.as_mut().poll(cx).is_ready()
            {
                server = None;
            }
        }
        while let Ok(read) = read(&mut far, cx)
            && !read.is_empty()
        {
            out.extend(read);
        }
    }
    let seen = seen.lock().clone();
    Course { seen, out, open: server.is_some() }
}

fn read(far: &mut DuplexStream, cx: &mut Context<'_>) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 64 << 10];
    let mut buffer = ReadBuf::new(&mut bytes);
    match Pin::new(far).poll_read(cx, &mut buffer) {
        Poll::Ready(read) => read.map(|()| buffer.filled().to_vec()),
        Poll::Pending => Ok(Vec::new()),
    }
}

/// The course of a connection that this room serves.
pub(crate) fn ours(pieces: &[&[u8]], closes: bool, limits: HeadLimits, watches: bool) -> Course {
    course(pieces, closes, |io, seen| {
        let settings = Http1Settings { limits, watches };
        let activity = Activity::new(Instant::now(), true);
        let serve = move |request| answer(request, Arc::clone(&seen));
        let mut connection = Http1::new(io, Bytes::new(), settings, activity, serve);
        std::future::poll_fn(move |cx| connection.poll(cx))
    })
}
