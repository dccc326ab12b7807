//! WebSocket sessions (`/v1/realtime`): held and given to an endpoint like any request, then bytes
//! both ways (`relay`) until either side closes.
//!
//! The model is known from the query, since nothing else is said before the upgrade. What is tried
//! again is the handshake alone. No extension is agreed on: compressed, a replica's messages could
//! not be metered (`usage`).

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use forebay_config::Limits;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::answer::api::ErrorShape;
use crate::answer::failure::{Cause, Failure};
use crate::answer::outcome::{Outcome, SHUTTING_DOWN};
use crate::answer::refusal::Refusal;
use crate::exchange::answer_body::Body;
use crate::exchange::answered_by::AnsweredBy;
use crate::exchange::ours::Ours;
use crate::exchange::outgoing::{Outgoing, Rights, strip_hop_by_hop};
use crate::exchange::proxy::{Proxy, client_left};
use crate::exchange::record::Record;
use crate::exchange::respond::refuse;
use crate::net::dial::{Dialed, dial};
use crate::net::share::Place;
use crate::pool::queue;
use crate::pool::{End, Pool, Slot, Ticket};
use crate::read::context::{Client, RequestContext};
use crate::read::scan::ScanError;
use crate::route::To;
use crate::text::rope::Pieces;

mod frames;
mod relay;
mod usage;

use relay::{Ended, relay};
use usage::Tally;

/// Longest refusal of a replica that is passed on.
const MAX_REFUSAL: usize = 64 << 10;
/// The query's member that names it.
const MODEL: &str = "model";

/// Sessions that go on where their connection's HTTP has ended, driven by its task.
#[derive(Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Vec<Session>>>);

type Session = Pin<Box<dyn Future<Output = ()> + Send>>;

impl Sessions {
    /// Drives what was begun to its end.
    pub(crate) async fn run(self) {
        loop {
            let Some(session) = self.0.lock().pop() else { return };
            session.await;
        }
    }
}

/// A client's wish to go on by WebSocket, taken before its head loses what speaks of the
/// connection.
pub(crate) struct Wish {
    upgrade: OnUpgrade,
}

impl Wish {
    /// `None` if the head is not that of a WebSocket's handshake.
    pub(crate) fn take(parts: &mut Parts) -> Option<Self> {
        let has = |name: HeaderName, word: &str| {
            let values = parts.headers.get_all(name).into_iter();
            let words = values.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
            words.into_iter().any(|it| it.trim().eq_ignore_ascii_case(word))
        };
        let valid = parts.version == Version::HTTP_11
            && parts.method == Method::GET
            && has(header::CONNECTION, "upgrade")
            && has(header::UPGRADE, "websocket")
            && has(header::SEC_WEBSOCKET_VERSION, "13")
            && parts.headers.contains_key(header::SEC_WEBSOCKET_KEY);
        let upgrade = parts.extensions.remove::<OnUpgrade>()?;
        valid.then_some(Self { upgrade })
    }
}

/// An endpoint's word on the handshake.
enum Shaken {
    Agreed(HeaderMap, Upgraded),
    /// Its own refusal, for the client.
    Refused(Response<Body>),
}

