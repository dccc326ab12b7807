//! `/v1/models`: every name that a tenant may send, also of models that no replica serves now.

use serde_json::{Value, json};

use crate::route::{ListedModel, Routes};
use crate::tenant::Tenant;

/// The creation time of all models: 1 November 2026. vLLM gives the time of the call, so that no
/// two lists are the same.
const CREATED: u64 = 1_793_491_200;

fn model(listed: &ListedModel) -> Value {
    json!({
        "id": listed.name, "object": "model", "created": CREATED, "owned_by": "forebay",
        "root": listed.root, "parent": listed.parent, "max_model_len": listed.max_model_len,
    })
}

pub(crate) fn list(routes: &Routes, tenant: &Tenant) -> Value {
    let all = routes.all();
    let data: Vec<_> =
        all.iter().filter(|listed| tenant.may_use(&listed.name)).map(model).collect();
    json!({"object": "list", "data": data})
}

/// One model by its name in a path, where `/` may be written `%2F`.
pub(crate) fn one(routes: &Routes, tenant: &Tenant, name: &str) -> Option<Value> {
    let name = percent_encoding::percent_decode_str(name).decode_utf8().ok()?;
    let all = routes.all();
    let found = all.iter().find(|listed| listed.name == name);
    found.filter(|listed| tenant.may_use(&listed.name)).map(model)
}
