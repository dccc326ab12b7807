//! `POST /pools/NAME/override`: a person pauses a pool, fixes its count, or lets it go on.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use tokio::sync::{mpsc, oneshot};

use crate::decide::Override;

const USAGE: &str = "which one? POST /pools/NAME/override with ?paused=true, ?replicas=N, or \
                     ?none=true to decide again\n";

/// An order for one pool; told whether it was taken.
pub(crate) struct Order {
    pub(crate) pool: String,
    pub(crate) order: Override,
    pub(crate) done: oneshot::Sender<Result<String, Refused>>,
}

/// Why an order is not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    UnknownPool(Vec<String>),
    TooMany(u32),
    NotLeading,
    /// Nothing would come of it.
    Unscaled,
}

/// The route.
pub(crate) fn route(orders: mpsc::Sender<Order>) -> Router {
    Router::new().route("/pools/{name}/override", post(take)).with_state(orders)
}

type Answer = (StatusCode, String);

async fn take(
    State(orders): State<mpsc::Sender<Order>>,
    Path(pool): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> Answer {
    let order = match parse(&query) {
        Ok(order) => order,
        Err(why) => return (StatusCode::BAD_REQUEST, why),
    };
    let (done, told) = oneshot::channel();
    let sent = orders.send(Order { pool: pool.clone(), order, done }).await;
    let outcome = if sent.is_ok() { told.await.ok() } else { None };
    match outcome {
        Some(Ok(sentence)) => (StatusCode::OK, format!("{pool}: {sentence}\n")),
        Some(Err(Refused::UnknownPool(known))) => {
            let known = known.join(", ");
            (StatusCode::NOT_FOUND, format!("there is no pool `{pool}`; known are {known}\n"))
        }
        Some(Err(Refused::TooMany(most))) => {
            let why = format!("maxReplicaCount of {pool} is {most}; ask for no more\n");
            (StatusCode::BAD_REQUEST, why)
        }
        Some(Err(Refused::NotLeading)) => {
            let why = "another scaler leads; ask that one\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, why)
        }
        Some(Err(Refused::Unscaled)) => {
            let why = format!("pool {pool} has no target, so nothing scales it\n");
            (StatusCode::CONFLICT, why)
        }
        None => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned()),
    }
}

fn parse(query: &HashMap<String, String>) -> Result<Override, String> {
    let mut known = query.iter().map(|(key, value)| (key.as_str(), value.as_str()));
    match (known.next(), known.next()) {
        (Some(("paused", "true")), None) => Ok(Override::Paused),
        (Some(("paused", "false") | ("none", "true")), None) => Ok(Override::None),
        (Some(("replicas", count)), None) => count
            .parse()
            .map(Override::Fixed)
            .map_err(|_| format!("`{count}` is no count of replicas\n")),
        _ => Err(USAGE.to_owned()),
    }
}

impl Override {
    /// What it means from now on.
    pub(crate) fn sentence(self) -> String {
        match self {
            Self::None => "Forebay decides".to_owned(),
            Self::Paused => "paused: the count stays as it is".to_owned(),
            Self::Fixed(1) => "fixed at 1 replica".to_owned(),
            Self::Fixed(count) => format!("fixed at {count} replicas"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_is_one_of_three_and_anything_else_is_told_the_usage() {
        for (key, value, want) in [
            ("paused", "true", Ok(Override::Paused)),
            ("paused", "false", Ok(Override::None)),
            ("none", "true", Ok(Override::None)),
            ("replicas", "3", Ok(Override::Fixed(3))),
            ("replicas", "-1", Err("`-1` is no count of replicas\n".to_owned())),
            ("replica", "3", Err(USAGE.to_owned())),
        ] {
            let query = HashMap::from([(key.to_owned(), value.to_owned())]);
            assert_eq!(parse(&query), want, "{key}={value}");
        }
        assert_eq!(parse(&HashMap::new()), Err(USAGE.to_owned()));
    }
}
