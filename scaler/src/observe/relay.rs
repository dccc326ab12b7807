//! The state that a scaler which does not lead publishes: the leader's.
//!
//! When the leader is gone its last state stays in force without its barriers, which no scaler would
//! renew or lift.

use std::collections::BTreeMap;

use forebay_signals::follower::{Event, Feed, follow};
use forebay_signals::{PoolReplicas, ReplicaState, Token};
use futures_util::StreamExt;

/// The leader's feed.
pub(crate) struct Relay {
    feed: Feed<PoolReplicas>,
    pub(crate) url: String,
    lost: bool,
}

/// The leader's state.
pub(crate) struct LeaderState {
    pub(crate) pools: BTreeMap<String, PoolReplicas>,
    pub(crate) gateways: Option<u32>,
}

impl Relay {
    pub(crate) fn new(url: String, token: Option<Token>) -> Self {
        Self { feed: follow(format!("{url}/replicas"), token), url, lost: false }
    }

    /// The next state that differs from the one published last. Cancel-safe.
    pub(crate) async fn next(
        &mut self,
        last: &BTreeMap<String, PoolReplicas>,
    ) -> Option<LeaderState> {
        match self.feed.next().await? {
            Event::Update { view, .. } => {
                self.lost = false;
                let pools = view.pools.iter().map(|(name, pool)| (name.clone(), (**pool).clone()));
                Some(LeaderState { pools: pools.collect(), gateways: view.gateways })
            }
            Event::Goodbye => {
                self.lost = true;
                Some(LeaderState { pools: without_barriers(last), gateways: None })
            }
            Event::Lost { error } | Event::Short { error } => {
                if std::mem::replace(&mut self.lost, true) {
                    return None;
                }
                tracing::warn!("the leader at {} can't be heard: {error}", self.url);
                Some(LeaderState { pools: without_barriers(last), gateways: None })
            }
        }
    }
}

/// The same pools with every barrier lifted: replicas that drained under it serve again, and no other
/// scaler may take them away.
pub(crate) fn without_barriers(
    pools: &BTreeMap<String, PoolReplicas>,
) -> BTreeMap<String, PoolReplicas> {
    let lift = |pool: &PoolReplicas| {
        let mut pool = pool.clone();
        if pool.barrier.take().is_some() {
            pool.active = true;
            for replica in pool.replicas.values_mut().flatten() {
                if replica.state == ReplicaState::Draining {
                    replica.state = ReplicaState::Starting;
                }
            }
        }
        pool
    };
    pools.iter().map(|(name, pool)| (name.clone(), lift(pool))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use forebay_signals::{Barrier, Replica};

    #[test]
    fn a_leader_that_is_gone_leaves_no_barrier_behind() {
        let draining = Replica {
            address: Some("127.0.0.1:1".into()),
            state: ReplicaState::Draining,
            reason: String::new(),
            last_end: None,
        };
        let closing = PoolReplicas {
            desired: 0,
            active: false,
            barrier: Some(Barrier { epoch: 1, lease_millis: 9_000 }),
            replicas: [("a".to_owned(), Some(draining))].into(),
            ..PoolReplicas::default()
        };
        let shrinking = PoolReplicas { barrier: None, ..closing.clone() };
        let pools = [("zero".to_owned(), closing), ("fewer".to_owned(), shrinking)].into();
        let lifted = without_barriers(&pools);
        let state = |pool: &str| lifted[pool].replicas["a"].as_ref().expect("there").state;
        assert_eq!((lifted["zero"].barrier, state("zero")), (None, ReplicaState::Starting));
        assert_eq!(state("fewer"), ReplicaState::Draining, "others serve in its place");
        assert!(lifted["zero"].active, "KEDA may not take away what serves");
        assert!(!lifted["fewer"].active);
    }
}
