//! One export by OTLP, over gRPC or HTTP, with its repetitions.
//!
//! Which failures are repeated, and when, is what OTLP's specification says:
//! <https://opentelemetry.io/docs/specs/otlp/>.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use forebay_base::backoff::{Backoff, Spread};
use forebay_base::https;
use forebay_base::trouble::first_cause;
use forebay_config::OtlpProtocol;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prost::Message;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::body::Body;
use tonic::client::Grpc;
use tonic::codec::CompressionEncoding;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;
use tonic_types::StatusExt as _;

use crate::settings::{Headers, Receiver};

/// The most bytes of an answer. A receiver answers with a few numbers.
const LONGEST_ANSWER: usize = 64 << 10;
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The most time for which one export waits because the receiver says so, in all.
const LONGEST_ORDERED_PAUSE: Duration = Duration::from_secs(120);
/// How long an idle connection is kept.
const IDLE: Duration = Duration::from_secs(90);
/// The interval of HTTP/2's pings. An end that does not answer one in 20 seconds is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Sends to one receiver.
pub(crate) struct Client {
    receiver: Receiver,
    pooled: Pooled<HttpsConnector<HttpConnector>, Body>,
    url: Uri,
    /// The method of gRPC.
    method: PathAndQuery,
}

/// Why an export failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For people; without a header's value.
    pub(crate) message: String,
    /// The receiver refused the data, or can't be used at all.
    pub(crate) is_final: bool,
    /// The receiver says when to come again.
    after: Option<Duration>,
}

impl Failure {
    fn of(message: impl Into<String>, is_final: bool) -> Self {
        Self { message: message.into(), is_final, after: None }
    }
}

impl Client {
    /// A client for the method `method`. Nothing is connected yet.
    ///
    /// # Errors
    /// Why the receiver can't be used: its URL, or a file of certificates or of a key.
    pub(crate) fn new(receiver: Receiver, method: &'static str) -> Result<Self, String> {
        let url = receiver.url.parse().map_err(|_| "its URL is invalid".to_owned())?;
        let tls = https::client_config(receiver.ca_file.as_deref(), receiver.certificate.as_ref())?;
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls);
        let connector = connector.https_or_http();
        let grpc = receiver.protocol == OtlpProtocol::Grpc;
        let connector = match grpc {
            true => connector.enable_http2().build(),
            false => connector.enable_http1().build(),
        };
        let pooled = Pooled::builder(TokioExecutor::new())
            .pool_idle_timeout(IDLE)
            .pool_timer(TokioTimer::new())
            .http2_only(grpc)
            // A connection whose other end is gone without a word is given up.
            .http2_keep_alive_interval(KEEP_ALIVE)
            .http2_keep_alive_while_idle(true)
            .timer(TokioTimer::new())
            .build(connector);
        Ok(Self { receiver, pooled, url, method: PathAndQuery::from_static(method) })
    }

    /// The URL, for people. It holds no secrets: a URL with a name or password is refused.
    pub(crate) fn url(&self) -> &str {
        &self.receiver.url
    }

    /// Sends `request`, again and again while that may help and there is time. Pauses that the receiver
    /// orders are kept beside that time, up to two minutes. Once `stopping` is true, nothing is repeated.
    ///
    /// # Errors
    /// The last failure.
    pub(crate) async fn send<Q, A>(
        &self,
        request: &Q,
        stopping: &mut watch::Receiver<bool>,
    ) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let mut until = Instant::now() + self.receiver.timeout;
        let mut may_order = LONGEST_ORDERED_PAUSE;
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE, Spread::Around);
        loop {
            let sent = timeout_at(until, self.once(request)).await;
            let late = |_| Failure::of(format!("no answer in {:?}", self.receiver.timeout), false);
            let failure = match sent.map_err(late).flatten() {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let own = pauses.next(&mut rand::rng());
            // Never at once, whatever the receiver says.
            let ordered = failure.after.map_or(Duration::ZERO, |after| after.max(own));
            let ordered = ordered.min(may_order);
            may_order -= ordered;
            until += ordered;
            let pause = own.max(ordered);
            if failure.is_final || *stopping.borrow() || Instant::now() + pause >= until {
                return Err(failure);
            }
            // One more try at the end, and none if nobody waits for it.
            if let Ok(Err(_)) = timeout(pause, stopping.wait_for(|stopping| *stopping)).await {
                return Err(failure);
            }
        }
    }

    async fn once<Q, A>(&self, request: &Q) -> Result<A, Failure>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let headers = self.headers().map_err(|message| Failure::of(message, false))?;
        match self.receiver.protocol {
            OtlpProtocol::Grpc => self.grpc(request.clone(), headers).await,
            OtlpProtocol::Http => self.http(request, headers).await,
        }
    }

    async fn grpc<Q, A>(&self, request: Q, headers: HeaderMap) -> Result<A, Failure>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut client = Grpc::with_origin(self.pooled.clone(), self.url.clone())
            .max_decoding_message_size(LONGEST_ANSWER);
        if self.receiver.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        let request = tonic::Request::from_parts(
            MetadataMap::from_headers(headers),
            Default::default(),
            request,
        );
        let ready = client.ready().await;
        ready.map_err(|error| Failure::of(first_cause(&error), false))?;
        let answer =
            client.unary(request, self.method.clone(), ProstCodec::<Q, A>::default()).await;
        answer.map(tonic::Response::into_inner).map_err(|status| refused(&status))
    }

    async fn http<Q, A>(&self, request: &Q, headers: HeaderMap) -> Result<A, Failure>
    where
        Q: Message,
        A: Message + Default,
    {
        let mut body = request.encode_to_vec();
        let mut post = Request::post(self.url.clone());
        if let Some(all) = post.headers_mut() {
            *all = headers;
            all.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-protobuf"));
            if self.receiver.gzip {
                all.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                body = gzip(&body);
            }
        }
        let post = post.body(Body::new(Full::new(Bytes::from(body))));
        let post = post.map_err(|error| Failure::of(error.to_string(), true))?;
        let answer = self.pooled.request(post).await;
        let answer = answer.map_err(|error| Failure::of(first_cause(&error), false))?;
        let (head, body) = answer.into_parts();
        if !head.status.is_success() {
            let after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            let after = after.and_then(|value| value.parse().ok()).map(Duration::from_secs);
            let again = matches!(
                head.status,
                StatusCode::TOO_MANY_REQUESTS
                    | StatusCode::BAD_GATEWAY
                    | StatusCode::SERVICE_UNAVAILABLE
                    | StatusCode::GATEWAY_TIMEOUT
            );
            let message = format!("it answered {}", head.status);
            return Err(Failure { message, is_final: !again, after });
        }
        let body = Limited::new(body, LONGEST_ANSWER).collect().await;
        let body = body.map_err(|error| Failure::of(first_cause(&*error), false))?.to_bytes();
        A::decode(body).map_err(|_| Failure::of("its answer is not OTLP", true))
    }

    /// The headers, as they are now.
    fn headers(&self) -> Result<HeaderMap, String> {
        match &self.receiver.headers {
            Headers::Fixed(headers) => {
                let pairs = headers.iter().map(|(name, value)| (name.as_str(), value.as_str()));
                header_map(pairs).map_err(|name| format!("the header {name} can't be sent"))
            }
            Headers::File(file) => {
                let shown = file.display();
                let text = std::fs::read_to_string(file)
                    .map_err(|error| format!("cannot read {shown}: {error}"))?;
                parse_headers(&text)
                    .map_err(|line| format!("{shown}:{line}: not a header; write NAME: VALUE"))
            }
        }
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    let written = gzip.write_all(plain).and_then(|()| gzip.finish());
    written.expect("a vector takes every byte")
}

