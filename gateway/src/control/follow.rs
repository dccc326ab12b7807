//! Endpoints: fixed ones from the configuration, others from the scaler's `/replicas`.
//!
//! What the scaler said last stays in force when it is gone: serving never depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::follower::{Event, follow};
use forebay_signals::{LastEnd, PoolReplicas, ReplicaState, Token, View};
use futures_util::StreamExt;
use tokio::time::Instant;

use crate::control::reload::Pools;
use crate::pool::Pool;
use crate::pool::directory::{Directory, Source};
use crate::tenant::registry::Tenants;

/// Follows the scaler for as long as the gateway runs.
pub(crate) async fn replicas(
    url: String,
    token: Option<Token>,
    pools: Pools,
    tenants: Arc<Tenants>,
    directory: Arc<Directory>,
) {
    let mut feed = follow::<PoolReplicas>(format!("{url}/replicas"), token);
    // Addresses that came from the scaler, which alone it can take away.
    let mut theirs: BTreeMap<Arc<str>, Known> = BTreeMap::new();
    let mut connected = false;
    while let Some(event) = feed.next().await {
        match event {
            Event::Update { view, .. } => {
                if !std::mem::replace(&mut connected, true) {
                    tracing::debug!("following the scaler at {url}");
                }
                if let Some(gateways) = view.gateways {
                    tenants.set_gateways(gateways, Instant::now());
                }
                for pool in pools.all().iter() {
                    let known = theirs.entry(Arc::clone(&pool.name)).or_default();
                    apply(pool, &view, known, &directory);
                }
            }
            Event::Goodbye | Event::Lost { .. } | Event::Short { .. } if !connected => {}
            Event::Goodbye => connected = false,
            Event::Lost { error } | Event::Short { error } => {
                connected = false;
                tracing::warn!("the scaler at {url} is not there: {error}; serving goes on");
            }
        }
    }
}

/// What the scaler said last of one pool.
#[derive(Default)]
struct Known {
    addresses: BTreeSet<SocketAddr>,
    ends: BTreeMap<String, LastEnd>,
}

fn apply(pool: &Arc<Pool>, view: &View<PoolReplicas>, known: &mut Known, directory: &Directory) {
    let Some(told) = view.pools.get(&*pool.name) else { return };
    let mut now = Known::default();
    for (name, replica) in &told.replicas {
        let Some(replica) = replica else { continue };
        // Before the endpoint goes: what failed there looks at it.
        if let Some(end) = &replica.last_end {
            if known.ends.get(name) != Some(end)
                && let Ok(address) = end.address.parse()
            {
                pool.process_ended(address, end.how);
            }
            now.ends.insert(name.clone(), end.clone());
        }
        let Some(address) = replica.address.as_deref().and_then(|a| a.parse().ok()) else {
            continue;
        };
        if pool.settings().scaler_lists_replicas() {
            now.addresses.insert(address);
            // One that failed has no process: its address is probed anew when it is started again.
            directory.add(pool, Source::Scaler, address);
        }
        pool.drain_endpoint(address, replica.state == ReplicaState::Draining);
    }
    for gone in known.addresses.difference(&now.addresses) {
        directory.remove(pool, Source::Scaler, *gone);
    }
    *known = now;
    pool.set_cold_start(told.cold_start, told.desired);
    let barrier = told.barrier;
    pool.set_barrier(barrier.map(|b| (b.epoch, Duration::from_millis(b.lease_millis))));
}
