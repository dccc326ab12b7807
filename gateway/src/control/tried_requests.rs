//! `GET /tried?pool=NAME&id=ID`: the replica and the hold time of a request of the console's *Try it*.

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};

use crate::control::held_requests::{Shown, named};
use crate::control::reload::Pools;

/// The route.
pub(crate) fn routes(pools: Pools) -> Router {
    let answer = move |query: Query<Shown>| std::future::ready(tried(&pools, &query));
    Router::new().route("/tried", get(answer))
}

fn tried(pools: &Pools, query: &Shown) -> Response {
    let pool = match named(pools, query, "/tried") {
        Ok(pool) => pool,
        Err(refusal) => return refusal.into_response(),
    };
    match query.id.as_deref().and_then(|id| pool.tried.find(id)) {
        Some(request) => Json(request).into_response(),
        None => (StatusCode::NOT_FOUND, "no such request has a token\n").into_response(),
    }
}