/// Reads `NAME: VALUE` lines. Empty lines, and those that begin with `#`, are left out. An error is the
/// number of a line that is not one; its text may be a key.
fn parse_headers(text: &str) -> Result<HeaderMap, usize> {
    let mut all = HeaderMap::new();
    for (at, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let pair = line.split_once(':').ok_or(at + 1)?;
        all.extend(header_map([pair]).map_err(|_| at + 1)?);
    }
    Ok(all)
}

/// An error is the name of a header that can't be sent.
fn header_map<'a>(
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<HeaderMap, &'a str> {
    let mut all = HeaderMap::new();
    for (name, value) in pairs {
        let header = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| name)?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| name)?;
        value.set_sensitive(true);
        all.append(header, value);
    }
    Ok(all)
}

/// The failure that a status of gRPC means.
fn refused(status: &Status) -> Failure {
    let after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    // A receiver without room that says when it has some can be asked again.
    let has_room_later = status.code() == Code::ResourceExhausted && after.is_some();
    let again = has_room_later
        || matches!(
            status.code(),
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss
            // A connection that can't be made or breaks is reported as this.
            | Code::Unknown
            | Code::Internal
        );
    let mut message = match std::error::Error::source(status) {
        Some(cause) => first_cause(cause),
        None => format!("it answered {:?}: {}", status.code(), status.message()),
    };
    message.truncate(message.floor_char_boundary(300));
    Failure { message, is_final: !again, after }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn a_file_of_headers_has_one_a_line() {
        let all = parse_headers("# for the vendor\nX-Key:  a: b \n\nx-more: 1\n").expect("valid");
        let shown: Vec<_> = all.iter().map(|(name, value)| (name.as_str(), value)).collect();
        let value = |text| HeaderValue::from_static(text);
        assert_eq!(shown, [("x-key", &value("a: b")), ("x-more", &value("1"))]);
        assert_eq!(parse_headers("a: b\nsecret\n"), Err(2));
        assert_eq!(parse_headers("a b: c"), Err(1));
        assert!(!format!("{all:?}").contains("a: b"), "values are not shown");
    }

    #[test]
    fn what_may_pass_is_tried_again_and_a_refusal_is_not() {
        for (code, again) in [
            (Code::Unavailable, true),
            (Code::DeadlineExceeded, true),
            (Code::Unauthenticated, false),
            (Code::InvalidArgument, false),
            (Code::Unimplemented, false),
        ] {
            let failure = refused(&Status::new(code, "words"));
            assert_eq!(failure.is_final, !again, "{code:?}");
            assert!(failure.message.ends_with("words"), "{}", failure.message);
        }
        assert!(refused(&Status::new(Code::ResourceExhausted, "full")).is_final);
        let later = ErrorDetails::with_retry_info(Some(Duration::from_secs(3)));
        let full = refused(&Status::with_error_details(Code::ResourceExhausted, "full", later));
        assert_eq!((full.is_final, full.after), (false, Some(Duration::from_secs(3))));
        let long = refused(&Status::new(Code::Unavailable, "ä".repeat(400)));
        assert!(long.message.len() <= 300);
    }
}
