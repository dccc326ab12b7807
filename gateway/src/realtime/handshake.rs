//! The WebSocket handshake: the client's, and the one with a replica.
//!
//! A handshake is a kind of request: it is held and tried again like any other. The model's name
//! comes from the query, since a client sends nothing else before the upgrade. The gateway agrees
//! to no extension: it could not read the token counts of compressed messages (`usage`).

use std::convert::Infallible;
use std::error::Error;
use std::fmt::Display;
use std::io;

use bytes::Bytes;
use forebay_scheduling::prompt::Prompt;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::time::timeout;

use crate::answer::failure::{Cause, Failure};
use crate::answer::not_continued::NotContinued;
use crate::exchange::attempt::{AnswerStart, Committed};
use crate::exchange::dispatch::{Delivery, EditedRequest, RequestKind};
use crate::exchange::misfit::MisfitCheck;
use crate::exchange::outgoing::OutgoingHead;
use crate::net::dial::{NewConnection, dial};
use crate::net::file_shares::FilePermit;
use crate::net::upgrade::OnUpgrade;
use crate::pool::Slot;
use crate::read::head::ClientHead;
use crate::read::known_headers::{is_for_client, strip_hop_by_hop};
use crate::read::prompt::Owner;
use crate::read::scan::ScanError;
use crate::route::Destination;
use crate::text::rope::Rope;
use crate::wire::head::ResponseHead;

/// The longest refusal of a replica that is passed on.
const MAX_REFUSAL: usize = 64 << 10;
/// The query's member that names the model.
const MODEL: &str = "model";

/// A client's request for an upgrade. It must be taken from the head before the headers about the
/// connection are removed.
pub(crate) struct UpgradeRequest(pub(super) OnUpgrade);

impl UpgradeRequest {
    /// `None` if the head is not that of a WebSocket handshake.
    pub(crate) fn take(parts: &mut Parts) -> Option<Self> {
        let has = |name: HeaderName, token: &str| {
            let values = parts.headers.get_all(name).into_iter();
            let values = values.filter_map(|value| value.to_str().ok());
            let mut tokens = values.flat_map(|value| value.split(','));
            tokens.any(|found| found.trim().eq_ignore_ascii_case(token))
        };
        let valid = parts.version == Version::HTTP_11
            && parts.method == Method::GET
            && has(header::CONNECTION, "upgrade")
            && has(header::UPGRADE, "websocket")
            && has(header::SEC_WEBSOCKET_VERSION, "13")
            && parts.headers.contains_key(header::SEC_WEBSOCKET_KEY);
        let upgrade = parts.extensions.remove::<OnUpgrade>()?;
        valid.then_some(Self(upgrade))
    }
}

/// A handshake to be sent to replicas.
pub(super) struct Handshake {
    pub(super) head: Box<ClientHead>,
}

/// A replica's answer to a handshake.
pub(super) enum HandshakeAnswer {
    /// The headers for the client, the replica's side of the session, and its file permit.
    Agreed(HeaderMap, Upgraded, FilePermit),
    /// The replica's own refusal, for the client.
    Refused(Box<Committed>),
}

impl RequestKind for Handshake {
    type Answer = HandshakeAnswer;

    fn shows_engine(&self) -> bool {
        true
    }

