//! What discovery tells of a pool's endpoints, and of pods that are none yet.

use std::net::SocketAddr;
use std::sync::Arc;

use forebay_discovery::Member;
use forebay_signals::{Health, PodPhase, Waiting};
use tokio::time::Instant;

use super::{Books, Pool};
use crate::pool::waiting;

/// A pod without an address, with Kubernetes' own word on it.
pub(super) type Pending = (Waiting, String);

impl Pool {
    /// Discovery's word on one endpoint.
    pub(crate) fn found(self: &Arc<Self>, address: SocketAddr, member: &Member) {
        let changed = {
            let mut books = self.books.lock();
            let changed = books.endpoints.get_mut(&address).is_some_and(|e| e.found(member));
            books.note_readiness(Instant::now());
            changed
        };
        if changed {
            self.news.notify_one();
            self.release();
        }
    }

    /// A pod that has no address yet; `None` when it has, or is gone.
    pub(crate) fn set_waiting(&self, name: String, pending: Option<Pending>) {
        let mut books = self.books.lock();
        let before = match pending.clone() {
            Some(pending) => books.waiting.insert(name, pending),
            None => books.waiting.remove(&name),
        };
        if before != pending {
            self.news.notify_one();
        }
    }
}

impl Books {
    /// What clients are told of why nothing is ready; empty when something is.
    pub(super) fn why_waiting(&self) -> String {
        if self.endpoints.values().any(|endpoint| endpoint.health() == Health::Ready) {
            return String::new();
        }
        let pods = self.waiting.values().map(|(waiting, word)| (waiting.phase, word.as_str()));
        let endpoints = self.endpoints.values().filter_map(|endpoint| endpoint.on_its_way());
        waiting::why(pods.chain(endpoints).filter(|(phase, _)| *phase != PodPhase::Healthy))
    }
}
