//! Forebay's data plane: accepts, routes, holds, picks, relays and meters requests.
//!
//! Begin with `exchange/proxy.rs`, which is a request's way step by step. The pure parts (scanning
//! and editing a request, judging and metering an answer, queueing, picking) know no socket and no
//! clock. All threads share the pools.

mod answer;
mod control;
mod edge;
mod exchange;
mod figures;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
#[doc(hidden)]
pub mod inspect;
mod net;
mod pool;
mod read;
mod realtime;
mod route;
mod tenant;
mod text;
mod wire;

pub use control::predecessor::Busy;
pub use control::server::{Draining, Gateway, ProcessParts};
pub use control::start_error::StartError;
pub use exchange::access_log::{AccessLogForm, set_access_log_form};
pub use figures::{BUCKETS, describe, describe_gen_ai};
pub use net::machine_limits;
pub use net::tls::TlsError;
pub use pool::tried::TRY_PREFIX;
pub use tenant::api_keys::{KeysError, hash_key};
