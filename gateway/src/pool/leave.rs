//! The ways of streams off an endpoint that drains.
//!
//! A stream that may move waits for room elsewhere, while its replica goes on with it. It gets a place
//! that no held request can use, so moving delays no request. It takes the place when it goes there: a
//! stream whose client does not read keeps none from others.

use std::future::{Future, pending};
use std::time::Duration;

use forebay_scheduling::pick::Requirements;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, timeout_at};

use super::moves::{Mover, UnderWay};
use super::scheduling::Scheduling;
use super::slot::{Slot, Turn};
use super::{Pool, Ticket};
use crate::net::clock;
use crate::pool::endpoint::Endpoint;

impl Slot {
    /// Completes when the endpoint has drained for `after`.
    pub(crate) fn drained_for(&self, after: Duration) -> impl Future<Output = ()> + Send + 'static {
        drained_for(self.evictions.draining.subscribe(), after)
    }

    /// Waits for room elsewhere for the stream in this place, for as long as the endpoint drains.
    /// Nothing is sent once it drains no longer.
    pub(crate) fn room_elsewhere(&self, ticket: &Ticket) -> oneshot::Receiver<UnderWay> {
        let (room, receiver) = oneshot::channel();
        let mover = Mover { requirements: self.requirements_elsewhere(ticket), room };
        let mut state = self.pool.scheduling.lock();
        state.endpoints.moves.push(self.id, mover);
        self.pool.release_moves(&mut state, clock::now());
        receiver
    }

    /// Takes a place elsewhere for the stream in this place, which goes there now; `None` if there is no
    /// room any more.
    pub(crate) fn place_elsewhere(&self, ticket: &Ticket) -> Option<Box<Slot>> {
        let (pool, now) = (&self.pool, clock::now());
        let (place, entry) = (ticket.place?, &ticket.entry);
        let requirements = self.requirements_elsewhere(ticket);
        let mut state = pool.scheduling.lock();
        let choice = state.pick(&requirements, now)?;
        let mut slot = pool.occupy(&mut state, (choice, &requirements), entry, now)?;
        state.queue.pass(place, entry, true);
        slot.turn = Some(Turn::new((place, now), entry.answer, state.queue.tab(place)));
        Some(slot)
    }

    fn requirements_elsewhere(&self, ticket: &Ticket) -> Requirements {
        let mut requirements = ticket.requirements.clone();
        requirements.refused.extend(self.pool.abilities.unable(ticket.needs_text()));
        requirements
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
    /// Lets streams at draining endpoints have the places that no held request can use.
    pub(super) fn release_moves(&self, state: &mut Scheduling, now: Instant) {
        if state.endpoints.moves.is_empty() {
            return;
        }
        let mut moves = std::mem::take(&mut state.endpoints.moves);
        let drains = |from| state.endpoints.get(from).is_some_and(Endpoint::is_draining);
        for from in moves.retain(drains) {
            while let Some((mover, under_way)) =
                moves.pop(from, now, |requirements| state.pick(requirements, now).is_some())
            {
                // A stream that has ended meanwhile takes no place.
                let _ = mover.room.send(under_way);
            }
        }
        state.endpoints.moves = moves;
    }
}
