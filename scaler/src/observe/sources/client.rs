//! HTTP and HTTPS GET, bounded in bytes.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use forebay_base::https;
use forebay_base::trouble::first_cause;
use http::header::{ACCEPT, AUTHORIZATION, HeaderName, HeaderValue};
use http::{Request, Uri};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client as Pooled;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Most bytes of one answer: ten times the export of a large vLLM.
const MOST_BYTES: usize = 4 << 20;

/// Clones share their connections.
#[derive(Clone)]
pub(crate) struct Client {
    pooled: Pooled<HttpsConnector<HttpConnector>, Empty<Bytes>>,
}

/// An answer's status and its whole body.
pub(crate) struct Answer {
    pub(crate) status: http::StatusCode,
    pub(crate) body: String,
}

impl Client {
    /// Verifies `https` servers against the certificates in `ca_file`, by default against the system's.
    ///
    /// # Errors
    /// Why `ca_file` can't be used.
    pub(crate) fn new(ca_file: Option<&Path>) -> Result<Self, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(https::client_config(ca_file, None)?)
            .https_or_http()
            .enable_http1()
            .build();
        let pooled = Pooled::builder(TokioExecutor::new())
            // Less than the 5 s after which vLLM closes idle connections.
            .pool_idle_timeout(Duration::from_secs(4))
            .pool_timer(TokioTimer::new())
            .build(connector);
        Ok(Self { pooled })
    }

    /// Requests `url`.
    ///
    /// # Errors
    /// A few words, without the URL, which may hold secrets.
    pub(crate) async fn get(
        &self,
        url: &str,
        headers: Vec<(HeaderName, HeaderValue)>,
    ) -> Result<Answer, String> {
        let uri: Uri = url.parse().map_err(|_| "its URL is invalid".to_owned())?;
        let mut request = Request::get(uri);
        if let Some(all) = request.headers_mut() {
            all.insert(ACCEPT, HeaderValue::from_static("application/json, text/plain"));
            all.extend(headers.into_iter().map(|(name, value)| (Some(name), value)));
        }
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let answer = self.pooled.request(request).await.map_err(|error| first_cause(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), MOST_BYTES).collect().await;
        let body = body.map_err(|error| match error.is::<http_body_util::LengthLimitError>() {
            true => format!("the answer is longer than {} MiB", MOST_BYTES >> 20),
            false => format!("the answer broke off: {}", first_cause(&*error)),
        })?;
        let body = String::from_utf8(body.to_bytes().into());
        let body = body.map_err(|_| "the answer is not UTF-8 text".to_owned())?;
        Ok(Answer { status, body })
    }

    /// The text of `url`, if the answer is 200.
    ///
    /// # Errors
    /// A few words, without the URL.
    pub(crate) async fn text(&self, url: &str) -> Result<String, String> {
        let answer = self.get(url, Vec::new()).await?;
        if answer.status != http::StatusCode::OK {
            return Err(format!("it answered {}", answer.status));
        }
        Ok(answer.body)
    }
}

/// An `Authorization` header that is kept out of all output.
///
/// # Errors
/// The value has characters that no header may have.
pub(crate) fn authorization(value: &str) -> Result<(HeaderName, HeaderValue), String> {
    let mut value = HeaderValue::from_str(value)
        .map_err(|_| "its credentials hold characters that can't be sent".to_owned())?;
    value.set_sensitive(true);
    Ok((AUTHORIZATION, value))
}
