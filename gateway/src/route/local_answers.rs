//! The answers that need no replica: health, version, the list of models.

use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, header};
use serde_json::Value;

use crate::answer::refusal::Refusal;
use crate::route::Routes;
use crate::route::models;
use crate::tenant::Tenant;

/// The answer or a refusal; `None` for a request that needs a replica. The caller has checked that
/// clients may use the path and the method. `tenant` finds who asks, where the answer depends on it.
pub(crate) fn answer(
    routes: &Routes,
    tenant: impl FnOnce() -> Result<Arc<Tenant>, Refusal>,
    parts: &Parts,
) -> Option<Result<Response<Bytes>, Refusal>> {
    Some(match parts.uri.path() {
        "/health" | "/ping" => Ok(Response::new(Bytes::new())),
        "/version" => Ok(json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")}))),
        "/v1/models" => tenant().map(|tenant| json(&models::list(routes, &tenant))),
        path => {
            let name = path.strip_prefix("/v1/models/")?;
            tenant().and_then(|tenant| one_model(routes, &tenant, name))
        }
    })
}

fn one_model(routes: &Routes, tenant: &Tenant, name: &str) -> Result<Response<Bytes>, Refusal> {
    let model = models::one(routes, tenant, name);
    model.map(|model| json(&model)).ok_or_else(|| Refusal::UnknownModel {
        model: name.to_owned(),
        known: "see /v1/models".to_owned(),
    })
}

fn json(value: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(value.to_string()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
