//! The rules within one pool.

use std::collections::HashSet;

use super::{Findings, kubernetes, name};
use crate::types::command;
use crate::units::authority::authority;
use crate::units::format_duration;
use crate::yaml::flow_list;
use crate::yaml::problem::Path;
use crate::{Pool, Processes, Scaling, Target};

pub(super) fn check(pool: &Pool, path: &Path, found: &mut Findings) {
    name(&pool.name, "a pool's name", &path.key("name"), found);
    endpoints(pool, &path.key("endpoints"), found);
    if let Some(discovery) = &pool.discovery {
        kubernetes::discovery(discovery, &path.key("discovery"), found);
        if matches!(pool.target, Some(Target::Processes(_))) {
            let message = "the target starts processes, whose addresses the scaler reports; remove \
                           one of the two";
            found.error(path.key("discovery"), message);
        }
    }
    if pool.endpoints.is_empty() && pool.target.is_none() && pool.discovery.is_none() {
        let message = "nothing serves it; give a target, which starts replicas, or endpoints or \
                       discovery, which name running ones";
        found.error(path.clone(), message);
    }
    if pool.max_in_flight == 0 {
        found.error(path.key("maxInFlight"), "must be at least 1, or nothing is ever served");
    }
    if pool.gpus == 0 {
        found.error(path.key("gpus"), "must be at least 1");
    }
    if !(0.0..=1e9).contains(&pool.gpu_hour_price) {
        let message = format!("{} must be between 0 and {}", pool.gpu_hour_price, 1e9);
        found.error(path.key("gpuHourPrice"), message);
    }
    hold_and_upstream(pool, path, found);
    scaling(pool, &path.key("scaling"), found);
    super::scaling::check(&pool.scaling, pool.target_concurrency(), &path.key("scaling"), found);
    match &pool.target {
        Some(Target::Processes(processes)) => {
            let path = path.key("target").key("processes");
            let most = pool.scaling.max_replica_count;
            self::processes(processes, most, &path, found);
        }
        Some(Target::Kubernetes(kubernetes)) => {
            kubernetes::target(kubernetes, &path.key("target").key("kubernetes"), found);
        }
        Some(Target::Keda(keda)) => {
            kubernetes::keda(pool, keda, path, found);
        }
        None if pool.scaling != Scaling::default() => {
            found.warn(path.key("scaling"), "has no effect: the pool has no target to scale");
        }
        None => {}
    }
}

fn endpoints(pool: &Pool, path: &Path, found: &mut Findings) {
    let mut seen = HashSet::new();
    for (at, endpoint) in pool.endpoints.iter().enumerate() {
        match authority(endpoint) {
            Ok(authority) if !seen.insert(authority.to_lowercase()) => {
                found.error(path.index(at), format!("`{endpoint}` is given twice; remove one"));
            }
            Ok(_) => {}
            Err(error) => found.error(path.index(at), error.to_string()),
        }
    }
}

fn hold_and_upstream(pool: &Pool, path: &Path, found: &mut Findings) {
    let (hold, upstream) = (&pool.hold, &pool.upstream);
    let (hold_path, upstream_path) = (path.key("hold"), path.key("upstream"));
    found.above_zero(&hold_path, "timeout", hold.timeout);
    if let Some(max_wait) = hold.max_wait {
        found.above_zero(&hold_path, "maxWait", max_wait);
        if max_wait > hold.timeout {
            let message = format!(
                "{} is longer than timeout ({}), so it refuses nothing",
                format_duration(max_wait),
                format_duration(hold.timeout)
            );
            found.warn(hold_path.key("maxWait"), message);
        }
    }
    let share = hold.lower_class_share;
    if !(0.0..=0.5).contains(&share) {
        let message = format!("{share} must be from 0 to 0.5; write for example 0.05");
        found.error(hold_path.key("lowerClassShare"), message);
    }
    found.above_zero(&upstream_path, "connectTimeout", upstream.connect_timeout);
    found.above_zero(&upstream_path, "stallTimeout", upstream.stall_timeout);
    found.above_zero(&upstream_path, "requestTimeout", upstream.request_timeout);
    if upstream.max_tries == 0 {
        let message = "must be at least 1: the first try counts";
        found.error(upstream_path.key("maxTries"), message);
    }
    if hold.timeout > upstream.request_timeout {
        let message = format!(
            "{} is longer than upstream.requestTimeout ({}), which ends a held request first",
            format_duration(hold.timeout),
            format_duration(upstream.request_timeout)
        );
        found.warn(hold_path.key("timeout"), message);
    }
    let sleeps = pool.target.is_some() && pool.scaling.min_replica_count == 0;
    if sleeps && (hold.max_requests == 0 || hold.max_bytes.bytes() == 0) {
        let field = if hold.max_requests == 0 { "maxRequests" } else { "maxBytes" };
        let message = "0 holds nothing, and a pool at zero replicas is woken by held requests; \
                       raise it, or set scaling.minReplicaCount to 1 or more";
        found.error(hold_path.key(field), message);
    }
}

