//! What gateways are told of a pool.

use std::collections::BTreeMap;

use forebay_signals::{Barrier, LastEnd, PoolReplicas, Replica, ReplicaState};

use super::PoolLoop;
use crate::act::targets::{Phase, ReplicaStatus};

/// How long gateways hold for zero without hearing from us.
/// Longer than a silent gateway's word is trusted: its lease ends after we have stopped to.
const LEASE_MS: u64 = 9_000;

impl PoolLoop {
    /// What gateways are told while the target stops everything.
    pub(crate) fn leaving(&self, statuses: &BTreeMap<String, ReplicaStatus>) -> PoolReplicas {
        let mut told = self.published(0, statuses);
        for replica in told.replicas.values_mut().flatten() {
            replica.state = ReplicaState::Draining;
        }
        PoolReplicas { why: "shutting down".to_owned(), barrier: None, ..told }
    }

    /// Why a replica that runs takes nothing, where it was ready, or is to be replaced.
    fn why_out(&self, id: &str) -> Option<String> {
        let start = self.starts.get(id)?;
        match &start.replaced {
            Some(why) => Some(format!("{why}, and is ended and started anew")),
            None => start.ready_ms.map(|_| start.silence.reason.clone()),
        }
    }

    pub(super) fn published(
        &self,
        desired: u32,
        statuses: &BTreeMap<String, ReplicaStatus>,
    ) -> PoolReplicas {
        let replica = |status: &ReplicaStatus| {
            let leaving = self.draining.contains(&status.id) || self.stopped.contains(&status.id);
            let own = || status.reason.clone();
            let (state, reason) = match status.phase {
                _ if leaving => (ReplicaState::Draining, own()),
                Phase::Stopping => (ReplicaState::Draining, own()),
                Phase::Failed => (ReplicaState::Failed, own()),
                _ if self.ready.contains(&status.id) => (ReplicaState::Ready, own()),
                Phase::Pending => (ReplicaState::Pending, own()),
                Phase::Running => match self.why_out(&status.id) {
                    Some(why) => (ReplicaState::Failed, why),
                    None => (ReplicaState::Starting, own()),
                },
            };
            let address = status.address.map(|address| address.to_string());
            let last_end =
                status.ended.map(|(address, how)| LastEnd { address: address.to_string(), how });
            Replica { address, state, reason, last_end }
        };
        let replicas =
            statuses.iter().map(|(id, status)| (id.clone(), Some(replica(status)))).collect();
        PoolReplicas {
            desired,
            why: match &self.trouble {
                Some(trouble) => format!("{}, but: {trouble}", self.why),
                None => self.why.clone(),
            },
            active: !self.closed,
            figures: self.figures.as_ref().map(|it| it.known().clone()).unwrap_or_default(),
            target_concurrency: Some(f64::from(self.policy.target_concurrency)),
            cold_start: self.state.cold_starts().quantiles(),
            barrier: self.barrier.then_some(Barrier { epoch: self.epoch, lease_millis: LEASE_MS }),
            replicas,
        }
    }
}
