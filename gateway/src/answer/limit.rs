//! The limits of a tenant that a request can exceed.

use std::fmt;

/// A limit that a request exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    Requests(u64),
    Tokens(u64),
    Concurrent(u32),
}

impl Limit {
    /// Its label in metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Requests(_) => "requests",
            Self::Tokens(_) => "tokens",
            Self::Concurrent(_) => "concurrent",
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Requests(limit) => write!(f, "{limit} requests per minute"),
            Self::Tokens(limit) => write!(f, "{limit} tokens per minute"),
            Self::Concurrent(limit) => write!(f, "{limit} requests at once"),
        }
    }
}
