//! `forebay hash-key`: hashes an API key for the keys' file.

use std::io::{IsTerminal, Read, Write};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use forebay_base::print;
use rand::TryRngCore as _;
use rand::rngs::OsRng;

/// Flags of `forebay hash-key`.
#[derive(clap::Args)]
#[command(after_help = "\
The key is read from standard input, so that it appears neither in a shell's history nor in a list
of processes. A newline at its end is ignored.

A new key, with its entry for the keys' file:
  forebay hash-key --new --tenant research

The entry for an existing key:
  printf %s \"$KEY\" | forebay hash-key --tenant research

In Kubernetes, a Secret with a file for each tenant:
  kubectl create secret generic forebay-keys \\
    --from-literal=research=\"$(printf %s \"$KEY\" | forebay hash-key)\"

`sha256sum` makes the same hash: printf %s \"$KEY\" | sha256sum")]
pub(crate) struct HashKeyArgs {
    /// Make a new random key, and print it too, on standard error
    #[arg(long)]
    new: bool,
    /// Print an entry for the keys' file instead of the hash alone
    #[arg(long, value_name = "NAME")]
    tenant: Option<String>,
}

pub(crate) fn run(args: &HashKeyArgs) -> anyhow::Result<ExitCode> {
    let key = if args.new { generate()? } else { read()? };
    let hash = forebay_gateway::hash_key(&key);
    match &args.tenant {
        Some(tenant) => print::out(format_args!("- tenant: {tenant}\n  sha256: {hash}\n"))?,
        None => print::out(format_args!("{hash}\n"))?,
    }
    Ok(ExitCode::SUCCESS)
}

fn generate() -> anyhow::Result<String> {
    let mut random = [0_u8; 32];
    OsRng.try_fill_bytes(&mut random).context("the system's random numbers")?;
    let digits: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    let key = format!("sk-{digits}");
    writeln!(std::io::stderr(), "{key}").context("the new key cannot be shown")?;
    Ok(key)
}

fn read() -> anyhow::Result<String> {
    let mut input = std::io::stdin();
    if input.is_terminal() {
        print::err("Type the key, then Enter and Ctrl-D.");
    }
    let mut key = String::new();
    input.read_to_string(&mut key).context("the key")?;
    let key = key.trim_end_matches(['\r', '\n']);
    ensure!(!key.is_empty(), "no key was given; send it on standard input, or make one with --new");
    let plain = key.bytes().all(|byte| byte.is_ascii_graphic());
    ensure!(
        plain,
        "a key must consist of printable ASCII characters without spaces, to fit into a header"
    );
    Ok(key.to_owned())
}
