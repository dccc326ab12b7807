//! `/v1/models`: every pool's names, those of sleeping models included.

use serde_json::{Value, json};

use crate::route::Routes;
use crate::tenant::Tenant;

fn model(name: &str, created: u64) -> Value {
    json!({"id": name, "object": "model", "created": created, "owned_by": "forebay", "root": name, "parent": null})
}

/// The list. `created` is the gateway's start: stable, other than vLLM's, which is the time of the
/// call.
pub(crate) fn list(routes: &Routes, tenant: &Tenant, created: u64) -> Value {
    let mut names: Vec<String> = routes.pools().iter().flat_map(|pool| pool.models()).collect();
    names.dedup();
    names.retain(|name| tenant.may_use(name));
    let data: Vec<_> = names.iter().map(|name| model(name, created)).collect();
    json!({"object": "list", "data": data})
}

/// One of them.
pub(crate) fn one(routes: &Routes, tenant: &Tenant, created: u64, name: &str) -> Option<Value> {
    let known = routes.pools().iter().any(|pool| pool.models().iter().any(|known| known == name));
    (known && tenant.may_use(name)).then(|| model(name, created))
}
