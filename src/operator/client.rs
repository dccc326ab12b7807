//! A client of the admin port of a running Forebay.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use forebay_base::dial::dial;
use forebay_base::http1;
use forebay_signals::follower::{Feed, follow};
use forebay_signals::{Delta, Token};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use crate::admin;
use crate::console::LEADER;

const CONNECT: Duration = Duration::from_secs(10);
/// Longest wait for figures.
const ANSWER: Duration = Duration::from_secs(30);
/// Most bytes of an answer: a thousand pools fit many times.
const MOST_BYTES: usize = 64 << 20;

/// Flags that name a running Forebay.
#[derive(clap::Args, Clone, Debug, Default)]
pub(crate) struct AdminArgs {
    /// Admin address of the running Forebay, HOST:PORT or http://HOST:PORT [default: 127.0.0.1:9900]
    #[arg(long, value_name = "URL", conflicts_with = "config", value_parser = authority)]
    admin: Option<String>,
    /// File with the token of its admin port
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    token_file: Option<PathBuf>,
    /// Its configuration file, where address and token file are read
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn authority(text: &str) -> Result<String, String> {
    let authority = forebay_config::authority(text.trim_end_matches('/'));
    authority.map(str::to_owned).map_err(|error| error.to_string())
}

/// A running Forebay's admin port.
#[derive(Clone)]
pub(crate) struct AdminClient {
    authority: String,
    token: Option<Token>,
    /// The scaler that named this one as the leader.
    named_by: Option<String>,
}

/// An answer of the admin port.
struct Answer {
    status: StatusCode,
    body: Bytes,
    /// The scaler that leads, as far as this one knows, if it is another one.
    leader: Option<String>,
}

impl AdminArgs {
    /// The client for these flags.
    ///
    /// # Errors
    /// The configuration or the token can't be read.
    pub(crate) fn client(&self) -> anyhow::Result<AdminClient> {
        let (authority, token_file) = match &self.config {
            Some(file) => {
                let name = file.display().to_string();
                let text = std::fs::read_to_string(file);
                let text = text.with_context(|| format!("cannot read {name}"))?;
                let (config, _) = forebay_config::inspect(&text, &name)?;
                let url = admin::own_url(config.admin.listen);
                (url.trim_start_matches("http://").to_owned(), config.admin.token_file)
            }
            None => {
                let address = self.admin.clone().unwrap_or_else(|| "127.0.0.1:9900".to_owned());
                (address, self.token_file.clone())
            }
        };
        let token = token_file.as_ref().map(|file| {
            let token = Token::read(file);
            token.with_context(|| format!("the admin port's token: cannot read {}", file.display()))
        });
        Ok(AdminClient { authority, token: token.transpose()?, named_by: None })
    }
}

impl AdminClient {
    /// A client without a token.
    #[cfg(test)]
    pub(crate) fn at(address: std::net::SocketAddr) -> Self {
        Self { authority: address.to_string(), token: None, named_by: None }
    }

    /// Its address, for messages, and who named it.
    pub(crate) fn address(&self) -> String {
        match &self.named_by {
            Some(other) => format!("{} (the leader, as {other} says)", self.authority),
            None => self.authority.clone(),
        }
    }

    /// Whether another scaler named it.
    pub(crate) fn is_named(&self) -> bool {
        self.named_by.is_some()
    }

    /// The scaler that leads: this one, or the one that it names, which gets the same token. That one is
    /// taken as the leader whatever it says itself.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn leader(&self) -> anyhow::Result<Self> {
        Ok(match self.answer("/gateways").await?.leader {
            Some(authority) => Self {
                authority,
                token: self.token.clone(),
                named_by: Some(self.authority.clone()),
            },
            None => self.clone(),
        })
    }

    /// The feed at a path.
    pub(crate) fn follow<P>(&self, path: &str) -> Feed<P>
    where
        P: Delta + DeserializeOwned + Send + Sync + 'static,
    {
        follow(format!("http://{}{path}", self.authority), self.token.clone())
    }

