//! The rules for which endpoints can take a request: the same for every policy.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::candidate::{Candidate, EndpointId, Rank, Seat};
use super::candidates::Candidates;
use super::load_order::LoadOrder;
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
    /// Whether an endpoint is ready and not a last resort.
    others_ready: bool,
    /// Whether only processes that began since the loss of a replica are suitable.
    younger_only: bool,
}

impl<'a> Suitable<'a> {
    /// The endpoints that can take `request` now.
    #[must_use]
    pub fn of(candidates: &'a Candidates, request: &'a Requirements) -> Self {
        let knowing = candidates.models.knowing(request.model.as_deref());
        let mut suitable =
            Self { candidates, request, knowing, others_ready: false, younger_only: false };
        let sound: usize = suitable.orders().map(|order| order.ready - order.suspects).sum();
        let avoided = suitable.ready_among(&request.avoid).filter(|known| !known.suspect);
        suitable.others_ready = sound > avoided.count();
        suitable.younger_only = suitable.younger().any(|id| suitable.can_take(id));
        suitable
    }

    /// The number of the suitable endpoint with the fewest requests in flight. Equals take turns.
    #[must_use]
    pub fn least_busy(&self) -> Option<EndpointId> {
        let open = self.orders().map(|order| &order.open);
        // Where others are ready, no suspect is suitable.
        let suspects = self.orders().map(|order| &order.open_suspects);
        let suspects = suspects.filter(|_| !self.others_ready);
        let least = open.chain(suspects).filter_map(|set| self.least_busy_of(set)).min()?;
        Some(least.2)
    }

    fn least_busy_of(&self, set: &BTreeSet<Rank>) -> Option<Rank> {
        if !self.younger_only {
            return set.iter().find(|rank| self.can_take(rank.2)).copied();
        }
        // Either many are younger, and one of them comes early in the order, or there are few to
        // look at. Going both ways by turns takes no longer than the shorter one does.
        let (mut younger, mut best) = (self.younger(), None);
        for rank in set {
            if self.admits(rank.2) {
                return Some(*rank);
            }
            let Some(id) = younger.next() else { return best };
            let rank = self.seat(id).map(|seat| seat.rank(id));
            let rank = rank.filter(|rank| self.can_take(id) && set.contains(rank));
            best = [best, rank].into_iter().flatten().min();
        }
        None
    }

    /// Whether this endpoint is suitable.
    #[must_use]
    pub fn admits(&self, id: EndpointId) -> bool {
        self.can_take(id)
            && (!self.younger_only
                || self.seat(id).is_some_and(|seat| self.request.prefers(seat.candidate.process)))
    }

    /// Whether any ready endpoint, even a full one, knows the request's model and has not refused
    /// the request.
    #[must_use]
    pub fn could_serve(&self) -> bool {
        let ready: usize = self.orders().map(|order| order.ready).sum();
        ready > self.ready_among(&self.request.refused).count()
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
        self.orders().fold((0, 0), |(in_flight, ready), order| {
            (in_flight + order.in_flight, ready + order.ready)
        })
    }

    /// How many endpoints have room that know the request's model and are not suspect.
    pub(super) fn open(&self) -> usize {
        self.orders().map(|order| order.sample.len()).sum()
    }

    /// Calls `each` with those endpoints. Some may not be suitable.
    pub(super) fn each_open(&self, mut each: impl FnMut(EndpointId)) {
        for order in self.orders() {
            order.sample.all().iter().for_each(|id| each(*id));
        }
    }

    /// A suitable endpoint, taken at random by a number below the one given to `number`. `None` if
    /// the endpoint that was drawn is not suitable.
    pub(super) fn draw(&self, number: impl FnOnce(usize) -> usize) -> Option<EndpointId> {
        let all: usize = self.orders().map(|order| order.sample.len()).sum();
        let mut at = if all == 0 { return None } else { number(all) };
        for order in self.orders() {
            match order.sample.get(at) {
                Some(id) => return Some(id).filter(|id| self.admits(*id)),
                None => at -= order.sample.len(),
            }
        }
        None
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
        self.seat(id).is_some_and(|Seat { candidate, list, .. }| {
            let process = &candidate.process;
            candidate.room > 0
                && !(self.others_ready
                    && (candidate.suspect || self.request.avoid.contains(process)))
                && !self.request.refused.contains(process)
                && self.knowing.includes(*list)
        })
    }

    /// The orders of the endpoints that know the request's model.
    fn orders(&self) -> impl Iterator<Item = &'a LoadOrder> + use<'a> {
        let Candidates { all, by_list, .. } = self.candidates;
        let (all, listing, unlisted) = match self.knowing {
            Knowing::All => (Some(all), None, false),
            Knowing::Lists { listing, unlisted } => (None, Some(listing), unlisted),
        };
        let unlisted = unlisted.then_some(&ListId::UNLISTED);
        let lists = listing.into_iter().flatten().chain(unlisted);
        all.into_iter().chain(lists.filter_map(|list| by_list.get(list.number())))
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
