//! Reports about a pool's endpoints: from the scaler's feed, the probes, discovery and the
//! configuration.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_config::InFlightLimit;
use forebay_discovery::Member;
use forebay_scheduling::pick::EndpointId;
use forebay_signals::{ColdStart, ProcessEnd};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::Pool;
use super::scheduling::{Scheduling, ZeroBarrier};
use crate::pool::endpoint::{Due, Endpoint, EngineReport, Probe, Probed, Rules};
use crate::pool::model_registry::ServedModel;

impl Pool {
    /// Adds an endpoint; true if it is new, or listed again.
    pub(crate) fn add_endpoint(&self, address: SocketAddr) -> bool {
        let mut state = self.scheduling.lock();
        let (rules, now) = (Rules::of(&self.settings()), Instant::now());
        let endpoints = &mut state.endpoints;
        let new = match endpoints.id(address) {
            None => {
                endpoints.add(address, Endpoint::new(rules, now), now);
                true
            }
            Some(id) if endpoints.get(id).is_some_and(Endpoint::is_gone) => {
                endpoints.change(id, now, |endpoint| endpoint.come_back(rules, now));
                true
            }
            Some(_) => false,
        };
        state.set_budget(rules.limit.most);
        if new {
            self.changed.notify_one();
        }
        new
    }

    /// Removes an endpoint. True if it stays, with its probe, until the requests there have ended.
    pub(crate) fn remove_endpoint(&self, address: SocketAddr) -> bool {
        let mut state = self.scheduling.lock();
        let now = Instant::now();
        let mut stays = false;
        if let Some(id) = state.endpoints.id(address) {
            stays = state.endpoints.change(id, now, Endpoint::leave) == Some(true);
            if stays {
                state.endpoints.unlist(id);
            } else {
                state.remove_endpoint(id);
            }
        }
        self.models.remove(address);
        state.set_budget(self.settings().max_in_flight);
        state.note_readiness(now);
        self.changed.notify_one();
        stays
    }

    /// Starts or ends the draining of an endpoint.
    pub(crate) fn drain_endpoint(self: &Arc<Self>, address: SocketAddr, draining: bool) {
        if self.scheduling.peek().endpoints.is_ordered_to_drain(address) == Some(draining) {
            return;
        }
        self.change(address, |endpoint| endpoint.drain(draining));
    }

    /// Takes discovery's report on an endpoint.
    pub(crate) fn found(self: &Arc<Self>, address: SocketAddr, member: &Member) {
        self.change(address, |endpoint| endpoint.found(member));
    }

    /// Changes an endpoint; `change` returns whether anything changed.
    fn change(self: &Arc<Self>, address: SocketAddr, change: impl FnOnce(&mut Endpoint) -> bool) {
        self.locked(|state| {
            let now = Instant::now();
            let id = state.endpoints.id(address);
            let changed = id.and_then(|id| state.endpoints.change(id, now, change)) == Some(true);
            state.note_readiness(now);
            if changed {
                self.changed.notify_one();
            }
            changed
        });
    }

    /// Changes the state, and releases requests under the same lock if `change` returns true.
    fn locked(self: &Arc<Self>, change: impl FnOnce(&mut Scheduling) -> bool) {
        let mut state = self.scheduling.lock();
        if change(&mut state) {
            let deferred = self.release_held(&mut state, Instant::now());
            drop(state);
            deferred.run(self);
        }
    }

    /// Takes the end of an endpoint's process, as the scaler reports it.
    pub(crate) fn process_ended(&self, address: SocketAddr, how: ProcessEnd) {
        let endpoints = &mut self.scheduling.lock().endpoints;
        if let Some(id) = endpoints.id(address) {
            endpoints.change(id, Instant::now(), |endpoint| endpoint.process_ended(how));
        }
    }

    /// Begins the probe of an endpoint that is due, or returns when one will be; `None` if there is no
    /// such endpoint. See [`Endpoint::due`].
    pub(crate) fn begin_probe(
        &self,
        (address, id): (SocketAddr, EndpointId),
        spread: impl FnOnce() -> Duration,
        closed: bool,
        now: Instant,
    ) -> Option<Due> {
        let endpoints = &mut self.scheduling.peek().endpoints;
        let id = endpoints.still(address, id)?;
        endpoints.begin_probe(id, (spread, closed), now)
    }

    /// The endpoint's number, and its way to wake the task that probes it; `None` if there is no such
    /// endpoint.
    pub(crate) fn probe_wake(&self, address: SocketAddr) -> Option<(EndpointId, Arc<Notify>)> {
        let endpoints = &self.scheduling.peek().endpoints;
        let id = endpoints.id(address)?;
        Some((id, endpoints.get(id)?.probe_wake()))
    }

    /// Whether no request is at an endpoint.
    pub(crate) fn is_idle(&self, address: SocketAddr) -> bool {
        let endpoints = &self.scheduling.peek().endpoints;
        let endpoint = endpoints.id(address).and_then(|id| endpoints.get(id));
        endpoint.is_some_and(|endpoint| endpoint.in_flight() == 0)
    }

    /// Whether a report about an endpoint's KV cache is of use: the policy or the limit learns from it.
    pub(crate) fn wants_cache_report(&self, address: SocketAddr) -> bool {
        let learned = self.settings().limit == InFlightLimit::Learned;
        let mut state = self.scheduling.peek();
        let id = state.endpoints.id(address);
        id.is_some_and(|id| learned || state.wants_cache_report(id))
    }

