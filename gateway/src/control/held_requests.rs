//! `GET /queue?pool=NAME&limit=N`: the requests that a pool of this gateway holds, for operators.
//!
//! No text of a request is shown, and at most [`MOST`] requests are.

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use crate::control::reload::Pools;

/// How many requests are shown if the query does not say so, and the most that it may ask for.
const USUAL: usize = 100;
const MOST: usize = 1000;

#[derive(Deserialize)]
struct Shown {
    pool: Option<String>,
    limit: Option<usize>,
}

/// The route.
pub(crate) fn routes(pools: Pools) -> Router {
    let answer = move |query: Query<Shown>| std::future::ready(queue(&pools, &query));
    Router::new().route("/queue", get(answer))
}

fn queue(pools: &Pools, query: &Shown) -> Response {
    let pools = pools.all();
    let pool = match (&query.pool, pools.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(name), pools) => pools.iter().find(|pool| *pool.name == **name),
    };
    let Some(pool) = pool else {
        let names: Vec<_> = pools.iter().map(|pool| &*pool.name).collect();
        let why =
            format!("name a pool, as in `/queue?pool=NAME`; known are {}\n", names.join(", "));
        let status = match query.pool {
            Some(_) => StatusCode::NOT_FOUND,
            None => StatusCode::BAD_REQUEST,
        };
        return (status, why).into_response();
    };
    Json(pool.queue_report(query.limit.unwrap_or(USUAL).min(MOST))).into_response()
}
