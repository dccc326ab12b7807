//! A request's way: read, route, hold, try, commit.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::{self, Answer, Step};
use crate::body::{self, Body};
use crate::drain::Drain;
use crate::fields;
use crate::models;
use crate::paths::Api;
use crate::pool::{End, Outcome, Pool, Slot, Ticket};
use crate::queue;
use crate::refusal::Refusal;
use crate::relay::{Committed, Record, Relay};
use crate::route::Routes;
use crate::socket::ClientSocket;
use crate::upstream::{self, Connection};

/// What every request needs.
pub(crate) struct Proxy {
    pub(crate) routes: Routes,
    pub(crate) limits: forebay_config::Limits,
    pub(crate) drain: Drain,
    /// Seconds since the epoch at the gateway's start.
    pub(crate) started: u64,
}

/// A request as it is sent, as often as needed.
struct Outgoing {
    api: Api,
    stream: bool,
    parts: http::request::Parts,
    body: Bytes,
}

/// A try that failed before anything went out to the client.
struct Retry {
    reason: String,
    /// Whether the endpoint is to blame.
    blame: bool,
}

impl Proxy {
    /// Answers one request, whatever it is.
    pub(crate) async fn serve(
        &self,
        request: Request<Incoming>,
        client: ClientSocket,
    ) -> Response<Body> {
        let anthropic = request.uri().path().starts_with("/v1/messages");
        match self.answer(request, client).await {
            Ok(response) => response,
            Err(refusal) => refusal.response(anthropic),
        }
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        client: ClientSocket,
    ) -> Result<Response<Body>, Refusal> {
        let path = request.uri().path();
        let get = matches!(*request.method(), Method::GET | Method::HEAD);
        let expect = |right: bool, allowed: &'static str| {
            if right {
                return Ok(());
            }
            let method = request.method().to_string();
            Err(Refusal::WrongMethod { path: path.to_owned(), method, allowed })
        };
        match path {
            "/health" | "/ping" => {
                expect(get, "GET")?;
                return Ok(Response::new(Body::full(Bytes::new())));
            }
            "/version" => {
                expect(get, "GET")?;
                return Ok(json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")})));
            }
            "/v1/models" => {
                expect(get, "GET")?;
                return Ok(json(&models::list(&self.routes, self.started)));
            }
            _ => {}
        }
        if let Some(name) = path.strip_prefix("/v1/models/") {
            expect(get, "GET")?;
            let unknown = || Refusal::UnknownModel {
                model: name.to_owned(),
                known: "see /v1/models".to_owned(),
            };
            return models::one(&self.routes, self.started, name)
                .map(|m| json(&m))
                .ok_or_else(unknown);
        }
        let api = Api::of(path).ok_or_else(|| Refusal::UnknownPath(path.to_owned()))?;
        expect(request.method() == Method::POST, "POST")?;
        self.infer(api, request, client).await
    }

    async fn infer(
        &self,
        api: Api,
        request: Request<Incoming>,
        client: ClientSocket,
    ) -> Result<Response<Body>, Refusal> {
        let started = Instant::now();
        if self.drain.has_begun() {
            return Err(Refusal::ShuttingDown);
        }
        let (parts, incoming) = request.into_parts();
        let limit = self.limits.body_size.bytes();
        let body = body::read(incoming, limit, self.limits.body_timeout).await?;
        let fields = fields::scan(&body).map_err(|reason| {
            Refusal::BadBody(format!("The request body is not valid JSON: {reason}."))
        })?;
        let pool = Arc::clone(self.routes.pool(fields.model.as_deref())?);
        let settings = &pool.settings;
        let deadline = started + settings.upstream.request_timeout;
        let mut ticket = Ticket::new(queue::Request {
            tenant: Arc::from("anonymous"),
            since: started,
            deadline,
            bytes: body.len() as u64,
            tokens: fields.estimated_tokens(body.len()),
        });
        let outgoing = Outgoing { api, stream: fields.stream, parts, body };
        let mut record = Record::begin(Arc::clone(&pool), started);
        let work = try_until_committed(&pool, &outgoing, &mut ticket, &mut record);
        let outcome = tokio::select! {
            // The answer first: it is there, whatever the socket says.
            biased;
            outcome = timeout_at(deadline, work) => outcome,
            () = client_left(client) => Ok(Err(Refusal::ClientLeft)),
        };
        match outcome.unwrap_or(Err(Refusal::TooLong(settings.upstream.request_timeout))) {
            Ok(tried) => Ok(respond(tried, record, &pool, deadline)),
            Err(refusal) => {
                let outcome = match refusal {
                    Refusal::ClientLeft => Outcome::ClientLeft,
                    Refusal::Exhausted { .. } | Refusal::TooLong(_) => Outcome::Failed,
                    _ => Outcome::Refused,
                };
                record.ended(outcome, answer::Usage::default());
                Err(refusal)
            }
        }
    }
}

