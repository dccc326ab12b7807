//! What the gateway answers by itself: health, version, the list of models.

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, header};
use serde_json::Value;

use crate::api::Api;
use crate::body::Body;
use crate::models;
use crate::proxy::Proxy;
use crate::refusal::Refusal;

/// The answer, or why there is none; `None` for a request to an inference API.
pub(crate) fn answer(proxy: &Proxy, parts: &Parts) -> Option<Result<Response<Body>, Refusal>> {
    let path = parts.uri.path();
    let get = || -> Result<(), Refusal> {
        if matches!(parts.method, Method::GET | Method::HEAD) {
            return Ok(());
        }
        Err(wrong_method(parts, "GET"))
    };
    Some(match path {
        "/health" | "/ping" => get().map(|()| Response::new(Body::full(Bytes::new()))),
        "/version" => {
            get().map(|()| json(&serde_json::json!({"version": env!("CARGO_PKG_VERSION")})))
        }
        "/v1/models" => get().and_then(|()| {
            let tenant = proxy.tenants.of(&parts.headers)?;
            Ok(json(&models::list(&proxy.routes.load(), &tenant)))
        }),
        _ => {
            if let Some(name) = path.strip_prefix("/v1/models/") {
                get().and_then(|()| {
                    let tenant = proxy.tenants.of(&parts.headers)?;
                    let model = models::one(&proxy.routes.load(), &tenant, name);
                    model.map(|model| json(&model)).ok_or_else(|| Refusal::UnknownModel {
                        model: name.to_owned(),
                        known: "see /v1/models".to_owned(),
                    })
                })
            } else if Api::of(path).is_none() {
                Err(Refusal::UnknownPath(path.to_owned()))
            } else if parts.method != Method::POST {
                Err(wrong_method(parts, "POST"))
            } else {
                return None;
            }
        }
    })
}

fn wrong_method(parts: &Parts, allowed: &'static str) -> Refusal {
    let (path, method) = (parts.uri.path().to_owned(), parts.method.to_string());
    Refusal::WrongMethod { path, method, allowed }
}

fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::full(value.to_string().into()));
    let kind = HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}
