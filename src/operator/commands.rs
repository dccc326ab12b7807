//! `forebay wake`, `zero`, `pause`, `unpause`, `override` and `drain`.

use std::net::SocketAddr;
use std::process::ExitCode;

use anyhow::bail;
use forebay_base::print;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::client::{AdminArgs, AdminClient};

/// Flags of the commands for one pool.
#[derive(clap::Args)]
pub(crate) struct PoolArgs {
    /// The pool's name
    pool: String,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Flags of `forebay override`.
#[derive(clap::Args)]
#[command(after_help = "\
Exactly three replicas, until it is taken back:
  forebay override chat 3
  forebay override chat none")]
pub(crate) struct OverrideArgs {
    /// The pool's name
    pool: String,
    /// A replica count, or `none` to let Forebay decide again
    #[arg(value_name = "COUNT", value_parser = count)]
    count: Count,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Flags of `forebay drain`.
#[derive(clap::Args)]
pub(crate) struct DrainArgs {
    /// The replica to drain, IP:PORT; left out, the gateway itself, which then takes no requests
    endpoint: Option<SocketAddr>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// A count to fix, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Count(Option<u32>);

fn count(text: &str) -> Result<Count, String> {
    match text {
        "none" => Ok(Count(None)),
        _ => text
            .parse()
            .map(|count| Count(Some(count)))
            .map_err(|_| "write a number of replicas, or none".to_owned()),
    }
}

/// Sends a command for a pool: `command` is the path's end below `/pools/NAME/`.
pub(crate) async fn command(args: &PoolArgs, command: &str) -> anyhow::Result<ExitCode> {
    send(&args.admin.client()?.leader().await?, &below(&args.pool, command)).await
}

/// Fixes a count, or takes it back.
pub(crate) async fn fix(args: &OverrideArgs) -> anyhow::Result<ExitCode> {
    let query = match args.count {
        Count(Some(count)) => format!("override?replicas={count}"),
        Count(None) => "override?none=true".to_owned(),
    };
    send(&args.admin.client()?.leader().await?, &below(&args.pool, &query)).await
}

/// Drains a replica or a gateway, and returns when nothing is in flight there.
pub(crate) async fn drain(args: &DrainArgs) -> anyhow::Result<ExitCode> {
    let path = match args.endpoint {
        Some(endpoint) => format!("/drain?endpoint={endpoint}"),
        None => "/drain".to_owned(),
    };
    // A scaler that does not lead passes a replica's drain on itself.
    send(&args.admin.client()?, &path).await
}

fn below(pool: &str, command: &str) -> String {
    format!("/pools/{}/{command}", utf8_percent_encode(pool, NON_ALPHANUMERIC))
}

async fn send(client: &AdminClient, path: &str) -> anyhow::Result<ExitCode> {
    if client.is_named() {
        print::err(format_args!("sent to {}", client.address()));
    }
    let (succeeded, text) = client.post(path).await?;
    if !succeeded {
        bail!("{text}");
    }
    print::out(format_args!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_number_or_none_and_a_name_cannot_leave_its_place_in_the_path() {
        assert_eq!((count("3"), count("none")), (Ok(Count(Some(3))), Ok(Count(None))));
        assert!(count("-1").is_err() && count("").is_err());
        assert_eq!(below("../drain?x", "wake"), "/pools/%2E%2E%2Fdrain%3Fx/wake");
    }
}
