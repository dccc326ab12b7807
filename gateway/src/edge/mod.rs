//! Everything around a request: listeners, connections, hosts and origins, CORS, request ids.
//!
//! The edge refuses invalid requests before any body is read, and writes the headers that every
//! answer has. Uses all rooms below it.
//!
//! In the order of a request's way: `listen` accepts a connection, `connection` serves it, `http1`
//! speaks HTTP/1 with it, and `layers` takes the steps around each request. The steps are `head` (checks of every head),
//! `guard` (against foreign pages), `cors`, `allowed_paths` and `forwarded`.

pub(crate) mod allowed_paths;
pub(crate) mod connection;
pub(crate) mod cors;
pub(crate) mod forwarded;
pub(crate) mod guard;
pub(crate) mod head;
pub(crate) mod http1;
pub(crate) mod layers;
pub(crate) mod listen;
