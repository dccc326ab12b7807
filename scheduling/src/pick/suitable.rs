//! The rules for which endpoints can take a request: the same for every policy.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::candidate::{Candidate, EndpointId, Rank, Seat};
use super::candidates::Candidates;
use super::load_order::LoadOrder;
use super::ranking::Ranking;
use super::requirements::Requirements;
use crate::models::{Knowing, ListId};
use crate::prompt::Prompt;

/// The endpoints that can take one request now.
///
/// An endpoint that failed the request, or whose engine may hang, is among them only if no other is
/// ready, even a full one. If the request has lost a replica, only processes that began after that
/// are among them, unless none of those can take it now.
#[derive(Clone, Copy, Debug)]
pub struct Suitable<'a> {
    candidates: &'a Candidates,
    request: &'a Requirements,
    knowing: Knowing<'a>,
    /// The endpoints that know the request's model, counted.
    totals: Totals,
    /// Whether an endpoint is ready and not a last resort.
    others_ready: bool,
    /// Whether only processes that began since the loss of a replica are suitable.
    younger_only: bool,
}

/// Endpoints, counted.
#[derive(Clone, Copy, Debug, Default)]
struct Totals {
    /// Those that are ready, even if they are full.
    ready: usize,
    /// Those of them that are suspect.
    suspects: usize,
    /// The requests in flight at those that are ready.
    in_flight: u64,
    /// Those that have room and are not suspect.
    open: usize,
}

impl<'a> Suitable<'a> {
    /// The endpoints that can take `request` now.
    #[must_use]
    pub fn of(candidates: &'a Candidates, request: &'a Requirements) -> Self {
        let knowing = candidates.models.knowing(request.model.as_deref());
        let (totals, others_ready, younger_only) = (Totals::default(), false, false);
        let mut suitable =
            Self { candidates, request, knowing, totals, others_ready, younger_only };
        let mut totals = Totals::default();
        suitable.each_order(|order| {
            totals.ready += order.ready;
            totals.suspects += order.suspects;
            totals.in_flight += order.in_flight;
            totals.open += order.open.len();
        });
        suitable.totals = totals;
        let avoided = suitable.ready_among(&request.avoid).filter(|known| !known.suspect);
        suitable.others_ready = totals.ready - totals.suspects > avoided.count();
        suitable.younger_only = suitable.younger().any(|id| suitable.can_take(id));
        suitable
    }

    /// The number of the suitable endpoint with the fewest requests in flight. Equals take turns.
    #[must_use]
    pub fn least_busy(&self) -> Option<EndpointId> {
        let mut least: Option<Rank> = None;
        self.each_order(|order| {
            // Where others are ready, no suspect is suitable.
            let suspects = (!self.others_ready).then_some(&order.open_suspects);
            for set in [&order.open].into_iter().chain(suspects) {
                let rank = self.least_busy_of(set);
                least = least.into_iter().chain(rank).min();
            }
        });
        Some(least?.id())
    }

    fn least_busy_of(&self, set: &Ranking) -> Option<Rank> {
        if !self.younger_only {
            let first = set.first().filter(|rank| self.can_take(rank.id()));
            return first.or_else(|| set.ascending().find(|rank| self.can_take(rank.id())));
        }
        // Either many are younger, and one of them comes early in the order, or there are few to
        // look at. Going both ways by turns takes no longer than the shorter one does.
        let (mut younger, mut best) = (self.younger(), None);
        for rank in set.ascending() {
            if self.admits(rank.id()) {
                return Some(rank);
            }
            let Some(id) = younger.next() else { return best };
            let seat = self.seat(id).filter(|_| self.can_take(id) && set.contains(id));
            let rank = seat.map(|seat| seat.rank(id));
            best = [best, rank].into_iter().flatten().min();
        }
        None
    }

    /// Whether this endpoint is suitable.
    #[must_use]
    pub fn admits(&self, id: EndpointId) -> bool {
        self.admitted(id).is_some()
    }

