//! The rules for names that lead to pools: models, aliases, adapters, splits, fallbacks.

use std::collections::{BTreeSet, HashMap};

use super::Findings;
use crate::yaml::problem::Path;
use crate::{Config, Pool};

pub(super) fn check(config: &Config, found: &mut Findings) {
    let pools = Path::default().key("pools");
    names(config, &pools, found);
    for (at, pool) in config.pools.iter().enumerate() {
        aliases(pool, &pools.index(at).key("aliases"), found);
        fallback(config, at, &pools.index(at).key("fallback"), found);
    }
    routes(config, &Path::default().key("gateway").key("routes"), found);
}

/// Every name that clients may send for a pool, with its place.
fn all_names<'a>(pool: &'a Pool, path: &Path) -> Vec<(&'a String, Path)> {
    let list = |field: &str, names: &'a [String]| {
        let path = path.key(field);
        names.iter().enumerate().map(move |(at, name)| (name, path.index(at)))
    };
    let aliases = pool.aliases.keys().map(|name| (name, path.key("aliases").key(name)));
    list("models", &pool.models).chain(aliases).chain(list("adapters", &pool.adapters)).collect()
}

/// A name leads to one pool, unless a route splits it.
fn names(config: &Config, pools: &Path, found: &mut Findings) {
    let split: BTreeSet<_> = config.gateway.routes.iter().map(|route| &route.model).collect();
    let (mut seen, mut any) = (HashMap::new(), None);
    for (at, pool) in config.pools.iter().enumerate() {
        let path = pools.index(at);
        let mut here = BTreeSet::new();
        for (name, place) in all_names(pool, &path) {
            let first = *seen.entry(name).or_insert(at);
            if name.trim().is_empty() {
                found.error(place, "a model's name must not be empty");
            } else if !here.insert(name) {
                found.error(place, format!("`{name}` is given twice; remove one"));
            } else if first != at && !split.contains(name) {
                let message = format!(
                    "`{name}` is served by pools[{first}] already; a model leads to one pool, \
                     unless gateway.routes splits it"
                );
                found.error(place, message);
            }
        }
        if !pool.models.is_empty() {
            continue;
        }
        if let Some(first) = any {
            let message = format!(
                "pools[{first}] takes any model already; list the models of one of the two"
            );
            found.error(path.key("models"), message);
        } else {
            any = Some(at);
        }
    }
}

/// An alias stands for a name that the replicas know.
fn aliases(pool: &Pool, path: &Path, found: &mut Findings) {
    for (alias, model) in &pool.aliases {
        if model.trim().is_empty() {
            found.error(path.key(alias), "empty; give the model name that is sent to the replicas");
        } else if !serves(pool, model) {
            let message = format!("`{model}` is not one of the pool's models or adapters; add it");
            found.error(path.key(alias), message);
        }
    }
}

/// Whether the replicas know this name, by the configuration.
fn serves(pool: &Pool, model: &str) -> bool {
    let known = |names: &[String]| names.iter().any(|name| name == model);
    pool.models.is_empty() || known(&pool.models) || known(&pool.adapters)
}

fn fallback(config: &Config, at: usize, path: &Path, found: &mut Findings) {
    let pool = &config.pools[at];
    let Some(fallback) = &pool.fallback else { return };
    if fallback.pool == pool.name {
        found.error(path.key("pool"), "is this pool itself; name another");
    } else if let Some(other) = lookup(config, &fallback.pool, path.key("pool"), found) {
        sent_as(other, fallback.model.as_deref(), &path.key("model"), found);
    }
    if let Some(after) = fallback.after.filter(|after| *after >= pool.hold.timeout) {
        let message = format!(
            "{} is not before the end of the hold (hold.timeout); make it shorter, or leave it \
             out",
            crate::format_duration(after)
        );
        found.warn(path.key("after"), message);
    }
}

fn lookup<'a>(
    config: &'a Config,
    name: &str,
    path: Path,
    found: &mut Findings,
) -> Option<&'a Pool> {
    let pool = config.pools.iter().find(|pool| pool.name == name);
    if pool.is_none() {
        let known: Vec<_> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
        found.error(path, format!("no pool is named `{name}`; there are: {}", known.join(", ")));
    }
    pool
}

/// Checks the model name that is sent to a pool's replicas in place of the requested one.
fn sent_as(pool: &Pool, model: Option<&str>, path: &Path, found: &mut Findings) {
    match model {
        Some(model) if !serves(pool, model) => {
            let message = format!("`{model}` is not one of the models of pool `{}`", pool.name);
            found.error(path.clone(), message);
        }
        _ => {}
    }
}

fn routes(config: &Config, path: &Path, found: &mut Findings) {
    let mut seen = HashMap::new();
    for (at, route) in config.gateway.routes.iter().enumerate() {
        let path = path.index(at);
        if route.model.trim().is_empty() {
            found.error(path.key("model"), "a model's name must not be empty");
        }
        let first = *seen.entry(&route.model).or_insert(at);
        if first != at {
            let message = format!("`{}` is split by gateway.routes[{first}] already", route.model);
            found.error(path.key("model"), message);
        }
        let shares = path.key("pools");
        if route.pools.is_empty() {
            found.error(shares.clone(), "empty; name the pools that share the model");
        } else if route.pools.iter().all(|share| share.weight == 0) {
            found.error(shares.clone(), "all weights are 0: no pool would serve the model");
        }
        let mut pools = BTreeSet::new();
        for (nth, share) in route.pools.iter().enumerate() {
            let path = shares.index(nth);
            if !pools.insert(&share.pool) {
                let message = format!("`{}` is given twice; add up its weights", share.pool);
                found.error(path.key("pool"), message);
            } else if let Some(pool) = lookup(config, &share.pool, path.key("pool"), found) {
                sent_as(pool, share.model.as_deref(), &path.key("model"), found);
            }
        }
    }
}
