//! `forebay status`: all pools on one screen, for people and scripts.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use forebay_base::print;
use forebay_scaler::overview::{GatewayState, PoolOverview};
use forebay_scaler::unknown_pool;
use forebay_signals::Frame;

use super::client::AdminArgs;
use super::summary::{HEADS, columns, printable, totals};

/// The exit status if a pool or a gateway has trouble.
const TROUBLE: u8 = 3;

/// Flags of `forebay status`.
#[derive(clap::Args)]
#[command(after_help = "\
The exit status is 0 if no pool and no gateway has trouble, 3 if one has, and 1 if Forebay does
not answer.
A scaler that does not lead names the one that does, and that one is asked.

  forebay status --json | jq '.pools | map_values(.held)'")]
pub(crate) struct StatusArgs {
    /// Print JSON, as on /overview
    #[arg(long)]
    json: bool,
    /// This pool alone
    pool: Option<String>,
    #[command(flatten)]
    admin: AdminArgs,
}

/// Prints the state of all pools.
pub(crate) async fn status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let client = args.admin.client()?.leader().await?;
    let mut frame: Frame<PoolOverview> = client.get("/overview").await?;
    if let Some(only) = &args.pool {
        let known = frame.pools.keys().cloned();
        anyhow::ensure!(frame.pools.contains_key(only), "{}", unknown_pool(only, known));
        frame.pools.retain(|name, _| name == only);
    }
    // What is silent concerns every pool.
    let gateways: Vec<GatewayState> = client.get("/gateways").await?;
    let silent: Vec<_> = gateways.iter().filter_map(GatewayState::trouble).collect();
    let pools: BTreeMap<_, _> = frame
        .pools
        .iter()
        .filter_map(|(name, pool)| Some((name.as_str(), pool.as_ref()?)))
        .collect();
    if args.json {
        if client.is_named() {
            print::err(format_args!("as of {}", client.address()));
        }
        print::out(format_args!("{}\n", serde_json::to_string_pretty(&frame)?))?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        print::out(screen(&client.address(), &pools, &silent, now as u64))?;
    }
    let trouble = !silent.is_empty() || pools.values().any(|pool| !pool.troubles.is_empty());
    Ok(if trouble { TROUBLE.into() } else { ExitCode::SUCCESS })
}

/// The screen: all pools together, a table, and what a person should look at.
fn screen(
    address: &str,
    pools: &BTreeMap<&str, &PoolOverview>,
    silent: &[String],
    now: u64,
) -> String {
    let mut text = format!("{address}: {}\n", totals(pools.values().copied()));
    let mut rows = vec![HEADS.map(str::to_owned)];
    rows.extend(pools.iter().map(|(name, pool)| columns(name, pool, now)));
    let widths: [usize; HEADS.len()] =
        std::array::from_fn(|at| rows.iter().map(|row| row[at].chars().count()).max().unwrap_or(0));
    for row in &rows {
        let mut line = String::new();
        for (at, (field, width)) in row.iter().zip(widths).enumerate() {
            // Figures stand right, so that they compare at a glance.
            if (2..7).contains(&at) {
                line += &format!("{field:>width$}  ");
            } else {
                line += &format!("{field:<width$}  ");
            }
        }
        text += &format!("\n{}", line.trim_end());
    }
    text.push('\n');
    for trouble in silent {
        text += &format!("\n! {}", printable(trouble));
    }
    for (name, pool) in pools {
        for trouble in &pool.troubles {
            text += &format!("\n! {name}: {}", printable(&trouble.text));
        }
    }
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use forebay_scaler::overview::{Trouble, TroubleKind};

    use super::*;

    #[test]
    fn the_screen_has_a_row_for_each_pool_and_a_line_for_each_trouble() {
        let calm = PoolOverview { in_flight: 7, ..PoolOverview::default() };
        let trouble = Trouble {
            kind: TroubleKind::CannotStart,
            text: "no replica can be started".to_owned(),
        };
        let failing = PoolOverview {
            desired: 1,
            held: 12,
            troubles: vec![trouble],
            ..PoolOverview::default()
        };
        let pools = BTreeMap::from([("embed", &calm), ("chat", &failing)]);
        let want = "\
127.0.0.1:9900: 2 pools, 0 of 1 replicas ready, 12 held, 7 in flight, 0 tokens/s

POOL   REPLICAS  HELD  IN FLIGHT  TTFT P95  TOKENS/S  PER HOUR  LAST CHANGE
chat   1 wanted    12          0         -         0    0 GPUs
embed  at zero      0          7         -         0    0 GPUs

! the gateway at http://127.0.0.1:9901 is silent, so nothing scales down
! chat: no replica can be started
";
        let silent = "the gateway at http://127.0.0.1:9901 is silent, so nothing scales down";
        assert_eq!(screen("127.0.0.1:9900", &pools, &[silent.to_owned()], 0), want);
    }
}
