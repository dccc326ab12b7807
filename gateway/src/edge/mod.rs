//! Everything around a request: listeners, connections, hosts and origins, CORS, ids.
//!
//! The edge refuses what no request may be before anything is read, and writes the headers that every
//! answer has. Uses `exchange` and `realtime`.

pub(crate) mod allowed_paths;
pub(crate) mod connection;
pub(crate) mod cors;
pub(crate) mod forwarded;
pub(crate) mod guard;
pub(crate) mod head;
pub(crate) mod layers;
pub(crate) mod listen;