    /// JSON at a path.
    ///
    /// # Errors
    /// No answer, or another one than expected.
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let Answer { status, body, .. } = self.answer(path).await?;
        if !status.is_success() {
            bail!("{}", refusal(status, &body));
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("{path} at {} is not of this version", self.address()))
    }

    /// The answer to a command, in words, and whether it was carried out. Waits for as long as it takes.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn post(&self, path: &str) -> anyhow::Result<(bool, String)> {
        let Answer { status, body, .. } = self.send(Method::POST, path).await?;
        let text = String::from_utf8_lossy(&body);
        Ok(match status.is_success() {
            true => (true, text.trim_end().to_owned()),
            false => (false, refusal(status, &body)),
        })
    }

    async fn answer(&self, path: &str) -> anyhow::Result<Answer> {
        let answer = timeout(ANSWER, self.send(Method::GET, path));
        answer.await.with_context(|| format!("no answer within {ANSWER:?}"))?
    }

    async fn send(&self, method: Method, path: &str) -> anyhow::Result<Answer> {
        let exchange = async {
            let stream = dial(self.authority.as_str(), CONNECT).await?;
            let mut request = Request::builder().method(method).uri(path);
            request = request.header(header::HOST, &self.authority);
            if let Some(token) = &self.token {
                let bearer = format!("Bearer {}", token.current());
                request = request.header(header::AUTHORIZATION, bearer);
            }
            let response = http1::send(stream, request.body(Empty::<Bytes>::new())?).await?;
            let status = response.status();
            let leader = response.headers().get(LEADER).and_then(|url| url.to_str().ok());
            let leader = leader.and_then(|url| authority(url).ok());
            let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            anyhow::Ok(Answer { status, body, leader })
        };
        exchange
            .await
            .with_context(|| format!("no answer from Forebay's admin port at {}", self.address()))
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    match String::from_utf8_lossy(body).trim() {
        "" => format!("the admin port answered {status}"),
        text => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::http::HeaderMap;
    use axum::routing::get;
    use tokio_util::task::AbortOnDropHandle;

    use super::*;

    /// A scaler's port that shows which token it got, and names a leader.
    async fn scaler(name: &'static str, leader: Option<String>) -> (String, AbortOnDropHandle<()>) {
        let overview = async move |headers: HeaderMap| {
            let token = headers.get(header::AUTHORIZATION);
            format!("\"{name}: {}\"", token.and_then(|token| token.to_str().ok()).unwrap_or("none"))
        };
        let leader = leader.map(|authority| [(LEADER, format!("http://{authority}"))]);
        let gateways = async move || (leader, "[]");
        let app = Router::new().route("/overview", get(overview)).route("/gateways", get(gateways));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let authority = listener.local_addr().expect("bound").to_string();
        let serve = async { axum::serve(listener, app).await.expect("it serves") };
        (authority, AbortOnDropHandle::new(tokio::spawn(serve)))
    }

    fn client(authority: &str, token: Token) -> AdminClient {
        AdminClient { authority: authority.to_owned(), token: Some(token), named_by: None }
    }

    #[tokio::test]
    async fn the_leader_is_found_by_one_hop_and_gets_the_same_token() {
        let file = std::env::temp_dir().join(format!("forebay-token-{}", std::process::id()));
        std::fs::write(&file, "secret").expect("written");
        let token = Token::read(&file).expect("a token");
        std::fs::remove_file(&file).expect("removed");
        let (last, _served) = scaler("last", None).await;
        // It takes another one for the leader, which would be a second hop.
        let (leader, _served) = scaler("leader", Some(last)).await;
        let (standby, _served) = scaler("standby", Some(leader.clone())).await;
        let found = client(&standby, token.clone()).leader().await.expect("it answers");
        let answer: String = found.get("/overview").await.expect("it answers");
        assert_eq!(answer, "leader: Bearer secret");
        assert_eq!(found.address(), format!("{leader} (the leader, as {standby} says)"));

        let (alone, served) = scaler("alone", None).await;
        let own = client(&alone, token.clone()).leader().await.expect("it answers");
        assert_eq!(own.address(), alone);
        drop(served);
        let error = client(&alone, token).leader().await.err().expect("it is gone");
        assert!(error.to_string().contains(&alone), "{error:#}");
    }
}
