//! Follows the scaler's `/replicas` (endpoints, drains, cold starts, the zero barrier), and the
//! files with the replicas' keys.
//!
//! The scaler's last report stays in force when the scaler is gone: serving never depends on it. What
//! keeps requests from replicas ends: the barrier and a failure of the starts by their leases, and
//! drains when a scaler reports without the pool.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_base::file_watch::FileWatch;
use forebay_signals::follower::{Event, follow};
use forebay_signals::{LastEnd, PoolReplicas, ReplicaState, Token, View};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::control::reload::Pools;
use crate::figures;
use crate::pool::Pool;
use crate::pool::directory::{Directory, Source};
use crate::tenant::registry::Tenants;

/// How often the replicas' keys are read.
const KEYS_READ: Duration = Duration::from_secs(1);

/// Follows the scaler while the gateway runs.
pub(crate) async fn replicas(
    url: String,
    token: Option<Token>,
    pools: Pools,
    tenants: Arc<Tenants>,
    directory: Arc<Directory>,
) {
    let mut feed = follow::<PoolReplicas>(format!("{url}/replicas"), token);
    // The scaler can take away only the addresses that it reported itself.
    let mut reported: BTreeMap<Arc<str>, KnownReplicas> = BTreeMap::new();
    let heard = figures::scaler_heard();
    heard.set(0.0);
    let mut connected = false;
    while let Some(event) = feed.next().await {
        match event {
            Event::Update { view, .. } => {
                if !std::mem::replace(&mut connected, true) {
                    heard.set(1.0);
                    tracing::debug!("following the scaler at {url}");
                }
                if let Some(gateways) = view.gateways {
                    tenants.set_gateways(gateways, Instant::now());
                }
                for pool in pools.all().iter() {
                    let known = reported.entry(Arc::clone(&pool.name)).or_default();
                    apply(pool, &view, known, &directory);
                }
            }
            Event::Goodbye | Event::Lost { .. } | Event::Short { .. } if !connected => {}
            Event::Goodbye => {
                connected = false;
                heard.set(0.0);
            }
            Event::Lost { error } | Event::Short { error } => {
                connected = false;
                heard.set(0.0);
                tracing::warn!("the scaler at {url} can't be reached: {error}; serving goes on");
            }
        }
    }
}

/// Follows the files with the replicas' keys while the gateway runs. While a file can't be read,
/// its last key stays in use.
pub(crate) async fn upstream_keys(pools: Pools) {
    let configured = pools.clone();
    let read = move || {
        let pools = configured.all();
        let keys = pools.iter().filter_map(|pool| {
            let file = pool.settings().api_key_file.clone()?;
            let text = std::fs::read_to_string(&file).map_err(|error| error.to_string());
            Some((Arc::clone(&pool.name), file, text))
        });
        Ok::<Vec<_>, Infallible>(keys.collect())
    };
    let mut files = FileWatch::new(KEYS_READ, None, read);
    loop {
        let Ok(keys) = files.next().await;
        for (name, file, text) in keys {
            let pools = pools.all();
            let Some(pool) = pools.iter().find(|pool| pool.name == name) else { continue };
            let changed =
                text.and_then(|text| pool.key.set(&text).map_err(|error| error.to_string()));
            match changed {
                Ok(true) => tracing::info!("{name}: the replicas' key has changed"),
                Ok(false) => {}
                Err(error) => tracing::debug!("{name}: apiKeyFile: {}: {error}", file.display()),
            }
        }
    }
}

/// The scaler's last report of one pool.
#[derive(Default)]
struct KnownReplicas {
    addresses: BTreeSet<SocketAddr>,
    draining: BTreeSet<SocketAddr>,
    ends: BTreeMap<String, LastEnd>,
    /// The names of those that have failed.
    failed: BTreeSet<String>,
}