/// Most answers come before this; only those that wait longer pay for a watch of their own.
const WATCH_AFTER: std::time::Duration = std::time::Duration::from_millis(20);

async fn client_left(client: ClientSocket) {
    tokio::time::sleep(WATCH_AFTER).await;
    client.closed().await;
}

/// A committed answer: head, and body as far as it is known.
struct Tried {
    head: http::response::Parts,
    slot: Slot,
    kind: Kind,
}

enum Kind {
    Whole(Bytes, answer::Usage),
    Relay(Box<Committed>),
}

async fn try_until_committed(
    pool: &Arc<Pool>,
    outgoing: &Outgoing,
    ticket: &mut Ticket,
    record: &mut Record,
) -> Result<Tried, Refusal> {
    let most = pool.settings.upstream.max_tries;
    loop {
        let slot = pool.hold(ticket).await?;
        record.released(ticket);
        match attempt(pool, outgoing, slot.address).await {
            Ok((head, kind)) => return Ok(Tried { head, slot, kind }),
            Err(Retry { reason, blame }) => {
                ticket.avoid.insert(slot.address);
                tracing::debug!(pool = %pool.name, endpoint = %slot.address, %reason, "try failed");
                slot.ended(if blame { End::Failed(reason.clone()) } else { End::Dropped });
                if record.tries >= most {
                    return Err(Refusal::Exhausted { tries: record.tries, last: reason });
                }
            }
        }
    }
}

/// One try at one endpoint, up to the point where something can go out to the client.
async fn attempt(
    pool: &Pool,
    outgoing: &Outgoing,
    address: std::net::SocketAddr,
) -> Result<(http::response::Parts, Kind), Retry> {
    let blame = |reason: String| Retry { reason, blame: true };
    let settings = &pool.settings.upstream;
    let stalled = || blame(format!("nothing came for {:?}", settings.stall_timeout));
    let mut fresh = false;
    let response = loop {
        let connection = Connection::get(address, fresh, settings.connect_timeout)
            .await
            .map_err(|failure| blame(failure.reason))?;
        let request = outgoing.request(address);
        // A stream's head comes at once. A plain answer's comes only when all of it is there, however
        // long that takes: the request's own time is its limit.
        let sent = async {
            if outgoing.stream {
                timeout(settings.stall_timeout, connection.send(request))
                    .await
                    .map_err(|_| stalled())
            } else {
                Ok(connection.send(request).await)
            }
        };
        match sent.await? {
            Ok(response) => break response,
            // A keep-alive gone stale: nobody's fault, and once is enough.
            Err(failure) if failure.stale && !fresh => fresh = true,
            Err(failure) => return Err(blame(failure.reason)),
        }
    };
    let (mut head, mut upstream) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    let streamed = head
        .headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    if streamed && head.status == StatusCode::OK {
        let (mut answer, mut out) = (Answer::new(outgoing.api), VecDeque::new());
        loop {
            let data =
                timeout(settings.stall_timeout, upstream.data()).await.map_err(|_| stalled())?;
            let bytes = match data {
                Some(Ok(bytes)) => bytes,
                Some(Err(reason)) => return Err(blame(reason)),
                None => return Err(blame("the stream ended before its first event".to_owned())),
            };
            let step = answer.feed(&bytes, Instant::now());
            out.push_back(bytes);
            match step {
                Step::Hold => {}
                Step::Pass | Step::Failed(_) => break,
                Step::Retry(reason) => return Err(blame(reason)),
            }
        }
        let committed = Committed { api: outgoing.api, out, upstream, answer: Some(answer) };
        return Ok((head, Kind::Relay(Box::new(committed))));
    }
    plain(head, upstream, outgoing, settings).await
}

