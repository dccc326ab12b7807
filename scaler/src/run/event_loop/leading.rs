//! Leading: this scaler decides, with what was learned before; or another, whose state is relayed.

use std::collections::BTreeMap;

use forebay_signals::{PoolReplicas, Token};
use tokio::sync::watch;

use super::Loop;
use crate::act::targets::ScaleTarget;
use crate::lead::leader::Leadership;
use crate::observe::relay::{LeaderState, Relay, without_barriers};
use crate::run::pool::PoolScaler;

/// The place of this scaler among several.
pub(in crate::run) struct Role {
    /// The scaler that leads; `None` if only this one can.
    pub(in crate::run) leadership: Option<watch::Receiver<Leadership>>,
    /// Another process decides: the one before this one, or after it.
    pub(in crate::run) standby: bool,
    /// The leader's feed, if another scaler leads.
    pub(in crate::run) relay: Option<Relay>,
    pub(in crate::run) token: Option<Token>,
}

impl Loop {
    pub(super) fn leads(&self) -> bool {
        let elected = self.role.leadership.as_ref();
        !self.role.standby
            && elected.is_none_or(|leadership| *leadership.borrow() == Leadership::Ours)
    }

    /// Starts to lead, or to relay another scaler's state.
    pub(super) fn elected(&mut self) {
        let Some(leadership) = &mut self.role.leadership else { return };
        let leadership = leadership.borrow_and_update().clone();
        self.show_role();
        match leadership {
            // This process starts to lead when it takes over.
            Leadership::Ours if self.role.standby => return,
            Leadership::Ours => return self.begin(),
            Leadership::Theirs(url) => {
                if self.role.relay.as_ref().is_none_or(|relay| relay.url != url) {
                    self.role.relay = Some(Relay::new(url, self.role.token.clone()));
                }
            }
            Leadership::Unknown => {}
        }
        self.waiting.clear();
        self.memory.loading = None;
        // A pending save would overwrite the next leader's.
        self.memory.saver = None;
        for managed in &self.pools {
            managed.target.stand_by();
        }
        // This scaler can no longer lift a barrier.
        self.outputs.publish(without_barriers(&self.outputs.last));
    }

    /// Has the board say who decides, and withdraws the metrics of its own decisions, unless this process
    /// decides.
    pub(super) fn show_role(&mut self) {
        if self.leads() {
            return;
        }
        for managed in &mut self.pools {
            managed.metrics.withdraw();
        }
        let leadership = self.role.leadership.as_ref().map(|leadership| leadership.borrow());
        let why = match leadership.as_deref() {
            Some(Leadership::Theirs(url)) => {
                format!("this scaler does not lead: the one at {url} does")
            }
            Some(Leadership::Unknown) => {
                "this scaler does not lead, and it does not know one that does".to_owned()
            }
            Some(Leadership::Ours) | None => {
                "this process does not decide: the one before or after it does".to_owned()
            }
        };
        self.outputs.board.stand_by(why);
    }

    /// Starts to decide, from the state that was published last.
    pub(super) fn begin(&mut self) {
        self.outputs.board.begin();
        self.outputs.decisions.keep(|_| false);
        self.role.relay = None;
        let stale_after = self.config.scaler.stale_after.into();
        // Its own state is from the time when it last led, if ever.
        for managed in &mut self.pools {
            let same = |pool: &&forebay_config::Pool| pool.name == managed.pool.name;
            if let Some(pool) = self.config.pools.iter().find(same) {
                managed.pool = PoolScaler::new(pool, &self.config.prometheus, stale_after);
            }
            if let Some(published) = self.outputs.last.get(&managed.pool.name) {
                managed.pool.follow(published);
            }
        }
        self.memory.due = true;
        self.due.all = true;
    }

    /// Publishes the leader's state.
    pub(super) fn relay(&mut self, state: LeaderState) {
        if self.leads() {
            return;
        }
        if let Some(gateways) = state.gateways {
            self.outputs.publisher.set_gateways(gateways);
        }
        self.outputs.publish(state.pools);
    }
}

/// Waits for the next change of the leadership. Cancel-safe.
pub(super) async fn turn(leadership: &mut Option<watch::Receiver<Leadership>>) {
    if let Some(leadership) = leadership
        && leadership.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Waits for the next state of the leader. Cancel-safe.
pub(super) async fn leader_state(
    relay: &mut Option<Relay>,
    last: &BTreeMap<String, PoolReplicas>,
) -> Option<LeaderState> {
    match relay {
        Some(relay) => relay.next(last).await,
        None => std::future::pending().await,
    }
}
