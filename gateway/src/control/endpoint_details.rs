//! `GET /endpoints?pool=NAME&limit=N`: the endpoints of a pool in detail, for operators.

use axum::extract::Query;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::control::held_requests::{MOST, Shown, USUAL, named};
use crate::control::reload::Pools;

/// The route.
pub(crate) fn routes(pools: Pools) -> Router {
    let answer = move |query: Query<Shown>| std::future::ready(endpoints(&pools, &query));
    Router::new().route("/endpoints", get(answer))
}

fn endpoints(pools: &Pools, query: &Shown) -> Response {
    match named(pools, query, "/endpoints") {
        Ok(pool) => {
            Json(pool.endpoint_report(query.limit.unwrap_or(USUAL).min(MOST))).into_response()
        }
        Err(refusal) => refusal.into_response(),
    }
}
