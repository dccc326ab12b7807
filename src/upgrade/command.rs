//! `forebay upgrade`: orders a running Forebay to let the binary at its path take over.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use forebay_base::print;

use crate::operator::AdminArgs;

/// Flags of `forebay upgrade`.
#[derive(clap::Args)]
pub(crate) struct UpgradeArgs {
    #[command(flatten)]
    admin: AdminArgs,
    /// How long the new process may take until it is ready [default: 60s]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    within: Option<Duration>,
}

fn duration(text: &str) -> Result<Duration, String> {
    forebay_config::parse_duration(text).map_err(|error| error.to_string())
}

/// Sends the order and prints the answer. Fails if the old process goes on serving.
pub(crate) async fn run(args: UpgradeArgs) -> anyhow::Result<ExitCode> {
    let within = args.within.unwrap_or(super::WITHIN).as_millis();
    let (succeeded, text) =
        args.admin.client()?.post(&format!("/upgrade?within={within}ms")).await?;
    if !succeeded {
        bail!("not upgraded: {text}");
    }
    print::out(format_args!("{text}\n"))?;
    Ok(ExitCode::SUCCESS)
}
