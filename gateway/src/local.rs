//! What the gateway answers by itself: health, version, the list of models.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Response, header};
use serde_json::Value;

use crate::body::Body;
use crate::models;
use crate::proxy::Proxy;
use crate::refusal::Refusal;

/// The answer, or why there is none; `None` for a request to an inference API. Path and method are
/// such as clients may use.
pub(crate) fn answer(proxy: &Proxy, parts: &Parts) -> Option<Result<Response<Body>, Refusal>> {
    Some(match parts.uri.path() {
        "/health" | "/ping" => Ok(Response::new(Body::full(Bytes::new()))),
        "/version" => Ok(json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")}))),
        "/v1/models" => proxy
            .tenants
            .of(&parts.headers)
            .map(|tenant| json(&models::list(&proxy.routes.load(), &tenant))),
        path => one_model(proxy, parts, path.strip_prefix("/v1/models/")?),
    })
}

fn one_model(proxy: &Proxy, parts: &Parts, name: &str) -> Result<Response<Body>, Refusal> {
    let tenant = proxy.tenants.of(&parts.headers)?;
    let model = models::one(&proxy.routes.load(), &tenant, name);
    model.map(|model| json(&model)).ok_or_else(|| Refusal::UnknownModel {
        model: name.to_owned(),
        known: "see /v1/models".to_owned(),
    })
}

fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::full(value.to_string().into()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
