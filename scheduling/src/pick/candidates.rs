//! The endpoints of a pool as pick policies see them, in an order that is kept.
//!
//! The caller reports each change of an endpoint; nothing here changes with time. The endpoints are
//! kept in the order of their load, so that a pick costs the same in a pool of ten as in one of ten
//! thousand. While endpoints list different models, each list has an order of its own. Whatever an
//! endpoint's order depends on is in its [`Candidate`] and its [`Seat`].
//!
//! A policy that needs another index of endpoints has it here: the ring for consistent hashing.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::candidate::{Candidate, EndpointId, Seat};
use super::load_order::LoadOrder;
use super::ring::Ring;
use crate::models::ModelIndex;

/// The endpoints of a pool.
#[derive(Debug, Default)]
pub struct Candidates {
    /// By number; `None` where the endpoint is removed.
    seats: Vec<Option<Seat>>,
    /// By number too: the places on the ring are theirs.
    addresses: Vec<SocketAddr>,
    /// Numbers of removed endpoints.
    free: Vec<EndpointId>,
    /// The order of all endpoints.
    pub(super) all: LoadOrder,
    /// The orders of the endpoints with the same list, by its number; empty while all endpoints
    /// have the same.
    pub(super) by_list: Vec<LoadOrder>,
    /// Endpoints by their processes, the oldest first.
    pub(super) processes: BTreeSet<(u64, EndpointId)>,
    /// Those of them that have room.
    pub(super) open_processes: BTreeSet<(u64, EndpointId)>,
    pub(super) models: ModelIndex,
    /// The ring for consistent hashing, if the policy needs one.
    ring: Option<Ring>,
    /// The number of requests given out.
    given: u64,
}

impl Candidates {
    /// Adds an endpoint, which has listed no models yet.
    pub fn add(&mut self, address: SocketAddr, candidate: Candidate) -> EndpointId {
        let id = self.free.pop().unwrap_or_else(|| {
            self.seats.push(None);
            self.addresses.push(address);
            EndpointId::at(self.seats.len() - 1)
        });
        self.addresses[id.number()] = address;
        let list = self.models.join();
        self.split_or_join();
        self.place(id, None, Some(Seat { candidate, list, turn: 0 }));
        if let Some(ring) = &mut self.ring {
            ring.add(id, address);
        }
        id
    }

    /// Removes an endpoint.
    pub fn remove(&mut self, id: EndpointId) {
        let Some(seat) = self.seats[id.number()] else { return };
        self.place(id, Some(seat), None);
        if let Some(ring) = &mut self.ring {
            ring.remove(id, self.addresses[id.number()]);
        }
        self.free.push(id);
        self.models.leave(seat.list);
        self.split_or_join();
    }

    /// Replaces what is known of an endpoint.
    pub fn set(&mut self, id: EndpointId, candidate: Candidate) {
        if let Some(before) = self.seats[id.number()]
            && before.candidate != candidate
        {
            self.place(id, Some(before), Some(Seat { candidate, ..before }));
        }
    }

    /// Replaces what is known of an endpoint that has just been given a request, and passes the
    /// turn on.
    pub fn given(&mut self, id: EndpointId, candidate: Candidate) {
        if let Some(before) = self.seats[id.number()] {
            self.given += 1;
            self.place(id, Some(before), Some(Seat { candidate, turn: self.given, ..before }));
        }
    }

    /// Takes the models that an endpoint lists; true if they are others than before. Each name
    /// comes with whether the endpoint was started with it; `false` for an adapter that was loaded
    /// since.
    pub fn list<'a>(
        &mut self,
        id: EndpointId,
        names: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> bool {
        let Some(seat) = self.seats[id.number()] else { return false };
        self.place(id, Some(seat), None);
        let list = self.models.replace(seat.list, names);
        self.split_or_join();
        self.place(id, None, Some(Seat { list, ..seat }));
        list != seat.list
    }

