//! Who decides: this scaler, with what was learned before it led, or another, whose words are told.

use std::collections::BTreeMap;
use std::sync::Arc;

use forebay_signals::PoolReplicas;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::Loop;
use super::driven::Driven;
use crate::act::targets::Target;
use crate::lead::leader::Leadership;
use crate::lead::store::{self, Saver, Snapshots};
use crate::observe::relay::{Relay, Words, without_barriers};
use crate::run::pool::PoolLoop;

impl Loop {
    pub(super) fn leads(&self) -> bool {
        let elected = self.leadership.as_ref();
        !self.standby && elected.is_none_or(|it| *it.borrow() == Leadership::Ours)
    }

    /// Begins to lead, or to relay another's words.
    pub(super) fn elected(&mut self) {
        let Some(leadership) = &mut self.leadership else { return };
        let leadership = leadership.borrow_and_update().clone();
        match leadership {
            // It begins when it takes over.
            Leadership::Ours if self.standby => return,
            Leadership::Ours => return self.begin(),
            Leadership::Theirs(url) => {
                if self.relay.as_ref().is_none_or(|relay| relay.url != url) {
                    self.relay = Some(Relay::new(url, self.token.clone()));
                }
            }
            Leadership::Unknown => {}
        }
        self.waiting.clear();
        self.loading = None;
        // What is still to be saved would be written over what the next leader keeps.
        self.saver = None;
        for driven in &self.pools {
            driven.target.rest();
        }
        // Nobody here can lift a barrier any more.
        self.last = without_barriers(&self.last);
        if let Some(keda) = &self.keda {
            keda.publish(&self.last);
        }
        self.publisher.publish(self.last.clone());
    }

    /// Begins to decide, with what was told last.
    pub(super) fn begin(&mut self) {
        self.relay = None;
        let stale_after_ms = self.config.scaler.stale_after.as_millis() as u64;
        // What was decided long ago, if anything, is no beginning.
        for driven in &mut self.pools {
            let same = |it: &&forebay_config::Pool| it.name == driven.pool.name;
            if let Some(pool) = self.config.pools.iter().find(same) {
                driven.pool = PoolLoop::new(pool, &self.config.prometheus, stale_after_ms);
            }
            if let Some(told) = self.last.get(&driven.pool.name) {
                driven.pool.follow(told);
            }
        }
        self.restore = true;
        self.all_touched = true;
    }

    /// Tells what the leader told.
    pub(super) fn repeat(&mut self, words: Words) {
        if self.leads() {
            return;
        }
        if let Some(gateways) = words.gateways {
            self.publisher.set_gateways(gateways);
        }
        if let Some(keda) = &self.keda {
            keda.publish(&words.pools);
        }
        self.publisher.publish(words.pools.clone());
        self.last = words.pools;
    }

    /// Takes over what was learned before, by this scaler or by one that led.
    pub(super) async fn restore(&mut self) {
        self.restore = false;
        self.saver = None;
        self.loading = None;
        let Some(store) = &self.store else { return };
        match store::load(&**store).await {
            Ok(known) => self.restored(known),
            Err(error) => {
                tracing::warn!(
                    "what was learned before can't be read, and nothing scales down until it is: \
                     {error}"
                );
                self.pools.iter_mut().for_each(|driven| driven.pool.await_restore());
                let load = store::load_at_last(Arc::clone(store));
                self.loading = Some(AbortOnDropHandle::new(tokio::spawn(load)));
            }
        }
    }

    pub(super) fn restored(&mut self, known: Snapshots) {
        self.learned(&known);
        // Only now: what was not read would be written over.
        self.save_from(known);
    }

    /// Takes over what was learned before.
    pub(super) fn learned(&mut self, known: &Snapshots) {
        self.loading = None;
        for driven in &mut self.pools {
            driven.pool.restore(known.get(&driven.pool.name).map(String::as_str));
        }
        self.all_touched = true;
    }

    /// Keeps what is learned from now on, beside what is kept already.
    pub(super) fn save_from(&mut self, kept: Snapshots) {
        self.saver = self.store.as_ref().map(|store| Saver::start(Arc::clone(store), kept));
        self.pace.hurry();
    }

    /// Keeps what was learned.
    pub(super) fn keep(&self) {
        if let Some(saver) = self.saver.as_ref().filter(|_| self.leads()) {
            let text = |driven: &Driven| (driven.pool.name.clone(), driven.pool.snapshot());
            saver.save(self.pools.iter().map(text).collect::<Snapshots>());
        }
    }
}

/// The leadership's next turn. Cancel-safe.
pub(super) async fn turn(leadership: &mut Option<watch::Receiver<Leadership>>) {
    if let Some(leadership) = leadership
        && leadership.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// What was kept, as soon as it can be read. Cancel-safe.
pub(super) async fn loaded(loading: &mut Option<AbortOnDropHandle<Snapshots>>) -> Snapshots {
    if let Some(loading) = loading
        && let Ok(known) = loading.await
    {
        return known;
    }
    std::future::pending().await
}

/// The leader's next words. Cancel-safe.
pub(super) async fn hear(
    relay: &mut Option<Relay>,
    last: &BTreeMap<String, PoolReplicas>,
) -> Option<Words> {
    match relay {
        Some(relay) => relay.next(last).await,
        None => std::future::pending().await,
    }
}
