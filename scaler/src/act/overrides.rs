//! `POST /pools/NAME/override`: an operator pauses a pool, fixes its count, or lets Forebay decide.
//! `POST /pools/NAME/wake` and `/zero`: an operator's order for this moment, from which the pool scales
//! on.

use std::collections::HashMap;

use axum::Router;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use tokio::sync::{mpsc, oneshot};

use crate::act::HttpAnswer;
use crate::decide::{Order, Override};

const USAGE: &str = "which override? POST /pools/NAME/override with ?paused=true, ?replicas=N, or \
                     ?none=true to decide again\n";

/// Known pools that a refusal names.
const NAMED: usize = 20;

/// A command of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// Stands until it is removed.
    Override(Override),
    /// Holds for the next decision.
    Order(Order),
}

/// A command for one pool. `done` gets its meaning in words, or the refusal.
pub(crate) struct CommandRequest {
    pub(crate) pool: String,
    pub(crate) command: Command,
    pub(crate) done: oneshot::Sender<Result<String, CommandRefused>>,
}

/// The reason why a command is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum CommandRefused {
    UnknownPool(Vec<String>),
    TooMany(u32),
    NotLeading,
    /// The pool has no target, so the command would have no effect.
    Unscaled,
    /// An override stands, which an order does not change.
    Overridden(Override),
    /// It has requests, or may have some: it is not at rest.
    Busy(String),
}

/// The routes.
pub(crate) fn route(commands: mpsc::Sender<CommandRequest>) -> Router {
    Router::new()
        .route("/pools/{name}/override", post(set_override))
        .route("/pools/{name}/wake", post(wake))
        .route("/pools/{name}/zero", post(zero))
        .with_state(commands)
}

async fn set_override(
    State(commands): State<mpsc::Sender<CommandRequest>>,
    Path(pool): Path<String>,
    Query(query): Query<HashMap<String, String>>,
) -> HttpAnswer {
    match parse(&query) {
        Ok(new) => send(&commands, pool, Command::Override(new)).await,
        Err(why) => (StatusCode::BAD_REQUEST, why),
    }
}

async fn wake(
    State(commands): State<mpsc::Sender<CommandRequest>>,
    Path(pool): Path<String>,
) -> HttpAnswer {
    send(&commands, pool, Command::Order(Order::Wake)).await
}

async fn zero(
    State(commands): State<mpsc::Sender<CommandRequest>>,
    Path(pool): Path<String>,
) -> HttpAnswer {
    send(&commands, pool, Command::Order(Order::Rest)).await
}

async fn send(
    commands: &mpsc::Sender<CommandRequest>,
    pool: String,
    command: Command,
) -> HttpAnswer {
    let (done, result) = oneshot::channel();
    let sent = commands.send(CommandRequest { pool: pool.clone(), command, done }).await;
    let result = if sent.is_ok() { result.await.ok() } else { None };
    match result {
        Some(Ok(sentence)) => (StatusCode::OK, format!("{pool}: {sentence}\n")),
        Some(Err(refused)) => refused.answer(&pool),
        None => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n".to_owned()),
    }
}

/// Says that there is no such pool, and names up to 20 pools that there are.
#[must_use]
pub fn unknown_pool(pool: &str, known: impl IntoIterator<Item = String>) -> String {
    let mut known: Vec<_> = known.into_iter().collect();
    let left_out = known.len().saturating_sub(NAMED);
    known.truncate(NAMED);
    if known.is_empty() {
        return format!("there is no pool `{pool}`: no pool is configured");
    }
    let mut known = known.join(", ");
    if left_out > 0 {
        known += &format!(", and {left_out} more");
    }
    format!("there is no pool `{pool}`; known are {known}")
}

impl CommandRefused {
    fn answer(self, pool: &str) -> HttpAnswer {
        match self {
            Self::UnknownPool(known) => (StatusCode::NOT_FOUND, unknown_pool(pool, known) + "\n"),
            Self::TooMany(most) => {
                let why = format!("{pool} may have at most {most} replicas (maxReplicaCount)\n");
                (StatusCode::BAD_REQUEST, why)
            }
            Self::NotLeading => {
                let why = "another scaler leads; send the command to that one\n".to_owned();
                (StatusCode::SERVICE_UNAVAILABLE, why)
            }
            Self::Unscaled => {
                let why = format!("pool {pool} has no scale target, so nothing scales it\n");
                (StatusCode::CONFLICT, why)
            }
            Self::Overridden(stands) => {
                let stands = stands.sentence();
                let why = format!("{pool} has an override ({stands}); remove it first\n");
                (StatusCode::CONFLICT, why)
            }
            Self::Busy(why) => {
                (StatusCode::CONFLICT, format!("{pool} does not go to zero: {why}\n"))
            }
        }
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

    #[test]
    fn the_refusal_of_an_unknown_pool_names_some_that_are_known() {
        let of = |known: usize| unknown_pool("x", (0..known).map(|n| format!("p{n}")));
        assert_eq!(of(0), "there is no pool `x`: no pool is configured");
        assert_eq!(of(2), "there is no pool `x`; known are p0, p1");
        assert!(of(1_000).ends_with("p18, p19, and 980 more"), "{}", of(1_000));
    }
}