fn apply(
    pool: &Arc<Pool>,
    view: &View<PoolReplicas>,
    known: &mut KnownReplicas,
    directory: &Directory,
) {
    let Some(report) = view.pools.get(&*pool.name) else {
        // The scaler no longer has the pool: it starts nothing there, and stops nothing.
        pool.set_failed_start(None);
        for address in std::mem::take(&mut known.draining) {
            pool.drain_endpoint(address, false);
        }
        return;
    };
    let mut now = KnownReplicas::default();
    for (name, replica) in &report.replicas {
        let Some(replica) = replica else { continue };
        if replica.state == ReplicaState::Failed {
            now.failed.insert(name.clone());
        }
        // Before the endpoint is removed: requests that failed there look up how it ended.
        if let Some(end) = &replica.last_end {
            if known.ends.get(name) != Some(end)
                && let Ok(address) = end.address.parse()
            {
                pool.process_ended(address, end.how);
            }
            now.ends.insert(name.clone(), end.clone());
        }
        let Some(address) = replica.address.as_deref().and_then(|address| address.parse().ok())
        else {
            continue;
        };
        if pool.settings().scaler_lists_replicas() {
            now.addresses.insert(address);
            // A failed replica has no process. Its address is probed again when it is restarted.
            directory.add(pool, Source::Scaler, address);
        }
        let draining = replica.state == ReplicaState::Draining;
        if draining {
            now.draining.insert(address);
        }
        pool.drain_endpoint(address, draining);
    }
    for gone in known.addresses.difference(&now.addresses) {
        directory.remove(pool, Source::Scaler, *gone);
    }
    let failed = now.failed.difference(&known.failed).count();
    *known = now;
    pool.set_cold_start(report.cold_start, report.desired, failed);
    pool.set_failed_start(report.failed_start.clone());
    let barrier = report.barrier;
    pool.set_barrier(
        barrier.map(|barrier| (barrier.epoch, Duration::from_millis(barrier.lease_millis))),
    );
}

#[cfg(test)]
mod tests {
    use forebay_config::PriorityClass;
    use forebay_scheduling::queue::Entry;
    use forebay_signals::{FailedStart, Frame, Replica, SCHEMA};
    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::pool::Ticket;
    use crate::pool::endpoint::{Probe, Probed};

    fn ticket() -> Ticket {
        let (tenant, class) = (Arc::from("a"), PriorityClass::Normal);
        let entry = Entry {
            tenant,
            class,
            bytes: 10,
            tokens: 2,
            cost: 2,
            answer: 0,
            late_from: None,
            kind: 0,
        };
        Ticket::new(entry, Instant::now(), Instant::now() + Duration::from_secs(600))
    }

    fn view(report: Option<PoolReplicas>) -> View<PoolReplicas> {
        let pools = report.map(|report| ("p".to_owned(), Some(report)));
        View::begin(Frame {
            schema: SCHEMA,
            sender: "scaler".to_owned(),
            seq: 1,
            full: true,
            goodbye: false,
            up_millis: None,
            gateways: None,
            pools: pools.into_iter().collect(),
        })
        .expect("a snapshot")
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_that_the_scaler_no_longer_has_neither_fails_nor_drains() {
        let settings = serde_json::from_str(r#"{"name": "p"}"#).expect("a pool");
        let pool = Pool::new(settings, Arc::new(Notify::new()));
        let (directory, mut known) = (Directory::default(), KnownReplicas::default());
        let failed_start = FailedStart {
            reason: "exited with status 1".to_owned(),
            detail: String::new(),
            since_millis: 0,
            next_try_millis: None,
        };
        let failing = PoolReplicas { failed_start: Some(failed_start), ..PoolReplicas::default() };
        apply(&pool, &view(Some(failing)), &mut known, &directory);
        let refused = pool.hold(&mut ticket()).now_or_never();
        assert!(matches!(refused, Some(Err(_))), "no replica can be started");
        apply(&pool, &view(None), &mut known, &directory);
        assert!(pool.hold(&mut ticket()).now_or_never().is_none(), "held");

        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        pool.add_endpoint(address);
        pool.probed(address, Probe::Health, Probed::Answered);
        let replica = Replica {
            address: Some(address.to_string()),
            state: ReplicaState::Draining,
            reason: String::new(),
            last_end: None,
        };
        let draining = PoolReplicas {
            replicas: [("p-1".to_owned(), Some(replica))].into(),
            ..PoolReplicas::default()
        };
        apply(&pool, &view(Some(draining)), &mut known, &directory);
        assert!(pool.hold(&mut ticket()).now_or_never().is_none(), "held: it drains");
        apply(&pool, &view(None), &mut known, &directory);
        let slot = pool.hold(&mut ticket()).now_or_never().expect("it serves again");
        drop(slot.expect("released"));
    }
}