impl Proxy {
    /// Answers a handshake. The session goes to `sessions`.
    pub(crate) async fn session(
        &self,
        parts: Parts,
        wish: Option<Wish>,
        client: Client,
        limits: Arc<Limits>,
        sessions: &Sessions,
    ) -> Response<Body> {
        let mut record = Record::begin(RequestContext::new(&parts, client));
        let Some(wish) = wish else {
            return refuse(&Refusal::UpgradeRequired, record, ErrorShape::OpenAi);
        };
        let ending = self.drain.ending();
        let begun = tokio::select! {
            biased;
            begun = self.shake(parts, &mut record) => begun,
            () = client_left(client) => Err(Refusal::ClientLeft),
            () = ending.cancelled() => Err(Refusal::ShuttingDown),
        };
        let (shaken, place, mut slot) = match begun {
            Ok(begun) => begun,
            Err(refusal) => return refuse(&refusal, record, ErrorShape::OpenAi),
        };
        let address = slot.address;
        let (head, upstream) = match shaken {
            Shaken::Agreed(head, upstream) => (head, upstream),
            Shaken::Refused(response) => {
                slot.ended(End::Complete);
                record.committed(response.status().as_u16());
                record.ended(Outcome::ClientError, None);
                return response;
            }
        };
        let mut response = Response::new(Body::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *response.headers_mut() = head;
        response.extensions_mut().insert(AnsweredBy(address));
        record.committed(101);
        record.tell(response.headers_mut());
        slot.session_began();
        let drain = self.drain.clone();
        sessions.0.lock().push(Box::pin(async move {
            let _place = place;
            let Ok(client) = wish.upgrade.await else { return };
            let (client, upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            let (traffic, mut tally) = (record.carries(), Tally::default());
            let hear = |text: &[u8]| {
                slot.pulse(Instant::now());
                if tally.hear(text) {
                    record.tokens(tally.tokens(), None);
                }
            };
            let around = (&*limits, &drain, &*traffic);
            let ended = relay(client, upstream, around, hear, slot.given_up()).await;
            slot.generated(tally.tokens().generated);
            let (end, outcome, reason) = books(ended);
            slot.ended(end);
            record.ended(outcome, reason);
        }));
        response
    }

    /// Holds, picks, and asks endpoints until one has an answer.
    async fn shake(
        &self,
        mut parts: Parts,
        record: &mut Record,
    ) -> Result<(Shaken, Place, Slot), Refusal> {
        if self.drain.has_begun() {
            return Err(Refusal::ShuttingDown);
        }
        let tenant = self.tenants.of(&parts.headers)?;
        record.identified(&tenant);
        record.context.keyed = self.tenants.checks_keys();
        // One of its requests, for as long as it lasts. What tokens it takes is told on the way.
        record.admit()?;
        record.context.asks_for(model(parts.uri.query().unwrap_or_default())?)?;
        let to = self.way(record, &tenant, &parts.headers, b"")?.first;
        let model = to.known_name(record.context.model.as_deref()).map(str::to_owned);
        let To { pool, served } = to;
        if let Some(served) = &served {
            parts.uri = renamed(&parts.uri, served);
        }
        parts.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        let settings = pool.settings();
        let rights = Rights {
            priority: settings.allow_priority,
            keyed: record.context.keyed,
            authorization: pool.key.get(),
        };
        let ours = Ours { key: rights.key(), model };
        let outgoing = Outgoing::new(parts, Pieces::default(), rights);
        let accepted = record.context.accepted;
        let deadline = accepted + settings.upstream.request_timeout;
        let mut ticket = Ticket::new(queue::Request {
            tenant: Arc::clone(&record.context.tenant),
            class: tenant.class(),
            since: accepted,
            deadline,
            bytes: 0,
            tokens: 0,
            cost: 0,
            answer: 0,
        });
        ticket.model(served.as_deref().or(record.context.model.as_deref()));
        loop {
            let slot = pool.hold(&mut ticket).await?;
            record.released(&ticket, slot.address);
            let mut request = outgoing.to(slot.address).map(|_| Full::default());
            upgrade(request.headers_mut());
            let asked = async {
                tokio::select! {
                    biased;
                    shaken = ask(&pool, slot.address, request, &ours, deadline) => shaken,
                    failure = slot.evicted() => Err(failure),
                }
            };
            let asked = timeout_at(deadline, asked).await;
            let too_long = || Refusal::TooLong(settings.upstream.request_timeout);
            match asked.map_err(|_| too_long())? {
                Ok((shaken, place)) => return Ok((shaken, place, slot)),
                Err(failure) => {
                    let again = pool.try_again(&mut ticket, &slot, &failure);
                    slot.ended(End::of(failure));
                    again?;
                }
            }
        }
    }
}

/// What a session's end is to its endpoint, and to its client.
fn books(ended: Ended) -> (End, Outcome, Option<&'static str>) {
    let failed = |cause: Cause, message: &str| {
        (End::Failed(Failure::new(cause, message)), Outcome::Failed, Some(cause.name()))
    };
    match ended {
        Ended::Closed => (End::Complete, Outcome::Completed, None),
        Ended::Idle => (End::Complete, Outcome::Completed, Some("session_idle")),
        Ended::TooLong => (End::Complete, Outcome::Completed, Some("session_too_long")),
        Ended::Drained => (End::Complete, Outcome::Completed, Some(SHUTTING_DOWN)),
        Ended::CutOff => (End::Dropped, Outcome::Failed, Some(SHUTTING_DOWN)),
        Ended::Broken => failed(Cause::Connection, "The session ended without a close."),
        Ended::Lost => failed(Cause::Stalled, "The replica answers nothing, not even a probe."),
    }
}

/// The same address with another model in its query.
fn renamed(uri: &Uri, model: &str) -> Uri {
    let model = utf8_percent_encode(model, NON_ALPHANUMERIC);
    let pairs = uri.query().unwrap_or_default().split('&').map(|pair| match pair {
        pair if names_model(pair) => format!("{MODEL}={model}"),
        pair => pair.to_owned(),
    });
    let query: Vec<_> = pairs.collect();
    let text = format!("{}?{}", uri.path(), query.join("&"));
    text.parse().unwrap_or_else(|_| uri.clone())
}

fn names_model(pair: &str) -> bool {
    form_urlencoded::parse(pair.as_bytes()).any(|(name, _)| name == MODEL)
}

/// One handshake with one endpoint, on a connection of its own.
async fn ask(
    pool: &Pool,
    address: SocketAddr,
    request: Request<Full<Bytes>>,
    ours: &Ours,
    deadline: Instant,
) -> Result<(Shaken, Place), Failure> {
    let settings = pool.settings();
    let settings = &settings.upstream;
    let failed =
        |cause: Cause| move |error: &dyn std::fmt::Display| Failure::new(cause, error.to_string());
    let Dialed { stream, place } = dial(address, settings.connect_timeout, deadline).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(Cause::Connect)(&error))?;
    // Driven beside whatever is waited for, which tells of its end in its own way.
    let connection = async move {
        let _ = connection.with_upgrades().await;
        std::future::pending::<Infallible>().await
    };
    let mut connection = std::pin::pin!(connection);
    let sent = tokio::select! {
        sent = timeout(settings.stall_timeout, sender.send_request(request)) => sent,
        never = connection.as_mut() => match never {},
    };
    let mut response = sent
        .map_err(|_| failed(Cause::Stalled)(&"no answer in time"))?
        .map_err(|error| failed(Cause::Connection)(&error))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let upgrade = hyper::upgrade::on(&mut response);
        let mut agreed = response.headers().clone();
        strip_hop_by_hop(&mut agreed);
        self::upgrade(&mut agreed);
        let upgraded = tokio::select! {
            upgraded = upgrade => upgraded,
            never = connection => match never {},
        };
        let upgraded = upgraded.map_err(|error| failed(Cause::Connection)(&error))?;
        return Ok((Shaken::Agreed(agreed, upgraded), place));
    }
    if response.status().is_server_error() {
        let text = format!("the handshake was answered {}", response.status());
        return Err(Failure::of(response.status().as_u16(), text));
    }
    let refused = tokio::select! {
        refused = refused(response, ours) => refused,
        never = connection => match never {},
    };
    refused.map(|refused| (refused, place))
}

