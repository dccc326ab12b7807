//! What surrounds every request.

pub(crate) mod allowed_paths;
pub(crate) mod connection;
pub(crate) mod cors;
pub(crate) mod forwarded;
pub(crate) mod guard;
pub(crate) mod head;
pub(crate) mod layers;
pub(crate) mod listen;
