//! The replica that gave an answer, in the answer's extensions: the edge may name it in a header.

use std::net::SocketAddr;

/// An answer's replica, by address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AnsweredBy(pub(crate) SocketAddr);
