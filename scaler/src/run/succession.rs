//! The scaler's place, passed from one process to the next while both run: one of them decides at
//! any time, and local replicas notice nothing.
//!
//! The next one is started beside the first and does all but decide, as a scaler that does not lead.
//! The first then lets go of all it has, and the next goes on from there. Should it not come to that,
//! the first takes everything back.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use forebay_signals::PoolReplicas;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::driven::Driven;
use super::{Loop, Scaler};
use crate::act::targets::Target as _;
use crate::act::targets::processes::PassedReplica;
use crate::lead::store::Snapshots;
use crate::observe::relay::without_barriers;

/// All that one scaler passes to the next.
#[derive(Debug, Default)]
pub struct Handover {
    /// What it knew.
    pub known: Known,
    /// Replicas that would end with its process.
    pub replicas: Vec<PassedReplica>,
}

/// What a scaler told gateways last, and what it had learned, by pool.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Known {
    words: BTreeMap<String, PoolReplicas>,
    snapshots: Snapshots,
}

/// What the loop is to do about its place.
pub(super) enum Turn {
    HandOver(oneshot::Sender<Handover>),
    /// Replicas that have no place here are stopped when the token is cancelled.
    TakeOver(Handover, CancellationToken, oneshot::Sender<()>),
}

impl Scaler {
    /// Decides nothing from now on, and lets go of every local replica. `None` if the loop has
    /// ended.
    pub async fn hand_over(&self) -> Option<Handover> {
        let (done, handed) = oneshot::channel();
        self.turns.send(Turn::HandOver(done)).await.ok()?;
        handed.await.ok()
    }

    /// Decides from now on, going on from what another scaler, or this one, let go of. `gone` is
    /// cancelled when the other has no requests at any replica any more.
    pub async fn take_over(&self, handover: Handover, gone: CancellationToken) {
        let (done, taken) = oneshot::channel();
        if self.turns.send(Turn::TakeOver(handover, gone, done)).await.is_ok() {
            let _ = taken.await;
        }
    }

    /// A copy of the socket for KEDA, if there is one, with the address as it is configured.
    #[must_use]
    pub fn keda_socket(&self) -> Option<(SocketAddr, TcpListener)> {
        self.keda.as_ref()?.socket()
    }

    /// Ends one that has handed over: whoever reads its words reads those of the other from now on.
    pub async fn retire(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!("the scaler's loop ended early: {error}");
        }
        if let Some(keda) = &self.keda {
            keda.shutdown().await;
        }
        if let Some(election) = self.election {
            election.resign().await;
        }
        self.publisher.goodbye();
    }
}

impl Loop {
    pub(super) async fn turn(&mut self, turn: Turn) {
        match turn {
            Turn::HandOver(done) => {
                let handover = self.hand_over().await;
                if let Err(handover) = done.send(handover) {
                    self.take_over(handover, CancellationToken::new());
                }
            }
            Turn::TakeOver(handover, gone, done) => {
                self.take_over(handover, gone);
                let _ = done.send(());
            }
        }
    }

    pub(super) async fn hand_over(&mut self) -> Handover {
        let mut known = Known::default();
        if self.leads() {
            let text = |driven: &Driven| (driven.pool.name.clone(), driven.pool.snapshot());
            known.snapshots = self.pools.iter().map(text).collect();
            self.keep();
        }
        if let Some(saver) = self.saver.take() {
            saver.finish().await;
        }
        self.standby = true;
        self.loading = None;
        self.waiting.clear();
        self.last = without_barriers(&self.last);
        known.words = self.last.clone();
        let mut replicas = Vec::new();
        for driven in &self.pools {
            driven.target.rest();
            replicas.extend(driven.target.hand_over().await);
        }
        Handover { known, replicas }
    }

    pub(super) fn take_over(
        &mut self,
        Handover { known, replicas }: Handover,
        gone: CancellationToken,
    ) {
        for replica in replicas {
            let driven = self.pools.iter().find(|driven| driven.pool.name == replica.pool());
            let left = match driven {
                Some(driven) => driven.target.adopt(replica),
                None => Some(replica),
            };
            if let Some(left) = left {
                let pool = left.pool();
                tracing::info!("{pool}: its local replicas are stopped: it has none any more");
                self.leaving.spawn(left.stop_after(gone.clone()));
            }
        }
        self.last = known.words;
        let is_there = |name: &str| self.pools.iter().any(|driven| driven.pool.name == name);
        self.last.retain(|name, _| is_there(name));
        self.standby = false;
        if let Some(keda) = &self.keda {
            keda.publish(&self.last);
            keda.open();
        }
        self.publisher.publish(self.last.clone());
        if self.leads() {
            self.begin();
            // One that did not lead had learned nothing, and left it where it is kept.
            self.restore = known.snapshots.is_empty();
            if !self.restore {
                self.learned(&known.snapshots);
                self.save_from(Snapshots::new());
            }
        }
    }
}