fn scaling(pool: &Pool, path: &Path, found: &mut Findings) {
    let scaling = &pool.scaling;
    let (min, max) = (scaling.min_replica_count, scaling.max_replica_count);
    if max == 0 {
        found.error(path.key("maxReplicaCount"), "must be at least 1, or nothing is ever served");
    } else if min > max {
        let message = format!(
            "{min} is more than maxReplicaCount ({max}); lower it or raise maxReplicaCount"
        );
        found.error(path.key("minReplicaCount"), message);
    }
    if let Some(idle) = scaling.idle_replica_count.filter(|idle| *idle >= min) {
        let message = format!(
            "{idle} is not less than minReplicaCount ({min}); leave it out, and an idle pool has \
             minReplicaCount"
        );
        found.error(path.key("idleReplicaCount"), message);
    }
    found.above_zero(&path.key("objective"), "ttft", scaling.objective.ttft);
    let share = scaling.objective.share;
    if !(share > 0.0 && share < 1.0) {
        let message =
            format!("{share} must be more than 0 and less than 1; write for example 0.99");
        found.error(path.key("objective").key("share"), message);
    }
    if scaling.target_concurrency == Some(0) {
        let message = "must be at least 1; leave it out for 80 % of maxInFlight";
        found.error(path.key("targetConcurrency"), message);
    }
    if let Some(target) = scaling.target_concurrency.filter(|target| *target > pool.max_in_flight) {
        let message = format!(
            "{target} is more than a replica takes (maxInFlight is {}): requests are held before \
             the pool grows",
            pool.max_in_flight
        );
        found.warn(path.key("targetConcurrency"), message);
    }
    found.above_zero(path, "stableWindow", scaling.stable_window);
    found.above_zero(path, "panicWindow", scaling.panic_window);
    if scaling.panic_window > scaling.stable_window {
        let message = format!(
            "{} is longer than stableWindow ({}); make it the shorter one",
            format_duration(scaling.panic_window),
            format_duration(scaling.stable_window)
        );
        found.error(path.key("panicWindow"), message);
    }
    if scaling.panic_threshold.is_nan() || scaling.panic_threshold <= 1.0 {
        let message = format!(
            "{} would begin a panic at any load; write a number over 1, such as 2",
            scaling.panic_threshold
        );
        found.error(path.key("panicThreshold"), message);
    }
}

fn processes(processes: &Processes, most: u32, path: &Path, found: &mut Findings) {
    if processes.command.first().is_none_or(|program| program.trim().is_empty()) {
        let message = "empty; give the program and its arguments, with {port} among them";
        found.error(path.key("command"), message);
    } else if let Some(words) = command::unsplit(&processes.command) {
        let list = flow_list(&words);
        let message = format!("one word, which no shell splits; write {list}");
        found.error(path.key("command"), message);
    } else if !processes.uses("{port}") {
        let message = "does not contain {port}, the port that the replica must serve on; add for example --port, \"{port}\"";
        found.error(path.key("command"), message);
    }
    for name in processes.env.keys().filter(|name| name.is_empty() || name.contains(['=', '\0'])) {
        let message = "is not the name of an environment variable";
        found.error(path.key("env").key(name), message);
    }
    let (first, last) = processes.ports;
    if first > last {
        let message = format!("the range runs backwards; write {last}-{first}");
        found.error(path.key("ports"), message);
    } else if first == 0 {
        found.error(path.key("ports"), "port 0 can't be leased; begin at 1024 or above");
    } else if u32::from(last - first) + 1 < most {
        let ports = u32::from(last - first) + 1;
        let message =
            format!("{ports} ports for up to {most} replicas (maxReplicaCount); widen the range");
        found.error(path.key("ports"), message);
    }
    gpus(processes, most, path, found);
    found.above_zero(path, "startTimeout", processes.start_timeout);
    found.above_zero(path, "hungAfter", processes.hung_after);
}

fn gpus(processes: &Processes, most: u32, path: &Path, found: &mut Findings) {
    let mut seen = HashSet::new();
    for (at, gpu) in processes.gpus.iter().enumerate() {
        if gpu.trim().is_empty() {
            found.error(path.key("gpus").index(at), "a GPU's name must not be empty");
        } else if !seen.insert(gpu) {
            let message = format!("GPU {gpu} is given twice; each is leased to one replica");
            found.error(path.key("gpus").index(at), message);
        }
    }
    if processes.gpus.is_empty() && processes.uses("{gpu}") {
        let message = "empty, and {gpu} is used; name as many as maxReplicaCount, as in [0, 1]";
        found.error(path.key("gpus"), message);
    } else if !processes.gpus.is_empty() && (processes.gpus.len() as u64) < u64::from(most) {
        let message = format!(
            "{} for up to {most} replicas (maxReplicaCount); name more, or lower maxReplicaCount",
            processes.gpus.len()
        );
        found.error(path.key("gpus"), message);
    }
}
