//! Endpoints in the order of their load, and the same endpoints to draw from at random.

use super::candidate::{Candidate, EndpointId, Seat};
use super::ranking::Ranking;

/// Endpoints in the order in which they are chosen.
#[derive(Debug, Default)]
pub(super) struct LoadOrder {
    /// Endpoints with room that are not suspect.
    pub(super) open: Ranking,
    /// Endpoints with room that are.
    pub(super) open_suspects: Ranking,
    /// How many are ready, even full ones.
    pub(super) ready: usize,
    /// How many of those are suspect.
    pub(super) suspects: usize,
    /// Requests in flight at those that are ready.
    pub(super) in_flight: u64,
}

impl LoadOrder {
    pub(super) fn enter(&mut self, id: EndpointId, seat: &Seat) {
        let Candidate { room, suspect, .. } = seat.candidate;
        self.count(&seat.candidate, true);
        if room > 0 {
            self.set(suspect).add(seat.rank(id));
        }
    }

    pub(super) fn leave(&mut self, id: EndpointId, seat: &Seat) {
        let Candidate { room, suspect, .. } = seat.candidate;
        self.count(&seat.candidate, false);
        if room > 0 {
            self.set(suspect).remove(id);
        }
    }

    /// Moves an endpoint that stays in this order. Most changes are those of its load.
    pub(super) fn change(&mut self, id: EndpointId, before: &Seat, after: &Seat) {
        let set = |seat: &Seat| (seat.candidate.room > 0, seat.candidate.suspect);
        if set(before) == set(after) && before.candidate.room > 0 {
            self.count(&before.candidate, false);
            self.count(&after.candidate, true);
            self.set(after.candidate.suspect).change(after.rank(id));
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

    fn set(&mut self, suspect: bool) -> &mut Ranking {
        if suspect { &mut self.open_suspects } else { &mut self.open }
    }
}
