//! Which replicas go, and when each may be stopped: it is marked, every gateway says that nothing is
//! left there, the target stops it. Zero goes the same way, under a barrier.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::SocketAddr;

use forebay_signals::{Health, PoolSignals};

use super::{Asked, Heard, PoolLoop, endpoints};
use crate::act::targets::{Drains, Phase, ReplicaStatus, Target};

/// A pod that was to stop and has not for so long was not meant.
const ASKED_MS: u64 = 3_600_000;

impl PoolLoop {
    /// Its pod is about to stop: it gets nothing new, and counts no more.
    pub(crate) fn ask_to_drain(&mut self, endpoint: SocketAddr, now_ms: u64) {
        self.asked.insert(endpoint, Asked { at_ms: now_ms, id: None });
    }

    /// Whether every gateway has nothing in flight there, and gives it nothing new.
    pub(crate) fn is_empty_at(&self, heard: &[Heard<'_>], endpoint: SocketAddr) -> bool {
        let address = endpoint.to_string();
        let empty = |heard: &Heard<'_>| match (heard.lost_ms, heard.signals) {
            (Some(lost_ms), _) => lost_ms >= self.stale_after_ms,
            (None, Some(signals)) => is_empty(signals, Some(&address)),
            (None, None) => true,
        };
        self.known() && heard.iter().all(empty)
    }

    /// The replicas with those that were asked to drain on their way out.
    pub(super) fn with_asked<'a>(
        &mut self,
        statuses: &'a BTreeMap<String, ReplicaStatus>,
        now_ms: u64,
    ) -> Cow<'a, BTreeMap<String, ReplicaStatus>> {
        self.asked.retain(|address, asked| {
            let there = statuses.values().find(|it| {
                it.address == Some(*address) && asked.id.as_ref().is_none_or(|id| *id == it.id)
            });
            asked.id = there.map(|it| it.id.clone());
            asked.id.is_some() && now_ms < asked.at_ms + ASKED_MS
        });
        if self.asked.is_empty() {
            return Cow::Borrowed(statuses);
        }
        let mut statuses = statuses.clone();
        for status in statuses.values_mut() {
            if status.address.is_some_and(|address| self.asked.contains_key(&address)) {
                status.phase = Phase::Stopping;
            }
        }
        Cow::Owned(statuses)
    }

    /// Those that were stopped and that the target left alone for another: they serve again.
    pub(super) fn keep_spared(
        &mut self,
        statuses: &BTreeMap<String, ReplicaStatus>,
        target: &impl Target,
    ) {
        let spared = |id: &String| statuses.get(id).is_some_and(|status| status.spared);
        for id in self.stopped.extract_if(.., |id| spared(id) && target.recall(id)) {
            tracing::info!("{}: replica {id} is kept: another one was taken", self.name);
        }
    }

    pub(super) fn reconcile(
        &mut self,
        desired: u32,
        staying: u32,
        alive: &[ReplicaStatus],
        heard: &[Heard<'_>],
        target: &impl Target,
        now_ms: u64,
    ) {
        if desired > staying {
            let mut missing = (desired - staying) as usize;
            // Those on their way out are the quickest: ready ones first.
            let rank = |id: &String| {
                let status = alive.iter().find(|status| status.id == *id);
                (status.map_or(0, |status| status.rank), !self.ready.contains(id))
            };
            let mut back: Vec<_> = self.draining.iter().cloned().collect();
            back.sort_by_key(rank);
            // Whoever stops them decides how many: what is there serves.
            let most = if target.drains() == Drains::All { back.len() } else { missing };
            for id in back.into_iter().take(most) {
                tracing::info!("{}: replica {id} is kept", self.name);
                self.draining.remove(&id);
                missing = missing.saturating_sub(1);
            }
            let mut recalled: Vec<_> = self.stopped.iter().cloned().collect();
            recalled.retain(|id| {
                missing > 0 && target.recall(id) && {
                    missing -= 1;
                    true
                }
            });
            for id in recalled {
                tracing::info!("{}: replica {id} is kept after all", self.name);
                self.stopped.remove(&id);
            }
        } else if desired < staying && may_drain(target.drains(), desired) {
            let mut victims: Vec<_> =
                alive.iter().filter(|status| !self.draining.contains(&status.id)).collect();
            // Not ready first, the youngest of them; then those with the least to finish.
            victims.sort_by_key(|status| {
                let in_flight: u32 = endpoints(heard, status).map(|e| e.in_flight).sum();
                let young = u64::MAX - self.starts.get(&status.id).map_or(0, |s| s.since_ms);
                (Reverse(status.rank), self.ready.contains(&status.id), in_flight, young)
            });
            for status in victims.into_iter().take((staying - desired) as usize) {
                self.draining.insert(status.id.clone());
            }
        }
        // Until the last is gone: a process that takes over from here has nothing else to go by.
        let going = !self.draining.is_empty() || !self.stopped.is_empty();
        let barrier = desired == 0 && going;
        if barrier && !self.barrier {
            // Also above those of a scaler that ran before this one.
            self.epoch = now_ms.max(self.epoch + 1);
        }
        self.barrier = barrier;
    }

    /// Draining replicas of which every gateway says that nothing is left there.
    pub(super) fn drained(&self, heard: &[Heard<'_>], alive: &[ReplicaStatus]) -> Vec<String> {
        // Nobody's silence is no word of theirs.
        if heard.is_empty() || !self.known() {
            return Vec::new();
        }
        let done = |status: &&ReplicaStatus| {
            self.draining.contains(&status.id)
                && heard.iter().all(|heard| {
                    if let Some(lost_ms) = heard.lost_ms {
                        // It may still have streams there: it is waited for, and for the last
                        // replica for as long as it is listed.
                        return !self.barrier && lost_ms >= self.stale_after_ms;
                    }
                    let Some(signals) = heard.signals else { return true };
                    let closed = !self.barrier || signals.zero_epoch == Some(self.epoch);
                    let address = status.address.map(|address| address.to_string());
                    let empty = is_empty(signals, address.as_deref());
                    closed && empty && (!self.barrier || signals.queue_depth == 0)
                })
        };
        alive.iter().filter(done).map(|status| status.id.clone()).collect()
    }
}

/// Whether a gateway gives it nothing new and has nothing in flight there.
fn is_empty(signals: &PoolSignals, address: Option<&str>) -> bool {
    let endpoint = address.and_then(|address| signals.endpoints.get(address)?.as_ref());
    endpoint.is_none_or(|it| it.health == Health::Draining && it.in_flight == 0)
}

fn may_drain(drains: Drains, desired: u32) -> bool {
    match drains {
        Drains::Each => true,
        Drains::All => desired == 0,
        Drains::Never => false,
    }
}