/// A plain answer is kept back until it is complete, up to a bound, so that it can be retried.
async fn plain(
    head: http::response::Parts,
    mut upstream: upstream::Answer,
    outgoing: &Outgoing,
    settings: &forebay_config::Upstream,
) -> Result<(http::response::Parts, Kind), Retry> {
    let blame = |reason: String| Retry { reason, blame: true };
    let (mut out, mut size) = (VecDeque::new(), 0u64);
    let stall = settings.stall_timeout;
    let stalled = |_| blame(format!("nothing came for {stall:?}"));
    while let Some(data) = timeout(stall, upstream.data()).await.map_err(stalled)? {
        let bytes = data.map_err(blame)?;
        size += bytes.len() as u64;
        out.push_back(bytes);
        if size > settings.commit_size.bytes() {
            let committed = Committed { api: outgoing.api, out, upstream, answer: None };
            return Ok((head, Kind::Relay(Box::new(committed))));
        }
    }
    let body = match out.len() {
        1 => out.pop_front().unwrap_or_default(),
        _ => out.iter().flat_map(|bytes| bytes.iter().copied()).collect(),
    };
    let usage = answer::judge_plain(head.status.as_u16(), &body).map_err(blame)?;
    Ok((head, Kind::Whole(body, usage)))
}

fn respond(
    tried: Tried,
    mut record: Record,
    pool: &Arc<Pool>,
    deadline: Instant,
) -> Response<Body> {
    let Tried { mut head, mut slot, kind } = tried;
    let upstream = record.released.elapsed();
    let timing = format!(
        "hold;dur={:.1}, upstream;dur={:.1}",
        record.held.as_secs_f64() * 1e3,
        upstream.as_secs_f64() * 1e3,
    );
    if let Ok(timing) = HeaderValue::from_str(&timing) {
        head.headers.insert(HeaderName::from_static("server-timing"), timing);
    }
    let body = match kind {
        Kind::Whole(bytes, usage) => {
            record.first_token(Instant::now());
            slot.generated(usage.completion_tokens);
            slot.ended(End::Complete);
            record.ended(Outcome::Completed, usage);
            head.headers.remove(header::CONTENT_LENGTH);
            Body::full(bytes)
        }
        Kind::Relay(committed) => {
            let stall = pool.settings.upstream.stall_timeout;
            Body::Relay(Box::new(Relay::new(*committed, slot, record, stall, deadline)))
        }
    };
    Response::from_parts(head, body)
}

impl Outgoing {
    fn request(&self, address: std::net::SocketAddr) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.parts.method.clone();
        let path = self.parts.uri.path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Default::default, Into::into);
        let mut headers = self.parts.headers.clone();
        strip_hop_by_hop(&mut headers);
        // The body is here whole, so the length is ours to say; and nobody waits for a 100.
        headers.remove(header::CONTENT_LENGTH);
        headers.remove(header::EXPECT);
        if let Ok(host) = HeaderValue::from_str(&address.to_string()) {
            headers.insert(header::HOST, host);
        }
        *request.headers_mut() = headers;
        request
    }
}

/// Headers that speak of one connection only, with those that `connection` names.
fn strip_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named {
        headers.remove(name);
    }
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        HeaderName::from_static("keep-alive"),
        HeaderName::from_static("proxy-connection"),
    ] {
        headers.remove(name);
    }
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::full(value.to_string().into()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
