//! The requests that the console's *Try it* sent: which replica answers each, and how long it was held.
//!
//! Clients don't learn the replica, and a head that goes out with a heartbeat comes before both are known.
//! An operator asks for them by the request's id, which tells these requests apart. A client may send
//! such an id too, which shows it nothing; the last [`MOST`] are kept.

use std::collections::VecDeque;
use std::net::SocketAddr;

use parking_lot::Mutex;
use serde::Serialize;

/// The beginning of these requests' ids.
pub const TRY_PREFIX: &str = "try-";
/// Requests that are kept.
const MOST: usize = 32;

/// A request that has its first token.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct TriedRequest {
    pub(crate) id: String,
    /// The replica.
    pub(crate) endpoint: SocketAddr,
    pub(crate) held_seconds: f64,
}

/// The last requests of *Try it* at a pool.
#[derive(Debug, Default)]
pub(crate) struct TriedRequests(Mutex<VecDeque<TriedRequest>>);

impl TriedRequests {
    /// Keeps a request, if its id is one of these.
    pub(crate) fn note(&self, id: &[u8], endpoint: SocketAddr, held_seconds: f64) {
        if !id.starts_with(TRY_PREFIX.as_bytes()) {
            return;
        }
        let id = String::from_utf8_lossy(id).into_owned();
        let mut last = self.0.lock();
        if last.len() >= MOST {
            last.pop_front();
        }
        last.push_back(TriedRequest { id, endpoint, held_seconds });
    }

    /// The request with this id, the newest if there are several.
    pub(crate) fn find(&self, id: &str) -> Option<TriedRequest> {
        self.0.lock().iter().rev().find(|request| request.id == id).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_marked_requests_are_kept_and_a_bounded_number() {
        let tried = TriedRequests::default();
        let at: SocketAddr = "10.0.0.1:8000".parse().expect("an address");
        tried.note(b"other", at, 0.0);
        assert_eq!(tried.find("other"), None);
        for n in 0..=MOST {
            tried.note(format!("try-{n}").as_bytes(), at, n as f64);
        }
        assert_eq!(tried.find("try-0"), None, "the oldest made way");
        assert_eq!(tried.find("try-1").map(|request| request.held_seconds), Some(1.0));
        assert_eq!(tried.0.lock().len(), MOST);
    }
}
