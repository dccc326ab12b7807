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
        Ok(AdminClient { authority, token: token.transpose()? })
    }
}

impl AdminClient {
    /// A client without a token.
    #[cfg(test)]
    pub(crate) fn at(address: std::net::SocketAddr) -> Self {
        Self { authority: address.to_string(), token: None }
    }

    /// Its address, for messages.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
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
        let answer = timeout(ANSWER, self.send(Method::GET, path));
        let (status, body) =
            answer.await.with_context(|| format!("no answer within {ANSWER:?}"))??;
        if !status.is_success() {
            bail!("{}", refusal(status, &body));
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("{path} at {} is not of this version", self.authority))
    }

    /// The answer to a command, in words, and whether it was carried out. Waits for as long as it takes.
    ///
    /// # Errors
    /// No answer.
    pub(crate) async fn post(&self, path: &str) -> anyhow::Result<(bool, String)> {
        let (status, body) = self.send(Method::POST, path).await?;
        let text = String::from_utf8_lossy(&body);
        Ok(match status.is_success() {
            true => (true, text.trim_end().to_owned()),
            false => (false, refusal(status, &body)),
        })
    }

    async fn send(&self, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
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
            let body = Limited::new(response.into_body(), MOST_BYTES).collect().await;
            let body = body.map_err(|error| anyhow::anyhow!("{error}"))?.to_bytes();
            anyhow::Ok((status, body))
        };
        let authority = &self.authority;
        exchange
            .await
            .with_context(|| format!("no answer from Forebay's admin port at {authority}"))
    }
}

fn refusal(status: StatusCode, body: &[u8]) -> String {
    match String::from_utf8_lossy(body).trim() {
        "" => format!("the admin port answered {status}"),
        text => text.to_owned(),
    }
}
