//! The rules between pools, and between pools and the listeners.

use std::collections::{BTreeSet, HashMap};

use super::Findings;
use crate::units::authority::authority;
use crate::yaml::problem::Path;
use crate::{Config, Processes, Target};

pub(super) fn check(config: &Config, found: &mut Findings) {
    let pools = Path::default().key("pools");
    names(config, &pools, found);
    endpoints(config, &pools, found);
    ports(config, &pools, found);
    gpus(config, &pools, found);
    keda(config, &pools, found);
    election(config, &pools, found);
    for (at, pool) in config.pools.iter().enumerate() {
        let limit = config.gateway.limits.body_size;
        let max = pool.hold.max_bytes;
        if pool.hold.max_requests > 0 && max.bytes() > 0 && max < limit {
            let message = format!(
                "{max} is less than the largest request body (gateway.limits.bodySize is {limit}): such a \
                 body is never held"
            );
            found.warn(pools.index(at).key("hold").key("maxBytes"), message);
        }
    }
}

/// A pool is known by its name alone.
fn names(config: &Config, pools: &Path, found: &mut Findings) {
    let mut names = HashMap::new();
    for (at, pool) in config.pools.iter().enumerate() {
        let first = *names.entry(pool.name.as_str()).or_insert(at);
        if first != at {
            let message = format!("`{}` is the name of pools[{first}] already", pool.name);
            found.error(pools.index(at).key("name"), message);
        }
    }
}

fn endpoints(config: &Config, pools: &Path, found: &mut Findings) {
    let mut seen = HashMap::new();
    for (at, pool) in config.pools.iter().enumerate() {
        for (place, endpoint) in pool.endpoints.iter().enumerate() {
            let Ok(authority) = authority(endpoint) else { continue };
            let first = *seen.entry(authority.to_lowercase()).or_insert(at);
            if first != at {
                let message = format!(
                    "`{endpoint}` is an endpoint of pools[{first}] too: each pool fills it \
                     without knowing of the other"
                );
                found.warn(pools.index(at).key("endpoints").index(place), message);
            }
        }
    }
}

/// Replicas get no port that Forebay listens on itself. Pools may share a range of ports, as they
/// do by default; together they need one port for each replica.
fn ports(config: &Config, pools: &Path, found: &mut Findings) {
    let listeners =
        [("gateway.listen", config.gateway.listen), ("admin.listen", config.admin.listen)];
    let path = |at| pools.index(at).key("target").key("processes").key("ports");
    for (at, processes, _) in targets(config) {
        for (name, address) in listeners {
            if (processes.ports.0..=processes.ports.1).contains(&address.port()) {
                let message = format!("contains {}, the port of {name}", address.port());
                found.error(path(at), message);
            }
        }
    }
    let (mut needed, mut leased) = (0_u64, BTreeSet::new());
    for (nth, (at, processes, most)) in targets(config).enumerate() {
        let range = processes.ports.0..=processes.ports.1;
        let enough_alone = u64::from(most) <= range.len() as u64;
        needed += u64::from(most);
        leased.extend(range);
        // Ports that one pool lacks alone are reported at that pool, and those of several once.
        if nth > 0 && enough_alone && needed > leased.len() as u64 {
            let message = format!(
                "{} ports for up to {needed} replicas of this pool and those before it; widen the \
                 range, or give each pool its own",
                leased.len()
            );
            found.error(path(at), message);
            break;
        }
    }
}

fn gpus(config: &Config, pools: &Path, found: &mut Findings) {
    let mut seen = HashMap::new();
    for (at, processes, _) in targets(config) {
        for (place, gpu) in processes.gpus.iter().enumerate() {
            let first = *seen.entry(gpu).or_insert(at);
            if first != at {
                let message = format!(
                    "GPU {gpu} is leased by pools[{first}] too: replicas of both may share it"
                );
                let path = pools.index(at).key("target").key("processes").key("gpus").index(place);
                found.warn(path, message);
            }
        }
    }
}

/// KEDA's listener has its own port, and a ScaledObject scales one workload, so one pool.
fn keda(config: &Config, pools: &Path, found: &mut Findings) {
    let driven = config.pools.iter().enumerate().filter_map(|(at, pool)| match &pool.target {
        Some(Target::Keda(keda)) => Some((at, keda)),
        _ => None,
    });
    let mut seen = HashMap::new();
    for (at, keda) in driven.clone() {
        let first = *seen.entry((&keda.scaled_object, &keda.namespace)).or_insert(at);
        if first != at {
            let message =
                format!("`{}` is the ScaledObject of pools[{first}] already", keda.scaled_object);
            found.error(pools.index(at).key("target").key("keda").key("scaledObject"), message);
        }
    }
    let listen = config.scaler.keda.listen;
    let others = [("gateway.listen", config.gateway.listen), ("admin.listen", config.admin.listen)];
    for (name, other) in others {
        if !seen.is_empty() && listen.port() != 0 && listen.port() == other.port() {
            let path = Path::default().key("scaler").key("keda").key("listen");
            let message =
                format!("port {} is the one of {name} ({other}); give each its own", listen.port());
            found.error(path, message);
        }
    }
}

/// Processes belong to one machine: a new leader elsewhere could neither start them nor stop those
/// of the previous leader.
fn election(config: &Config, pools: &Path, found: &mut Findings) {
    if config.scaler.leader_election.is_none() {
        return;
    }
    for (at, ..) in targets(config) {
        let message = "another scaler could not take over replicas on this machine; leave out \
                       scaler.leaderElection, or scale them by kubernetes or keda";
        found.error(pools.index(at).key("target").key("processes"), message);
    }
}

/// The pools of local processes: their index, the target, the most replicas.
fn targets(config: &Config) -> impl Iterator<Item = (usize, &Processes, u32)> {
    config.pools.iter().enumerate().filter_map(|(at, pool)| {
        let Some(Target::Processes(processes)) = &pool.target else { return None };
        Some((at, processes, pool.scaling.max_replica_count))
    })
}
