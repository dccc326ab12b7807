//! What the feed of the scaler, the probes and the configuration say of a pool's endpoints.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_signals::{ColdStart, ProcessEnd};
use tokio::time::Instant;

use super::Pool;
use crate::pool::endpoint::{Endpoint, Probe, Probed, Rules};
use crate::pool::model_registry::ServedModel;

impl Pool {
    pub(crate) fn add_endpoint(&self, address: SocketAddr) -> bool {
        let mut books = self.books.lock();
        let rules = Rules::of(&self.settings());
        let mut new = false;
        let endpoint = books.endpoints.entry(address).or_insert_with(|| {
            new = true;
            Endpoint::new(rules, Instant::now())
        });
        if endpoint.is_gone() {
            new = true;
            endpoint.come_back(rules);
        }
        books.set_budget(rules.limit);
        if new {
            self.news.notify_one();
        }
        new
    }

    /// Whether it stays for what is in flight there, and is to be probed until that has ended.
    pub(crate) fn remove_endpoint(&self, address: SocketAddr) -> bool {
        let mut books = self.books.lock();
        // Streams there go on as long as they do.
        let stays = books.endpoints.get_mut(&address).is_some_and(Endpoint::leave);
        if !stays {
            books.endpoints.remove(&address);
        }
        self.served.gone(address);
        books.set_budget(self.settings().max_in_flight);
        books.note_readiness(Instant::now());
        self.news.notify_one();
        stays
    }

    pub(crate) fn drain_endpoint(self: &Arc<Self>, address: SocketAddr, draining: bool) {
        let changed = {
            let mut books = self.books.lock();
            let changed = books.endpoints.get_mut(&address).is_some_and(|e| e.drain(draining));
            books.note_readiness(Instant::now());
            changed
        };
        if changed {
            self.news.notify_one();
            self.release();
        }
    }

    /// The scaler saw an endpoint's process end.
    pub(crate) fn process_ended(&self, address: SocketAddr, how: ProcessEnd) {
        self.with_endpoint(address, |endpoint| endpoint.process_ended(how));
    }

    /// The probe's word on one endpoint; true if that changed how it stands.
    pub(crate) fn probed(
        self: &Arc<Self>,
        address: SocketAddr,
        probe: Probe,
        word: Probed,
    ) -> bool {
        let now = Instant::now();
        let changed = {
            let mut books = self.books.lock();
            let last = books.is_last(address);
            let endpoint = books.endpoints.get_mut(&address);
            let changed = endpoint.is_some_and(|it| it.probed(probe, word, last, now));
            books.note_readiness(now);
            books.relieve_hung(now);
            changed
        };
        // One that only was suspected takes requests again.
        if changed || probe == Probe::Token {
            self.release();
        }
        if changed {
            self.news.notify_one();
        }
        changed
    }

    /// What one endpoint says that it serves.
    pub(crate) fn serves(self: &Arc<Self>, address: SocketAddr, models: Vec<ServedModel>) {
        if self.served.tell(address, models) {
            self.release();
        }
    }

    /// What to ask an endpoint now; `None` once there is no such endpoint.
    pub(crate) fn probe_due(&self, address: SocketAddr) -> Option<Option<Probe>> {
        let mut books = self.books.lock();
        books.endpoints.get_mut(&address).map(|endpoint| endpoint.due(Instant::now()))
    }

    /// Holds everything for a barrier, or lifts it.
    pub(crate) fn set_barrier(self: &Arc<Self>, barrier: Option<(u64, Duration)>) {
        {
            let mut books = self.books.lock();
            let before = books.barrier.map(|(epoch, _)| epoch);
            books.barrier = barrier.map(|(epoch, lease)| (epoch, Instant::now() + lease));
            if before != barrier.map(|(epoch, _)| epoch) {
                self.news.notify_one();
            }
        }
        self.release();
    }

    /// Once a second. A barrier that nobody renewed has run out: the scaler is gone, and what it
    /// wanted drained serves on, if its probe answers.
    pub(crate) fn tick(self: &Arc<Self>) {
        let ran_out = {
            let mut books = self.books.lock();
            books.turned_away = 0;
            let ran_out = books.barrier.is_some() && !books.barrier_is_up();
            if ran_out {
                books.barrier = None;
                for endpoint in books.endpoints.values_mut() {
                    endpoint.drain(false);
                }
                books.note_readiness(Instant::now());
            }
            ran_out
        };
        if ran_out {
            tracing::warn!("{}: the scaler is silent; serving with what answers", self.name);
        }
        self.release();
    }

    /// What the scaler has learned of starts, and how many replicas it wants.
    pub(crate) fn set_cold_start(&self, cold_start: Option<ColdStart>, desired: u32) {
        let mut books = self.books.lock();
        books.cold_start = cold_start;
        let starting = desired > 0 && books.none_ready.is_some();
        books.starting = starting.then(|| books.starting.unwrap_or_else(Instant::now));
    }
}