    /// Whether an engine's count of waiting requests is of use.
    pub(crate) fn wants_waiting(
        &self,
        (address, id): (SocketAddr, EndpointId),
        now: Instant,
    ) -> bool {
        let endpoints = &self.scheduling.peek().endpoints;
        let endpoint = endpoints.still(address, id).and_then(|id| endpoints.get(id));
        endpoint.is_some_and(|endpoint| endpoint.wants_waiting(now))
    }

    /// Takes an engine's own report.
    pub(crate) fn engine_reported(self: &Arc<Self>, address: SocketAddr, report: &EngineReport) {
        self.locked(|state| {
            let Some(id) = state.endpoints.id(address) else { return false };
            if let Some(cache) = &report.cache {
                state.cache_reported(id, cache);
            }
            let now = Instant::now();
            state.endpoints.change(id, now, |endpoint| endpoint.engine_reported(report, now));
            true
        });
    }

    /// Whether a probe's outcome would change nothing at an endpoint. See [`Endpoint::is_as_probed`].
    pub(crate) fn is_as_probed(
        &self,
        (address, id): (SocketAddr, EndpointId),
        probe: Probe,
        outcome: &Probed,
    ) -> bool {
        let endpoints = &self.scheduling.peek().endpoints;
        let endpoint = endpoints.still(address, id).and_then(|id| endpoints.get(id));
        endpoint.is_some_and(|endpoint| endpoint.is_as_probed(probe, outcome))
    }

    /// Takes a probe's outcome; true if the endpoint's health changed.
    pub(crate) fn probed(
        self: &Arc<Self>,
        address: SocketAddr,
        probe: Probe,
        outcome: Probed,
    ) -> bool {
        let mut changed = false;
        self.locked(|state| {
            let endpoints = &mut state.endpoints;
            let Some(id) = endpoints.id(address) else { return false };
            let now = Instant::now();
            let last = endpoints.is_last(id);
            let probed = |endpoint: &mut Endpoint| endpoint.probed(probe, outcome, last, now);
            changed = endpoints.change(id, now, probed) == Some(true);
            endpoints.relieve_hung(now);
            if changed {
                state.note_readiness(now);
                self.changed.notify_one();
            }
            // After a token probe an endpoint that was only suspected takes requests again.
            changed || probe == Probe::Token
        });
        changed
    }

    /// Takes the models that an endpoint lists.
    pub(crate) fn serves(self: &Arc<Self>, address: SocketAddr, models: Vec<ServedModel>) {
        if self.models.has(address, &models) {
            return;
        }
        self.locked(|state| {
            // It may have been removed while it answered. One that leaves is still probed.
            let Some(id) = state.endpoints.id(address) else { return false };
            if state.endpoints.get(id).is_none_or(Endpoint::is_gone) {
                return false;
            }
            let names = models.iter().map(|model| (model.id.as_str(), model.parent.is_none()));
            let changed = state.endpoints.list(id, names);
            self.models.set(address, models);
            changed
        });
    }

    /// Puts the zero barrier up for a lease, or lifts it.
    pub(crate) fn set_barrier(self: &Arc<Self>, barrier: Option<(u64, Duration)>) {
        if barrier.is_none() && self.scheduling.peek().barrier.is_none() {
            return;
        }
        self.locked(|state| {
            let before = state.barrier.map(|barrier| barrier.epoch);
            let now = Instant::now();
            state.barrier = barrier.map(|(epoch, lease)| ZeroBarrier { epoch, until: now + lease });
            if before != barrier.map(|(epoch, _)| epoch) {
                self.changed.notify_one();
            }
            true
        });
    }

    /// Does the work of each second; false if a report would say what it said a second ago. If the
    /// barrier's lease has run out, the scaler is gone: the endpoints that it wanted drained serve again
    /// while their probes answer. Nor do its reports of failing starts count any longer.
    pub(crate) fn tick(self: &Arc<Self>) -> bool {
        let recorded = self.figures.take_recorded();
        let now = Instant::now();
        if !recorded && !self.scheduling.changed() && self.scheduling.peek().is_at_rest(now) {
            return false;
        }
        let (mut ran_out, mut failed_start_ran_out) = (false, false);
        self.locked(|state| {
            state.endpoints.advance(now);
            state.backlog.refused = 0;
            ran_out = state.barrier.is_some() && !state.barrier_is_up(now);
            if ran_out {
                state.barrier = None;
                state.endpoints.change_all(now, |endpoint| {
                    endpoint.drain(false);
                });
                state.note_readiness(now);
            }
            failed_start_ran_out = state.failed_start_ran_out(now);
            true
        });
        self.estimate(Instant::now());
        if failed_start_ran_out {
            tracing::warn!("{}: the scaler is silent; requests are held again", self.name);
        }
        if ran_out {
            tracing::warn!("{}: the scaler is silent; serving with what answers", self.name);
        }
        // What changes from now on is in the next report, or in this one already.
        self.scheduling.clear_changed();
        true
    }

    /// Takes the scaler's figures of cold starts, how many replicas it wants, and how many starts have
    /// failed since its last report.
    pub(crate) fn set_cold_start(
        &self,
        cold_start: Option<ColdStart>,
        desired: u32,
        failed: usize,
    ) {
        let known = || self.scheduling.peek().has_cold_start(cold_start, desired);
        if failed > 0 || !known() {
            let now = Instant::now();
            self.scheduling.lock().set_cold_start(cold_start, desired, failed, now);
        }
    }
}
