//! `GET /queue?pool=NAME&limit=N`: the requests that a pool of this gateway holds, for operators.
//!
//! No text of a request is shown, and at most [`MOST`] requests are.

use std::sync::Arc;

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use serde::Deserialize;

use crate::control::reload::Pools;
use crate::pool::Pool;

/// How many entries are shown if the query does not say so, and the most that it may ask for.
pub(super) const USUAL: usize = 100;
pub(super) const MOST: usize = 1000;

/// The query of a view of one pool.
#[derive(Deserialize)]
pub(super) struct Shown {
    pool: Option<String>,
    pub(super) limit: Option<usize>,
    /// The id of one request.
    pub(super) id: Option<String>,
}

/// The route.
pub(crate) fn routes(pools: Pools) -> Router {
    let answer = move |query: Query<Shown>| std::future::ready(queue(&pools, &query));
    Router::new().route("/queue", get(answer))
}

fn queue(pools: &Pools, query: &Shown) -> Response {
    match named(pools, query, "/queue") {
        Ok(pool) => Json(pool.queue_report(query.limit.unwrap_or(USUAL).min(MOST))).into_response(),
        Err(refusal) => refusal.into_response(),
    }
}

/// The pool that a query names, or the only one; otherwise the refusal.
pub(super) fn named(
    pools: &Pools,
    query: &Shown,
    path: &str,
) -> Result<Arc<Pool>, (StatusCode, String)> {
    let pools = pools.all();
    let pool = match (&query.pool, pools.as_slice()) {
        (None, [only]) => Some(only),
        (None, _) => None,
        (Some(name), pools) => pools.iter().find(|pool| *pool.name == **name),
    };
    pool.cloned().ok_or_else(|| {
        let names: Vec<_> = pools.iter().map(|pool| &*pool.name).collect();
        let why =
            format!("name a pool, as in `{path}?pool=NAME`; known are {}\n", names.join(", "));
        let status = match query.pool {
            Some(_) => StatusCode::NOT_FOUND,
            None => StatusCode::BAD_REQUEST,
        };
        (status, why)
    })
}