    /// Forgets the models that an endpoint listed.
    pub fn unlist(&mut self, id: EndpointId) {
        let Some(seat) = self.seats[id.number()] else { return };
        self.place(id, Some(seat), None);
        self.models.leave(seat.list);
        let list = self.models.join();
        self.split_or_join();
        self.place(id, None, Some(Seat { list, ..seat }));
    }

    /// Moves an endpoint to its place in every order.
    fn place(&mut self, id: EndpointId, before: Option<Seat>, after: Option<Seat>) {
        self.seats[id.number()] = after;
        match (&before, &after) {
            (Some(before), Some(after)) if before.list == after.list => {
                self.all.change(id, before, after);
                if let Some(order) = self.by_list.get_mut(before.list.number()) {
                    order.change(id, before, after);
                }
            }
            _ => {
                if let Some(seat) = &before {
                    self.all.leave(id, seat);
                    if let Some(order) = self.by_list.get_mut(seat.list.number()) {
                        order.leave(id, seat);
                    }
                }
                if let Some(seat) = &after {
                    self.all.enter(id, seat);
                    if self.models.differ() {
                        enter_list(&mut self.by_list, id, seat);
                    }
                }
            }
        }
        let process = |seat: Option<Seat>| seat.map(|seat| seat.candidate.process);
        let open = |seat: Option<Seat>| {
            seat.filter(|seat| seat.candidate.room > 0).map(|seat| seat.candidate.process)
        };
        exchange(&mut self.processes, id, process(before), process(after));
        exchange(&mut self.open_processes, id, open(before), open(after));
    }

    /// Makes orders for each list when lists begin to differ, and drops them when they no longer
    /// do.
    fn split_or_join(&mut self) {
        if !self.models.differ() {
            self.by_list = Vec::new();
        } else if self.by_list.is_empty() {
            for (_, id) in &self.processes {
                if let Some(seat) = &self.seats[id.number()] {
                    enter_list(&mut self.by_list, *id, seat);
                }
            }
        }
    }

    /// Keeps a ring for consistent hashing from now on, or none.
    pub fn keep_ring(&mut self, keep: bool) {
        if !keep {
            self.ring = None;
        } else if self.ring.is_none() {
            let mut ring = Ring::default();
            for (_, id) in &self.processes {
                ring.add(*id, self.addresses[id.number()]);
            }
            self.ring = Some(ring);
        }
    }

    pub(super) fn ring(&self) -> Option<&Ring> {
        self.ring.as_ref()
    }

    pub(super) fn seat(&self, id: EndpointId) -> Option<&Seat> {
        self.seats[id.number()].as_ref()
    }

    /// Whether endpoints list different models, so that not every one can take every request.
    #[must_use]
    pub fn lists_differ(&self) -> bool {
        self.models.differ()
    }

    /// Whether any endpoint has room.
    #[must_use]
    pub fn have_room(&self) -> bool {
        !(self.all.open.is_empty() && self.all.open_suspects.is_empty())
    }

    /// How many endpoints are ready, even full ones.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.all.ready
    }

    /// An endpoint as it is known; `None` if it is removed.
    #[must_use]
    pub fn get(&self, id: EndpointId) -> Option<&Candidate> {
        self.seat(id).map(|seat| &seat.candidate)
    }
}

fn enter_list(by_list: &mut Vec<LoadOrder>, id: EndpointId, seat: &Seat) {
    let at = seat.list.number();
    if by_list.len() <= at {
        by_list.resize_with(at + 1, LoadOrder::default);
    }
    by_list[at].enter(id, seat);
}

fn exchange(
    set: &mut BTreeSet<(u64, EndpointId)>,
    id: EndpointId,
    before: Option<u64>,
    after: Option<u64>,
) {
    if before != after {
        before.map(|process| set.remove(&(process, id)));
        after.map(|process| set.insert((process, id)));
    }
}
