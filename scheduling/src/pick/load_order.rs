//! Endpoints in the order of their load, and the same endpoints to draw from at random.

use std::collections::{BTreeSet, HashMap};

use super::candidate::{Candidate, EndpointId, Rank, Seat};

/// Endpoints in the order in which they are chosen.
#[derive(Debug, Default)]
pub(super) struct LoadOrder {
    /// Endpoints with room that are not suspect.
    pub(super) open: BTreeSet<Rank>,
    /// Endpoints with room that are.
    pub(super) open_suspects: BTreeSet<Rank>,
    /// How many are ready, even full ones.
    pub(super) ready: usize,
    /// How many of those are suspect.
    pub(super) suspects: usize,
    /// Requests in flight at those that are ready.
    pub(super) in_flight: u64,
    /// Those of `open`.
    pub(super) sample: Sample,
}

/// Endpoints to draw from: each has the same chance.
#[derive(Debug, Default)]
pub(super) struct Sample {
    ids: Vec<EndpointId>,
    places: HashMap<EndpointId, usize>,
}

impl LoadOrder {
    pub(super) fn enter(&mut self, id: EndpointId, seat: &Seat) {
        let Candidate { room, suspect, .. } = seat.candidate;
        self.count(&seat.candidate, true);
        if room > 0 {
            self.set(suspect).insert(seat.rank(id));
            if !suspect {
                self.sample.add(id);
            }
        }
    }

    pub(super) fn leave(&mut self, id: EndpointId, seat: &Seat) {
        let Candidate { room, suspect, .. } = seat.candidate;
        self.count(&seat.candidate, false);
        if room > 0 {
            self.set(suspect).remove(&seat.rank(id));
            if !suspect {
                self.sample.remove(id);
            }
        }
    }

    /// Moves an endpoint that stays in this order. Most changes are those of its load.
    pub(super) fn change(&mut self, id: EndpointId, before: &Seat, after: &Seat) {
        let set = |seat: &Seat| (seat.candidate.room > 0, seat.candidate.suspect);
        if set(before) == set(after) && before.candidate.room > 0 {
            self.count(&before.candidate, false);
            self.count(&after.candidate, true);
            let set = self.set(after.candidate.suspect);
            set.remove(&before.rank(id));
            set.insert(after.rank(id));
        } else {
            self.leave(id, before);
            self.enter(id, after);
        }
    }

    fn count(&mut self, candidate: &Candidate, enters: bool) {
        let Candidate { ready, suspect, in_flight, .. } = *candidate;
        if !ready {
            return;
        }
        if enters {
            self.ready += 1;
            self.suspects += usize::from(suspect);
            self.in_flight += u64::from(in_flight);
        } else {
            self.ready -= 1;
            self.suspects -= usize::from(suspect);
            self.in_flight -= u64::from(in_flight);
        }
    }

    fn set(&mut self, suspect: bool) -> &mut BTreeSet<Rank> {
        if suspect { &mut self.open_suspects } else { &mut self.open }
    }
}

impl Sample {
    fn add(&mut self, id: EndpointId) {
        self.places.insert(id, self.ids.len());
        self.ids.push(id);
    }

    fn remove(&mut self, id: EndpointId) {
        if let Some(place) = self.places.remove(&id) {
            self.ids.swap_remove(place);
            if let Some(moved) = self.ids.get(place) {
                self.places.insert(*moved, place);
            }
        }
    }

    pub(super) fn all(&self) -> &[EndpointId] {
        &self.ids
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn get(&self, at: usize) -> Option<EndpointId> {
        self.ids.get(at).copied()
    }
}
