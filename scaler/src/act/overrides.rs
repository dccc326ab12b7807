//! `POST /pools/NAME/override`: an operator pauses a pool, fixes its count, or lets Forebay decide.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use tokio::sync::{mpsc, oneshot};

use crate::act::HttpAnswer;
use crate::decide::Override;

const USAGE: &str = "which override? POST /pools/NAME/override with ?paused=true, ?replicas=N, or \
                     ?none=true to decide again\n";

/// An override to set for one pool. `done` gets its meaning in words, or the refusal.
pub(crate) struct OverrideRequest {
    pub(crate) pool: String,
    pub(crate) new: Override,
    pub(crate) done: oneshot::Sender<Result<String, OverrideRefused>>,
}

/// The reason why an override is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OverrideRefused {
    UnknownPool(Vec<String>),
    TooMany(u32),
    NotLeading,
    /// The pool has no target, so the override would have no effect.
    Unscaled,
}

/// The route.
pub(crate) fn route(overrides: mpsc::Sender<OverrideRequest>) -> Router {
    Router::new().route("/pools/{name}/override", post(take)).with_state(overrides)
}

async fn take(
    State(overrides): State<mpsc::Sender<OverrideRequest>>,
    Path(pool): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> HttpAnswer {
    let new = match parse(&query) {
        Ok(new) => new,
        Err(why) => return (StatusCode::BAD_REQUEST, why),
    };
    let (done, result) = oneshot::channel();
    let sent = overrides.send(OverrideRequest { pool: pool.clone(), new, done }).await;
    let result = if sent.is_ok() { result.await.ok() } else { None };
    match result {
        Some(Ok(sentence)) => (StatusCode::OK, format!("{pool}: {sentence}\n")),
        Some(Err(OverrideRefused::UnknownPool(known))) => {
            let known = known.join(", ");
            (StatusCode::NOT_FOUND, format!("there is no pool `{pool}`; known are {known}\n"))
        }
        Some(Err(OverrideRefused::TooMany(most))) => {
            let why = format!("{pool} may have at most {most} replicas (maxReplicaCount)\n");
            (StatusCode::BAD_REQUEST, why)
        }
        Some(Err(OverrideRefused::NotLeading)) => {
            let why = "another scaler leads; send the override to that one\n".to_owned();
            (StatusCode::SERVICE_UNAVAILABLE, why)
        }
        Some(Err(OverrideRefused::Unscaled)) => {
            let why = format!("pool {pool} has no scale target, so nothing scales it\n");
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
            .map_err(|_| format!("`{count}` is not a replica count\n")),
        _ => Err(USAGE.to_owned()),
    }
}

impl Override {
    /// Its meaning from now on, in words.
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
    fn an_override_is_one_of_three_and_anything_else_is_answered_with_the_usage() {
        for (key, value, want) in [
            ("paused", "true", Ok(Override::Paused)),
            ("paused", "false", Ok(Override::None)),
            ("none", "true", Ok(Override::None)),
            ("replicas", "3", Ok(Override::Fixed(3))),
            ("replicas", "-1", Err("`-1` is not a replica count\n".to_owned())),
            ("replica", "3", Err(USAGE.to_owned())),
        ] {
            let query = HashMap::from([(key.to_owned(), value.to_owned())]);
            assert_eq!(parse(&query), want, "{key}={value}");
        }
        assert_eq!(parse(&HashMap::new()), Err(USAGE.to_owned()));
    }
}