    fn edited(&self, to: &Destination, _: &forebay_config::Pool) -> EditedRequest<'_> {
        let mut head = ClientHead::clone(&self.head);
        if let Some(served) = &to.served {
            head.parts.uri = with_model(&head.parts.uri, served);
        }
        head.parts.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
        EditedRequest {
            head: OutgoingHead::own(head),
            body: Rope::default(),
            strip_usage: false,
            token_ids: Err(NotContinued::Api),
        }
    }

    fn prompt(&self, _: Owner<'_>) -> Option<Prompt> {
        None
    }

    /// One handshake with one endpoint, on a connection of its own.
    async fn attempt(&self, to: &Delivery<'_>, slot: &Slot) -> Result<HandshakeAnswer, Failure> {
        let settings = &to.settings.upstream;
        let failed =
            |cause: Cause| move |error: &dyn Display| Failure::new(cause, error.to_string());
        let NewConnection { stream, place } =
            dial(slot.address, settings.connect_timeout, to.deadline).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| failed(Cause::Connect)(&error))?;
        // Polled beside the steps below, which report the connection's end themselves.
        let connection = async move {
            let _ = connection.with_upgrades().await;
            std::future::pending::<Infallible>().await
        };
        let mut connection = std::pin::pin!(connection);
        let mut request = to.outgoing.to(slot.address).map(|_| Full::<Bytes>::default());
        add_upgrade_headers(request.headers_mut());
        let sent = tokio::select! {
            sent = timeout(settings.stall_timeout, sender.send_request(request)) => sent,
            never = connection.as_mut() => match never {},
        };
        let mut response = sent
            .map_err(|_| {
                failed(Cause::Stalled)(&"The replica did not answer the handshake in time.")
            })?
            .map_err(|error| broken(&error))?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let upgrade = hyper::upgrade::on(&mut response);
            let mut agreed = response.headers().clone();
            strip_hop_by_hop(&mut agreed);
            add_upgrade_headers(&mut agreed);
            let upgraded = tokio::select! {
                upgraded = upgrade => upgraded,
                never = connection => match never {},
            };
            let upgraded = upgraded.map_err(|error| failed(Cause::Connection)(&error))?;
            return Ok(HandshakeAnswer::Agreed(agreed, upgraded, place));
        }
        if response.status().is_server_error() {
            let text = format!("The replica answered the handshake with {}.", response.status());
            return Err(Failure::of(response.status().as_u16(), text));
        }
        let refused = tokio::select! {
            refused = refused(response, &to.misfit) => refused,
            never = connection => match never {},
        };
        refused.map(|refused| HandshakeAnswer::Refused(Box::new(refused)))
    }
}

async fn refused(response: Response<Incoming>, misfit: &MisfitCheck) -> Result<Committed, Failure> {
    let (mut parts, body) = response.into_parts();
    strip_hop_by_hop(&mut parts.headers);
    let head = ResponseHead::of(parts, is_for_client);
    let body = Limited::new(body, MAX_REFUSAL).collect().await;
    let body = body.map_err(|error| broken(&*error))?.to_bytes();
    match misfit.failure(head.status, &body) {
        Some(failure) => Err(failure),
        None => Ok(Committed { head, start: AnswerStart::Refused(body.into()) }),
    }
}

/// An answer that broke off, or one that is not valid or too long: the replica that writes such an
/// answer lives.
fn broken(error: &(dyn Error + 'static)) -> Failure {
    let is_invalid = |cause: &(dyn Error + 'static)| {
        let kind = cause.downcast_ref::<io::Error>().map(io::Error::kind);
        cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse)
            || cause.is::<LengthLimitError>()
            || matches!(kind, Some(io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput))
    };
    let (mut cause, mut text) = (Cause::Connection, String::new());
    let mut next = Some(error);
    while let Some(error) = next {
        if is_invalid(error) {
            cause = Cause::Server;
        }
        let colon = if text.is_empty() { "" } else { ": " };
        text = format!("{text}{colon}{error}");
        next = error.source();
    }
    Failure::new(cause, text)
}

/// Adds the headers that belong to each of the two connections alone.
fn add_upgrade_headers(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}

/// The same address with another model in its query.
fn with_model(uri: &Uri, model: &str) -> Uri {
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

/// `model` of a query. Two of them are an error: the gateway must check the name that the replica
/// uses.
pub(super) fn model(query: &str) -> Result<Option<String>, ScanError> {
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
        assert_eq!(with_model(&uri, "org/one"), "/v1/realtime?a=1&model=org%2Fone&model_x=2");
        let escaped = Uri::from_static("/v1/realtime?mod%65l=a");
        assert_eq!(with_model(&escaped, "b"), "/v1/realtime?model=b");
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
            // vLLM's own reader decodes them the same way: no such model, and so a 404.
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
