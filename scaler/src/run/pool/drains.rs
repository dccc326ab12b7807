//! The stop of replicas: which ones are drained, and when the target may stop them.
//!
//! A replica is marked as draining, every gateway reports it empty, and then the target stops it. The last
//! replica takes the same way, under the zero barrier.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use forebay_config::Millis;
use forebay_signals::{Health, PoolSignals};

use super::starts::endpoints;
use super::{LastReport, PoolScaler};
use crate::act::targets::{Drains, ReplicaStatus, ScaleTarget};
use crate::decide::Condition;

/// Time after which a drain request ends even if its pod has not stopped.
const REQUEST: Millis = Millis::from_secs(3600);

/// Replicas on their way out, and the barrier.
#[derive(Default)]
pub(super) struct Departures {
    /// Replicas that gateways drain.
    pub(super) draining: BTreeSet<String>,
    /// Replicas that the target stops.
    pub(super) stopped: BTreeSet<String>,
    /// Drain requests, by the endpoint whose pod is about to stop.
    pub(super) requested: BTreeMap<SocketAddr, RequestedDrain>,
    /// The barrier's last epoch.
    pub(super) epoch: u64,
    /// Whether the barrier is up.
    pub(super) barrier: bool,
    /// Whether the pool is at zero and every gateway has reported its last replicas empty.
    pub(super) closed: bool,
}

/// A request to drain a replica.
pub(super) struct RequestedDrain {
    at: Millis,
    /// The replica at the address. The request does not apply to a later one there.
    id: Option<String>,
}

impl PoolScaler {
    /// Drains the replica at an endpoint whose pod is about to stop. From now on it does not count.
    pub(crate) fn drain_endpoint(&mut self, endpoint: SocketAddr, now: Millis) {
        self.departures.requested.insert(endpoint, RequestedDrain { at: now, id: None });
    }

    /// Whether no gateway has a request in flight at the endpoint or sends it another.
    pub(crate) fn is_empty_at(&self, reports: &[LastReport<'_>], endpoint: SocketAddr) -> bool {
        let address = endpoint.to_string();
        let empty = |report: &LastReport<'_>| match (report.silent_for, report.signals) {
            (Some(silent_for), _) => silent_for >= self.rules.stale_after,
            (None, Some(signals)) => is_empty(signals, Some(&address)),
            (None, None) => true,
        };
        self.has_report() && reports.iter().all(empty)
    }

