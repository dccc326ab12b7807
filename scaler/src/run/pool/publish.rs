//! The state of a pool as published to gateways.

use std::collections::BTreeMap;
use std::time::Duration;

use forebay_signals::follower::SILENCE;
use forebay_signals::{Barrier, LastEnd, PoolReplicas, Replica, ReplicaState};

use super::PoolScaler;
use crate::act::targets::ReplicaStatus;
use crate::decide::Condition;

/// Time for which gateways keep the barrier up without hearing from a scaler.
///
/// The last replica stops when every gateway has reported that it holds. Such a report counts until its
/// feed is noticed as lost, [`SILENCE`] after the last event. From then on the gateway blocks the way to
/// zero for as long as it is listed, however long `staleAfter` is. If both directions are lost at the
/// same moment, the gateway renewed its lease at most a second before, at the loop's last tick. So the
/// lease must exceed `SILENCE` by more than a second, or the gateway would send again to a replica that
/// the scaler may still stop.
const LEASE: Duration = Duration::from_secs(9);
const _: () = assert!(LEASE.as_secs() > SILENCE.as_secs() + 1);

impl PoolScaler {
    /// The published state while the target stops everything.
    pub(crate) fn leaving(&self, statuses: &BTreeMap<String, ReplicaStatus>) -> PoolReplicas {
        let mut state = self.published(0, statuses);
        for replica in state.replicas.values_mut().flatten() {
            replica.state = ReplicaState::Draining;
        }
        PoolReplicas { why: "shutting down".to_owned(), barrier: None, ..state }
    }

    /// The reason why a running replica gets no requests, if it was ready or is being replaced.
    fn why_out(&self, id: &str) -> Option<String> {
        let start = self.roster.starts.get(id)?;
        match &start.replaced {
            Some(why) => Some(format!("{why}, and is ended and started anew")),
            None => start.ready_at.map(|_| start.silence.reason.clone()),
        }
    }

    pub(super) fn published(
        &self,
        desired: u32,
        statuses: &BTreeMap<String, ReplicaStatus>,
    ) -> PoolReplicas {
        let replica = |status: &ReplicaStatus| {
            let (state, reason) = match (self.condition(status), self.why_out(&status.id)) {
                // A start that is being replaced has failed, though no gateway found it ready.
                (Condition::Ejected | Condition::Starting, Some(why)) => {
                    (ReplicaState::Failed, why)
                }
                (condition, _) => (condition.state(), status.reason.clone()),
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
            why: match &self.explanation.trouble {
                Some(trouble) => format!("{}, but: {trouble}", self.explanation.why),
                None => self.explanation.why.clone(),
            },
            active: !self.departures.closed,
            figures: self.figures.as_ref().map(|f| f.known().clone()).unwrap_or_default(),
            target_concurrency: Some(f64::from(self.rules.policy.concurrency.per_replica)),
            cold_start: self.state.cold_starts().quantiles(),
            failed_start: self.published_failure(),
            barrier: self.departures.barrier.then_some(Barrier {
                epoch: self.departures.epoch,
                lease_millis: LEASE.as_millis() as u64,
            }),
            replicas,
        }
    }
}
