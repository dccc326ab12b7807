//! Behaviour of a pool: holding, retries, endpoints, and its lock.

use std::net::SocketAddr;
use std::time::Duration;

use forebay_config::PriorityClass;
use forebay_scheduling::queue::Entry;
use futures_util::FutureExt;

use super::*;
use crate::answer::failure::{Cause, Failure};
use crate::answer::refusal::Refusal;
use crate::pool::endpoint::{Endpoint, Probe, Probed};

mod endpoints;
mod failed_start;
mod hold;
mod locking;
mod moves;
mod overload;
mod pick;
mod retries;
mod slow_start;

fn pool(settings: &str) -> Arc<Pool> {
    let settings: serde_json::Value = serde_json::from_str(settings).expect("valid");
    let settings = serde_json::from_value(settings).expect("a pool");
    Pool::new(settings, Arc::new(Notify::new()))
}

/// A small request with so many seconds until its deadline.
pub(crate) fn ticket(seconds: u64) -> Ticket {
    let accepted = Instant::now();
    let entry = Entry {
        tenant: "anonymous".into(),
        class: PriorityClass::Normal,
        bytes: 10,
        tokens: 2,
        cost: 2,
        answer: 0,
        late_from: None,
        kind: 0,
    };
    Ticket::new(entry, accepted, accepted + Duration::from_secs(seconds))
}

fn address(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// An endpoint that was up before it was first asked.
fn ready(pool: &Arc<Pool>, port: u16) {
    pool.add_endpoint(address(port));
    pool.probed(address(port), Probe::Health, Probed::Answered);
}

/// Gives an endpoint its whole room at once.
fn warm(pool: &Arc<Pool>, address: SocketAddr) {
    let mut state = pool.scheduling.lock();
    let (id, now) = (state.endpoints.id(address).expect("added"), Instant::now());
    state.endpoints.change(id, now, Endpoint::skip_slow_start);
    let deferred = pool.release_held(&mut state, now);
    drop(state);
    deferred.run(pool);
}

/// An endpoint whose server has just begun, and answers.
fn cold(pool: &Arc<Pool>, port: u16) {
    pool.add_endpoint(address(port));
    pool.probed(address(port), Probe::Health, Probed::Failed("it answers 503".into()));
    pool.probed(address(port), Probe::Health, Probed::Answered);
}

fn failure(cause: Cause) -> Failure {
    Failure::new(cause, "replica's message")
}
