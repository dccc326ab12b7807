//! Replaces the running binary by another one, without clients noticing.
//!
//! The running process, the *old* one, starts the binary at its own path with its own arguments,
//! and gives it a private socket pair as standard input. The pair has no path, so no other process
//! can open it, and each end notices at once when the other has ended. Then:
//!
//! 1. the old one sends its listening sockets: clients', one for each thread, admin, KEDA;
//! 2. the new one reads its configuration and starts all that can fail, but accepts nothing and
//!    decides nothing, and reports that it is ready;
//! 3. the old scaler lets go of its place and of its local replicas, and the new one takes them;
//! 4. the new one serves and reports it. The old one closes its sockets and finishes its requests; it
//!    reports its remaining requests until it ends.
//!
//! A failure before step 4 ends the new process, and the old one goes on as before.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::post;
use forebay_gateway::Busy;
use forebay_scaler::ScalerState;
use forebay_scaler::act::targets::processes::Facts;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

mod channel;
pub(crate) mod command;
pub(crate) mod new;
pub(crate) mod old;
mod program;

pub(crate) use program::{OPEN_FILES, Program, TAKE_OVER};

/// How long the new process may take until it is ready, unless the operator gives another time.
pub(crate) const WITHIN: Duration = Duration::from_secs(60);

/// A message between the two processes.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Message {
    /// From the old one: a listening socket, as its descriptor.
    Socket(Place),
    /// All sockets have been sent.
    Start {
        /// The old one's PID.
        process: u32,
    },
    /// A local replica; its tether, where it runs, as its descriptor.
    Replica(Box<Facts>),
    /// The new one is in charge.
    TakeOver { known: Box<ScalerState>, busy: Busy },
    /// The requests that the old one still has to finish.
    Busy(Busy),
    /// From the new one: all that can fail has been done.
    Ready,
    /// It can't start.
    Failed(String),
    /// It serves.
    Taken,
    /// It stops, and the old one is to stop too.
    Stop,
}

/// The use of a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    role: Role,
    /// The address as configured, with port 0 for any free port.
    configured: SocketAddr,
}

/// The port that a socket belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Role {
    Clients,
    Admin,
    Keda,
}

/// An operator's order to upgrade.
pub(crate) struct Order {
    pub(crate) within: Duration,
    done: Option<oneshot::Sender<Result<String, String>>>,
    /// Ensures that there is one upgrade at a time.
    _only: OwnedSemaphorePermit,
}

impl Order {
    /// Reports the outcome in a sentence.
    pub(crate) fn done(self, outcome: Result<String, String>) {
        match &outcome {
            Ok(sentence) => tracing::info!("upgraded: {sentence}"),
            Err(why) => tracing::error!("not upgraded: {why}; this process keeps serving"),
        }
        if let Some(done) = self.done {
            let _ = done.send(outcome);
        }
    }
}

/// Operators' orders: `POST /upgrade` on the admin port, and SIGQUIT.
pub(crate) struct Orders {
    quit: Signal,
    posted: mpsc::Receiver<Order>,
    only: Arc<Semaphore>,
}

#[derive(Clone)]
struct OrderRoute {
    orders: mpsc::Sender<Order>,
    only: Arc<Semaphore>,
}

impl Orders {
    /// Returns the orders, and their route on the admin port.
    pub(crate) fn new() -> anyhow::Result<(Self, Router)> {
        let (orders, posted) = mpsc::channel(1);
        let only = Arc::new(Semaphore::new(1));
        let route_state = OrderRoute { orders, only: Arc::clone(&only) };
        let quit = signal(SignalKind::quit())?;
        let route = Router::new().route("/upgrade", post(order)).with_state(route_state);
        Ok((Self { quit, posted, only }, route))
    }

    /// The next order. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Order {
        loop {
            tokio::select! {
                Some(order) = self.posted.recv() => return order,
                _ = self.quit.recv() => match Arc::clone(&self.only).try_acquire_owned() {
                    Ok(only) => return Order { within: WITHIN, done: None, _only: only },
                    Err(_) => tracing::warn!("SIGQUIT: {BUSY}"),
                },
            }
        }
    }
}

const BUSY: &str = "an upgrade is under way already";

#[derive(Deserialize)]
struct OrderQuery {
    within: Option<String>,
}

async fn order(
    State(route): State<OrderRoute>,
    Query(order): Query<OrderQuery>,
) -> (StatusCode, String) {
    let within = order.within.as_deref().map(forebay_config::parse_duration).transpose();
    let within = match within {
        Ok(within) => within.unwrap_or(WITHIN),
        Err(error) => return (StatusCode::BAD_REQUEST, format!("within: {error}\n")),
    };
    let busy = (StatusCode::CONFLICT, format!("{BUSY}\n"));
    let Ok(only) = route.only.try_acquire_owned() else { return busy };
    let (done, outcome) = oneshot::channel();
    let order = Order { within, done: Some(done), _only: only };
    if route.orders.send(order).await.is_err() {
        return (StatusCode::CONFLICT, "this process is stopping\n".to_owned());
    }
    match outcome.await {
        Ok(Ok(sentence)) => (StatusCode::OK, format!("{sentence}\n")),
        Ok(Err(why)) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{why}\n")),
        Err(_) => (StatusCode::CONFLICT, "this process is stopping\n".to_owned()),
    }
}
