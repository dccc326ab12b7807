//! `forebay upgrade`: orders a running Forebay to let the binary at its path take over.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use forebay_base::dial::dial;
use forebay_base::{http1, print};
use forebay_signals::Token;
use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Bytes;

use crate::admin;

const CONNECT: Duration = Duration::from_secs(10);

/// Flags of `forebay upgrade`.
#[derive(clap::Args)]
pub(crate) struct UpgradeArgs {
    /// Admin address of the running Forebay [default: 127.0.0.1:9900]
    #[arg(
        long,
        value_name = "ADDRESS",
        conflicts_with = "config",
        value_parser = forebay_config::parse_listen_address
    )]
    admin: Option<SocketAddr>,
    /// File with the token of its admin port
    #[arg(long, value_name = "FILE", conflicts_with = "config")]
    token_file: Option<PathBuf>,
    /// Its configuration file, where address and token file are read
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// How long the new process may take until it is ready [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    within: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    forebay_config::parse_duration(text).map_err(|error| error.to_string())
}

/// Sends the order and prints the answer. Fails if the old process goes on serving.
pub(crate) async fn run(args: UpgradeArgs) -> anyhow::Result<ExitCode> {
    let (address, token_file) = match &args.config {
        Some(file) => {
            let name = file.display().to_string();
            let text = std::fs::read_to_string(file);
            let text = text.with_context(|| format!("cannot read {name}"))?;
            let (config, _) = forebay_config::inspect(&text, &name)?;
            (config.admin.listen, config.admin.token_file)
        }
        None => (args.admin.unwrap_or(([127, 0, 0, 1], 9900).into()), args.token_file.clone()),
    };
    let token = token_file.as_ref().map(|file| {
        let token = Token::read(file);
        token.with_context(|| format!("the admin port's token: cannot read {}", file.display()))
    });
    let url = admin::own_url(address);
    let authority = url.strip_prefix("http://").unwrap_or(&url).to_owned();
    let answer = ask(&authority, token.transpose()?, args.within.unwrap_or(super::WITHIN)).await;
    let (succeeded, text) =
        answer.with_context(|| format!("no answer from Forebay's admin port at {authority}"))?;
    if !succeeded {
        bail!("not upgraded: {}", text.trim_end());
    }
    print::out(&text)?;
    Ok(ExitCode::SUCCESS)
}

async fn ask(
    authority: &str,
    token: Option<Token>,
    within: Duration,
) -> anyhow::Result<(bool, String)> {
    let stream = dial(authority, CONNECT).await?;
    let path = format!("/upgrade?within={}ms", within.as_millis());
    let mut request = Request::post(path).header(hyper::header::HOST, authority);
    if let Some(token) = token {
        let bearer = format!("Bearer {}", token.current());
        request = request.header(hyper::header::AUTHORIZATION, bearer);
    }
    let response = http1::send(stream, request.body(Empty::<Bytes>::new())?).await?;
    let succeeded = response.status().is_success();
    let text = response.into_body().collect().await?.to_bytes();
    Ok((succeeded, String::from_utf8_lossy(&text).into_owned()))
}
