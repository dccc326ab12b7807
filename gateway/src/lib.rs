//! Forebay's data plane: accepts, routes, holds, picks, relays and meters requests.
//!
//! The pure parts (`queue`, `fields`, `answer`, `endpoint`) know no socket and no clock. A request's
//! way is `proxy`; what all threads share is a `pool` each, behind one short lock.

mod answer;
mod body;
mod drain;
mod endpoint;
mod fields;
mod follow;
mod listen;
mod metric;
mod models;
mod paths;
mod pool;
mod probe;
mod proxy;
mod queue;
mod refusal;
mod relay;
mod report;
mod route;
mod server;
mod socket;
mod upstream;

pub use metric::{BUCKETS, describe};
pub use server::{Gateway, StartError};
