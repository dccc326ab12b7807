//! The server as clients see it: connections, paths, and the head and framing of each reply.
//!
//! Everything that a client could tell uvicorn by is here. Uses the APIs ([`super::api`]) and the
//! engine; neither imports from here.

pub(crate) mod dev;
pub(crate) mod realtime;
pub(crate) mod reply;
pub(crate) mod route;
pub(crate) mod server;
pub(crate) mod wire;
