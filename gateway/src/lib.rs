//! Forebay's data plane: accepts, routes, holds, picks, relays and meters requests.
//!
//! The pure parts (`scan`, `edit`, `judge`, `meter`, `stream`, `plain`, `queue`, `endpoint`) know no
//! socket and no clock. A request's way is `proxy`; what all threads share is a `pool` each, behind one
//! short lock.

mod abridged;
mod activity;
mod alarm;
mod answer_body;
mod answered_by;
mod api;
mod arrivals;
mod asked;
mod bodies;
mod body;
pub mod bounds;
mod bucket;
mod budget;
mod clients;
mod connection;
mod context;
mod cors;
mod dial;
mod directory;
mod discover;
mod drain;
mod edge;
mod edit;
mod ejection;
mod endpoint;
mod exchange;
mod exposed;
mod failure;
mod figures;
mod fingerprint;
mod follow;
mod forwarded;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod guard;
mod head;
mod held;
mod host;
mod identity;
#[doc(hidden)]
pub mod inspect;
mod json;
mod judge;
mod key;
mod keys;
mod limit;
mod linger;
mod listen;
mod local;
mod meter;
mod metric;
mod models;
mod multipart;
mod ours;
mod outcome;
mod outgoing;
mod patience;
mod pieces;
mod plain;
mod pool;
mod predecessor;
mod probe;
mod proxy;
mod queue;
mod realtime;
mod record;
mod refusal;
mod relay;
mod reload;
mod report;
mod respond;
mod route;
mod scan;
mod served;
mod server;
mod share;
mod socket;
mod sse;
mod start_error;
mod stream;
mod streams;
mod tenant;
mod tenants;
mod tls;
mod traffic;
mod upload;
mod upstream;
mod waiting;
mod watch;

pub use keys::{KeysError, hash_key};
pub use metric::{BUCKETS, describe};
pub use predecessor::Busy;
pub use server::{Draining, Gateway};
pub use start_error::StartError;
pub use tls::TlsError;