async fn refused(response: Response<Incoming>, ours: &Ours) -> Result<Shaken, Failure> {
    let (mut head, body) = response.into_parts();
    strip_hop_by_hop(&mut head.headers);
    head.headers.remove(header::CONTENT_LENGTH);
    let body = Limited::new(body, MAX_REFUSAL).collect().await;
    let body = body.map_err(|error| Failure::new(Cause::Connection, error.to_string()))?.to_bytes();
    match ours.failure(head.status, &body) {
        Some(failure) => Err(failure),
        None => Ok(Shaken::Refused(Response::from_parts(head, Body::full(body)))),
    }
}

/// What belongs to each of the two connections alone.
fn upgrade(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// `model` of a query. Two of them are an error: what is checked must be what the replica sees.
fn model(query: &str) -> Result<Option<String>, ScanError> {
    let mut named = form_urlencoded::parse(query.as_bytes()).filter(|(name, _)| name == MODEL);
    let model = named.next().map(|(_, value)| value.into_owned());
    if named.next().is_some() {
        return Err(ScanError::Duplicate(MODEL));
    }
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_alias_is_replaced_in_the_query_and_nothing_else() {
        let uri = Uri::from_static("/v1/realtime?a=1&model=gpt-4o&model_x=2");
        assert_eq!(renamed(&uri, "org/one"), "/v1/realtime?a=1&model=org%2Fone&model_x=2");
        let escaped = Uri::from_static("/v1/realtime?mod%65l=a");
        assert_eq!(renamed(&escaped, "b"), "/v1/realtime?model=b");
    }

    #[test]
    fn the_model_is_read_from_the_query() {
        for (query, want) in [
            ("", None),
            ("model=m", Some("m")),
            ("a=b&model=Qwen%2FQwen3&c", Some("Qwen/Qwen3")),
            ("model=a+b%20c", Some("a b c")),
            ("model=", Some("")),
            ("xmodel=m", None),
            ("mod%65l=m", Some("m")),
            // As vLLM's own reader takes them: no such model, and so a 404.
            ("model=%", Some("%")),
            ("model=%zz", Some("%zz")),
            ("model=%ff", Some("\u{fffd}")),
        ] {
            assert_eq!(model(query).expect("one at most").as_deref(), want, "{query}");
        }
        for query in ["model=a&model=b", "model=a&mod%65l=a", "model=&model="] {
            assert_eq!(model(query), Err(ScanError::Duplicate("model")), "{query}");
        }
    }
}
