//! Succession: one process passes the scaler's duty to the next while both run. Exactly one of them
//! decides at any time, and local replicas notice nothing.
//!
//! The next process is started beside the first and does everything but decide, like a scaler that
//! does not lead. Then the first releases all it has, and the next continues from there. If the next
//! one fails, the first takes everything back.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};

use forebay_signals::PoolReplicas;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::Loop;
use crate::act::targets::ScaleTarget as _;
use crate::act::targets::processes::PassedReplica;
use crate::lead::store::Snapshots;
use crate::observe::relay::without_barriers;
use crate::run::Scaler;
use crate::run::managed_pool::ManagedPool;

/// The state that one scaler passes to the next.
#[derive(Debug, Default)]
pub struct Handover {
    /// Its published and learned state.
    pub state: ScalerState,
    /// Replicas that would end with its process.
    pub replicas: Vec<PassedReplica>,
}

/// A scaler's last published state, and what it had learned, by pool.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ScalerState {
    #[serde(rename = "words")]
    published: BTreeMap<String, PoolReplicas>,
    snapshots: Snapshots,
}

/// A step of the succession, for the loop.
pub(in crate::run) enum Succession {
    HandOver(oneshot::Sender<Handover>),
    /// Takes over. Replicas without a pool here are stopped when the token is cancelled.
    TakeOver(Handover, CancellationToken, oneshot::Sender<()>),
}

impl Scaler {
    /// Stops deciding, and releases every local replica. `None` if the loop has ended.
    pub async fn hand_over(&self) -> Option<Handover> {
        let (done, handed) = oneshot::channel();
        self.succession.send(Succession::HandOver(done)).await.ok()?;
        handed.await.ok()
    }

    /// Starts to decide, from the state that another scaler, or this one, released. `gone` is
    /// cancelled when the other process no longer has a request at any replica.
    pub async fn take_over(&self, handover: Handover, gone: CancellationToken) {
        let (done, taken) = oneshot::channel();
        let step = Succession::TakeOver(handover, gone, done);
        if self.succession.send(step).await.is_ok() {
            let _ = taken.await;
        }
    }

    /// A copy of the socket for KEDA, if there is one, with its configured address.
    #[must_use]
    pub fn keda_socket(&self) -> Option<(SocketAddr, TcpListener)> {
        self.keda.as_ref()?.socket()
    }

    /// Ends a scaler that has handed over. Its readers read from the other one from now on.
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
    pub(super) async fn succeed(&mut self, step: Succession) {
        match step {
            Succession::HandOver(done) => {
                let handover = self.hand_over().await;
                if let Err(handover) = done.send(handover) {
                    self.take_over(handover, CancellationToken::new());
                }
            }
            Succession::TakeOver(handover, gone, done) => {
                self.take_over(handover, gone);
                let _ = done.send(());
            }
        }
    }

    pub(super) async fn hand_over(&mut self) -> Handover {
        let mut state = ScalerState::default();
        if self.leads() {
            let text = |managed: &ManagedPool| (managed.pool.name.clone(), managed.pool.snapshot());
            state.snapshots = self.pools.iter().map(text).collect();
            self.keep();
        }
        if let Some(saver) = self.memory.saver.take() {
            saver.finish().await;
        }
        self.role.standby = true;
        self.show_role();
        self.memory.loading = None;
        self.waiting.clear();
        self.outputs.last = without_barriers(&self.outputs.last);
        state.published = self.outputs.last.clone();
        let mut replicas = Vec::new();
        for managed in &self.pools {
            managed.target.stand_by();
            replicas.extend(managed.target.hand_over().await);
        }
        Handover { state, replicas }
    }

    pub(super) fn take_over(
        &mut self,
        Handover { state, replicas }: Handover,
        gone: CancellationToken,
    ) {
        for replica in replicas {
            let managed = self.pools.iter().find(|managed| managed.pool.name == replica.pool());
            let left = match managed {
                Some(managed) => managed.target.adopt(replica),
                None => Some(replica),
            };
            if let Some(left) = left {
                let pool = left.pool();
                tracing::info!(
                    "{pool}: its local replicas are stopped: the pool no longer has any"
                );
                self.leaving.spawn(left.stop_after(gone.clone()));
            }
        }
        let is_configured = |name: &str| self.pools.iter().any(|managed| managed.pool.name == name);
        let mut published = state.published;
        published.retain(|name, _| is_configured(name));
        self.role.standby = false;
        self.show_role();
        self.outputs.publish(published);
        if let Some(keda) = &self.outputs.keda {
            keda.open();
        }
        if self.leads() {
            self.begin();
            // A scaler that did not lead has learned nothing; the snapshots are in the store.
            self.memory.due = state.snapshots.is_empty();
            if !self.memory.due {
                self.learned(&state.snapshots);
                self.save_from(Snapshots::new());
            }
        }
    }
}
