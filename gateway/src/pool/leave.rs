//! The ways of streams off an endpoint that drains.
//!
//! A stream that may move waits for a place elsewhere, while its replica goes on with it. It gets one
//! that no held request can use, so moving delays nobody.

use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::hold::Deferred;
use super::moves::{Mover, Room};
use super::scheduling::Scheduling;
use super::slot::{Slot, Turn};
use super::{Pool, Ticket};
use crate::pool::endpoint::Endpoint;

impl Slot {
    /// Completes when the endpoint has drained for `after`.
    pub(crate) fn drained_for(&self, after: Duration) -> impl Future<Output = ()> + Send + 'static {
        drained_for(self.evictions.draining.subscribe(), after)
    }

    /// Waits for a place elsewhere for the stream in this place, for as long as the endpoint drains.
    /// Nothing is sent once it drains no longer.
    pub(crate) fn room_elsewhere(&self, ticket: &Ticket) -> oneshot::Receiver<Room> {
        let (room, receiver) = oneshot::channel();
        let Some(place) = ticket.place else { return receiver };
        let mut requirements = ticket.requirements.clone();
        requirements.refused.extend(self.pool.abilities.begin_anew());
        let mover = Mover { place, entry: ticket.entry.clone(), requirements, room };
        let mut state = self.pool.scheduling.lock();
        state.endpoints.moves.push(self.id, mover);
        let mut deferred = Deferred::default();
        self.pool.release_moves(&mut state, Instant::now(), &mut deferred);
        drop(state);
        deferred.run(&self.pool);
        receiver
    }
}

async fn drained_for(mut draining: watch::Receiver<Option<Instant>>, after: Duration) {
    loop {
        let since = draining.wait_for(Option::is_some).await.map(|since| *since);
        // Without a moment, or after the end of the endpoint, there is nothing to wait for.
        let Some(due) = since.ok().flatten().and_then(|since| since.checked_add(after)) else {
            return pending().await;
        };
        match timeout_at(due, draining.changed()).await {
            Err(_) => return,
            Ok(Err(_)) => return pending().await,
            // Its draining has ended.
            Ok(Ok(())) => {}
        }
    }
}

impl Pool {
    /// Gives streams at draining endpoints the places that no held request can use.
    pub(super) fn release_moves(
        self: &Arc<Self>,
        state: &mut Scheduling,
        now: Instant,
        deferred: &mut Deferred,
    ) {
        if state.endpoints.moves.is_empty() {
            return;
        }
        let mut moves = std::mem::take(&mut state.endpoints.moves);
        let drains = |from| state.endpoints.get(from).is_some_and(Endpoint::is_draining);
        for from in moves.retain(drains) {
            while let Some((choice, mover, under_way)) =
                moves.pop(from, now, |requirements| state.pick(requirements, now))
            {
                let Mover { place, entry, requirements, room } = mover;
                let Some(mut slot) = self.occupy(state, (choice, &requirements), &entry, now)
                else {
                    break;
                };
                state.queue.pass(place, &entry, true);
                slot.turn = Some(Turn::new((place, now), entry.answer, state.queue.tab(place)));
                if let Err(Room { slot, .. }) = room.send(Room { slot, under_way }) {
                    deferred.untaken.push(slot);
                }
            }
        }
        state.endpoints.moves = moves;
    }
}