    /// An endpoint if it is suitable.
    pub(super) fn admitted(&self, id: EndpointId) -> Option<&'a Candidate> {
        let candidate = &self.seat(id).filter(|seat| self.takes(seat))?.candidate;
        let prefers = !self.younger_only || self.request.prefers(candidate.process);
        prefers.then_some(candidate)
    }

    /// Whether any ready endpoint, even a full one, knows the request's model and has not refused
    /// the request.
    #[must_use]
    pub fn could_serve(&self) -> bool {
        self.totals.ready > self.ready_among(&self.request.refused).count()
    }

    /// An endpoint as it is known; `None` if it is removed.
    pub(super) fn get(&self, id: EndpointId) -> Option<&'a Candidate> {
        self.candidates.get(id)
    }

    /// The request's prompt.
    pub(super) fn prompt(&self) -> Option<&'a Prompt> {
        self.request.prompt.as_deref()
    }

    /// The requests in flight at the ready endpoints that know the request's model, and how many
    /// endpoints those are.
    pub(super) fn load(&self) -> (u64, usize) {
        (self.totals.in_flight, self.totals.ready)
    }

    /// How many endpoints have room that know the request's model and are not suspect.
    pub(super) fn open(&self) -> usize {
        self.totals.open
    }

    /// Calls `each` with those endpoints. Some may not be suitable.
    pub(super) fn each_open(&self, mut each: impl FnMut(EndpointId)) {
        self.each_order(|order| order.open.all().for_each(&mut each));
    }

    /// A suitable endpoint, taken at random by a number below the one given to `number`. `None` if
    /// the endpoint that was drawn is not suitable.
    pub(super) fn draw(&self, number: impl FnOnce(usize) -> usize) -> Option<EndpointId> {
        let mut at = if self.totals.open == 0 { return None } else { number(self.totals.open) };
        let mut drawn = None;
        self.each_order(|order| {
            if drawn.is_none() {
                drawn = order.open.get(at);
                at = at.saturating_sub(order.open.len());
            }
        });
        drawn.filter(|id| self.admits(*id))
    }

    /// The endpoints to which `key` leads, the first one first. Some may come again, and some may
    /// not be suitable.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = EndpointId> + use<'a> {
        self.candidates.ring().into_iter().flat_map(move |ring| ring.from(key))
    }

    /// The endpoints with room, by their processes, beginning after `last` and once around. Some may
    /// not be suitable.
    pub(super) fn open_after(
        &self,
        last: Option<(u64, EndpointId)>,
    ) -> impl Iterator<Item = (u64, EndpointId)> + use<'a> {
        let open = &self.candidates.open_processes;
        let after = (last.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let before = last.map(|last| open.range(..=last));
        open.range(after).chain(before.into_iter().flatten()).copied()
    }

    /// Whether this endpoint is suitable as far as its process's age does not matter.
    fn can_take(&self, id: EndpointId) -> bool {
        self.seat(id).is_some_and(|seat| self.takes(seat))
    }

    fn takes(&self, Seat { candidate, list, .. }: &Seat) -> bool {
        let process = &candidate.process;
        candidate.room > 0
            && !(self.others_ready && (candidate.suspect || self.request.avoid.contains(process)))
            && !self.request.refused.contains(process)
            && self.knowing.includes(*list)
    }

    /// Calls `each` with the orders of the endpoints that know the request's model.
    fn each_order(&self, mut each: impl FnMut(&'a LoadOrder)) {
        let Candidates { all, by_list, .. } = self.candidates;
        match self.knowing {
            Knowing::All => each(all),
            Knowing::Lists { listing, unlisted } => {
                let unlisted = unlisted.then_some(&ListId::UNLISTED);
                for list in listing.iter().chain(unlisted) {
                    by_list.get(list.number()).into_iter().for_each(&mut each);
                }
            }
        }
    }

    /// The ready endpoints of these processes that know the request's model.
    fn ready_among(&self, processes: &BTreeSet<u64>) -> impl Iterator<Item = &'a Candidate> {
        let all = &self.candidates.processes;
        let ids = processes.iter().flat_map(|process| {
            let from = all.range((*process, EndpointId::FIRST)..);
            from.take_while(move |(other, _)| other == process).map(|(_, id)| *id)
        });
        let seats = ids.filter_map(|id| self.candidates.seat(id));
        let known = seats.filter(|seat| self.knowing.includes(seat.list));
        known.map(|seat| &seat.candidate).filter(|candidate| candidate.ready)
    }

    /// Endpoints with room whose processes began since the request lost a replica; none if it lost
    /// none.
    fn younger(&self) -> impl Iterator<Item = EndpointId> + use<'a> {
        let after = self.request.began_after.and_then(|last| last.checked_add(1));
        let from = after.map(|first| (first, EndpointId::FIRST)..);
        let open = &self.candidates.open_processes;
        from.into_iter().flat_map(|from| open.range(from)).map(|(_, id)| *id)
    }

    fn seat(&self, id: EndpointId) -> Option<&'a Seat> {
        self.candidates.seat(id)
    }
}
