//! Forebay's data plane: accepts, routes, holds, picks, relays and meters requests.
//!
//! The pure parts (`scan`, `edit`, `judge`, `meter`, `stream`, `plain`, `queue`, `endpoint`) know no
//! socket and no clock. A request's way is `proxy`; what all threads share is a `pool` each, behind one
//! short lock.

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

pub use control::predecessor::Busy;
pub use control::server::{Draining, Gateway};
pub use control::start_error::StartError;
pub use figures::{BUCKETS, describe};
pub use net::bounds;
pub use net::tls::TlsError;
pub use tenant::api_keys::{KeysError, hash_key};