    /// The statuses, with replicas under a drain request shown as draining.
    pub(super) fn with_requested<'a>(
        &mut self,
        statuses: &'a BTreeMap<String, ReplicaStatus>,
        now: Millis,
    ) -> Cow<'a, BTreeMap<String, ReplicaStatus>> {
        self.departures.requested.retain(|address, request| {
            let replica = statuses.values().find(|status| {
                status.address == Some(*address)
                    && request.id.as_ref().is_none_or(|id| *id == status.id)
            });
            request.id = replica.map(|status| status.id.clone());
            request.id.is_some() && now < request.at + REQUEST
        });
        if self.departures.requested.is_empty() {
            return Cow::Borrowed(statuses);
        }
        let mut statuses = statuses.clone();
        for status in statuses.values_mut() {
            if status
                .address
                .is_some_and(|address| self.departures.requested.contains_key(&address))
            {
                status.condition = Condition::Draining;
            }
        }
        Cow::Owned(statuses)
    }

    /// Recalls the replicas that the target spared because it stopped others in their place.
    pub(super) fn keep_spared(
        &mut self,
        statuses: &BTreeMap<String, ReplicaStatus>,
        target: &impl ScaleTarget,
    ) {
        let spared = |id: &String| statuses.get(id).is_some_and(|status| status.spared);
        for id in self.departures.stopped.extract_if(.., |id| spared(id) && target.recall(id)) {
            tracing::info!("{}: replica {id} is kept: another one was stopped", self.name);
        }
    }

    /// Drains replicas, or keeps draining ones, so that `desired` stay. Puts the barrier up at zero.
    pub(super) fn reconcile(
        &mut self,
        desired: u32,
        staying: u32,
        alive: &[ReplicaStatus],
        reports: &[LastReport<'_>],
        target: &impl ScaleTarget,
        now: Millis,
    ) {
        if desired > staying {
            let mut missing = (desired - staying) as usize;
            // A draining replica is back sooner than a new one has started. Ready ones come first.
            let rank = |id: &String| {
                let status = alive.iter().find(|status| status.id == *id);
                (status.map_or(0, |status| status.rank), !self.roster.ready.contains(id))
            };
            let mut back: Vec<_> = self.departures.draining.iter().cloned().collect();
            back.sort_by_key(rank);
            // If another party decides how many replicas stop, all of them serve until it does.
            let most = if target.drains() == Drains::All { back.len() } else { missing };
            for id in back.into_iter().take(most) {
                tracing::info!("{}: replica {id} is kept", self.name);
                self.departures.draining.remove(&id);
                missing = missing.saturating_sub(1);
            }
            let mut recalled: Vec<_> = self.departures.stopped.iter().cloned().collect();
            recalled.retain(|id| {
                missing > 0 && target.recall(id) && {
                    missing -= 1;
                    true
                }
            });
            for id in recalled {
                tracing::info!("{}: replica {id} is kept after all", self.name);
                self.departures.stopped.remove(&id);
            }
        } else if desired < staying && may_drain(target.drains(), desired) {
            let mut victims: Vec<_> = alive
                .iter()
                .filter(|status| !self.departures.draining.contains(&status.id))
                .collect();
            // Replicas that are not ready go first; then those with the fewest requests in flight; of equal
            // ones the one whose prefix cache is worth least; of equal ones the youngest.
            victims.sort_by_key(|status| {
                let in_flight: u32 = endpoints(reports, status).map(|e| e.in_flight).sum();
                let since = self.roster.starts.get(&status.id).map(|start| start.since);
                let cached: u64 = endpoints(reports, status).map(|e| e.cached_tokens).sum();
                let worth = cached / since.map_or(1, |since| now.since(since).as_secs().max(1));
                let ready = self.roster.ready.contains(&status.id);
                (Reverse(status.rank), ready, in_flight, worth, Reverse(since))
            });
            for status in victims.into_iter().take((staying - desired) as usize) {
                self.departures.draining.insert(status.id.clone());
            }
        }
        // The barrier stays up until the last replica is gone. After a takeover the next process knows only
        // the replicas that it finds.
        let going = !self.departures.draining.is_empty() || !self.departures.stopped.is_empty();
        let barrier = desired == 0 && going;
        if barrier && !self.departures.barrier {
            // The time makes it higher than any epoch of an earlier scaler.
            self.departures.epoch = now.get().max(self.departures.epoch + 1);
        }
        self.departures.barrier = barrier;
    }

    /// Draining replicas that every gateway reports empty.
    pub(super) fn drained(
        &self,
        reports: &[LastReport<'_>],
        alive: &[ReplicaStatus],
    ) -> Vec<String> {
        // Without a report nothing is known to be empty.
        if reports.is_empty() || !self.has_report() {
            return Vec::new();
        }
        let done = |status: &&ReplicaStatus| {
            self.departures.draining.contains(&status.id)
                && reports.iter().all(|report| {
                    if let Some(silent_for) = report.silent_for {
                        // The gateway may still have streams there, so the stop waits until it is stale;
                        // for the last replica, until it is no longer listed.
                        return !self.departures.barrier && silent_for >= self.rules.stale_after;
                    }
                    let Some(signals) = report.signals else { return true };
                    let closed = !self.departures.barrier
                        || signals.zero_epoch == Some(self.departures.epoch);
                    let address = status.address.map(|address| address.to_string());
                    let empty = is_empty(signals, address.as_deref());
                    closed && empty && (!self.departures.barrier || signals.queue_depth == 0)
                })
        };
        alive.iter().filter(done).map(|status| status.id.clone()).collect()
    }
}

/// Whether a gateway has no request in flight at the address and sends it no other.
fn is_empty(signals: &PoolSignals, address: Option<&str>) -> bool {
    let endpoint = address.and_then(|address| signals.endpoints.get(address)?.as_ref());
    endpoint.is_none_or(|e| e.health == Health::Draining && e.in_flight == 0)
}

fn may_drain(drains: Drains, desired: u32) -> bool {
    match drains {
        Drains::Each => true,
        Drains::All => desired == 0,
        Drains::Never => false,
    }
}
