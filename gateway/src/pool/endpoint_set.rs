//! The endpoints of a pool, with what is kept about all of them together, so that no request looks
//! at each of them: the pick policy's candidates, counts, and the moments at which time alone
//! changes an endpoint.
//!
//! Invariant: after [`EndpointSet::advance`] the candidates are as a walk over all endpoints at that
//! moment would find them. So every change of an endpoint is made by [`EndpointSet::change`]. Two
//! things change without it: a moment comes, which is in `due`; or an engine that was silent
//! produces something, which is in `awakened`.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use forebay_config::{InFlightLimit, Pick};
use forebay_scheduling::pick::{Candidates, EndpointId, Picker};
use forebay_signals::Health;
use tokio::time::Instant;

use crate::pool::endpoint::{Awakened, Due, Endpoint, Occupancy};
use crate::pool::moves::Moves;

/// Every endpoint of a pool.
#[derive(Default)]
pub(super) struct EndpointSet {
    /// By number; `None` where the endpoint is removed.
    tracked: Vec<Option<Tracked>>,
    ids: BTreeMap<SocketAddr, EndpointId>,
    candidates: Candidates,
    /// The moments at which time alone may change an endpoint: none is later than the change.
    due: BTreeSet<(Instant, EndpointId)>,
    /// Suspect endpoints whose engines produced something since.
    awakened: Arc<Awakened>,
    /// Endpoints that are ejected because their engines hang.
    hung: BTreeSet<EndpointId>,
    /// How many endpoints are starting.
    starting: usize,
    /// The places of all endpoints, and how many endpoints have any.
    places: (u64, usize),
    /// Streams that may move off endpoints that drain.
    pub(super) moves: Moves,
    /// The limit that one of them has learned last.
    learned: Option<u32>,
}

/// An endpoint, with what the set knows of it.
struct Tracked {
    address: SocketAddr,
    /// The address as text, for reports.
    name: Arc<str>,
    endpoint: Endpoint,
    due: Option<Instant>,
    starting: bool,
    places: u32,
}

impl EndpointSet {
    /// The number of the endpoint at this address.
    pub(super) fn id(&self, address: SocketAddr) -> Option<EndpointId> {
        self.ids.get(&address).copied()
    }

    /// The same, where it was known to have this number.
    pub(super) fn still(&self, address: SocketAddr, id: EndpointId) -> Option<EndpointId> {
        match self.tracked.get(id.number()) {
            Some(Some(tracked)) if tracked.address == address => Some(id),
            _ => self.id(address),
        }
    }

    pub(super) fn get(&self, id: EndpointId) -> Option<&Endpoint> {
        let tracked = self.tracked.get(id.number())?.as_ref()?;
        Some(&tracked.endpoint)
    }

    /// Whether the scaler wants the endpoint at this address to drain; `None` if there is none.
    pub(super) fn is_ordered_to_drain(&self, address: SocketAddr) -> Option<bool> {
        self.get(self.id(address)?).map(Endpoint::is_ordered_to_drain)
    }

    /// Every endpoint with its address as text, by address.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, EndpointId, &Endpoint)> {
        self.ids.values().filter_map(|id| {
            let tracked = self.tracked.get(id.number())?.as_ref()?;
            Some((&tracked.name, *id, &tracked.endpoint))
        })
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    /// Adds an endpoint at an address where none is.
    pub(super) fn add(&mut self, address: SocketAddr, mut endpoint: Endpoint, now: Instant) {
        if let Some(limit) = self.learned {
            endpoint.expect_limit(limit);
        }
        let id = self.candidates.add(address, endpoint.candidate(now));
        endpoint.report_to(&self.awakened, id, now);
        self.ids.insert(address, id);
        if self.tracked.len() <= id.number() {
            self.tracked.resize_with(id.number() + 1, || None);
        }
        let name = address.to_string().into();
        let tracked = Tracked { address, name, endpoint, due: None, starting: false, places: 0 };
        self.tracked[id.number()] = Some(tracked);
        self.update(id, now, false);
    }

    pub(super) fn remove(&mut self, id: EndpointId) {
        let Some(tracked) = self.tracked.get_mut(id.number()).and_then(Option::take) else {
            return;
        };
        self.ids.remove(&tracked.address);
        self.candidates.remove(id);
        self.hung.remove(&id);
        self.starting -= usize::from(tracked.starting);
        count_places(&mut self.places, tracked.places, 0);
        if let Some(due) = tracked.due {
            self.due.remove(&(due, id));
        }
    }

    /// Changes an endpoint; `None` if there is none with this number.
    pub(super) fn change<T>(
        &mut self,
        id: EndpointId,
        now: Instant,
        change: impl FnOnce(&mut Endpoint) -> T,
    ) -> Option<T> {
        let tracked = self.tracked.get_mut(id.number())?.as_mut()?;
        let output = change(&mut tracked.endpoint);
        self.update(id, now, false);
        Some(output)
    }

    /// Begins the probe of an endpoint that is due, or returns when one will be. Only the time of its
    /// next probe changes, which no candidate shows. See [`Endpoint::due`].
    pub(super) fn begin_probe(
        &mut self,
        id: EndpointId,
        (spread, closed): (impl FnOnce() -> Duration, bool),
        now: Instant,
    ) -> Option<Due> {
        let tracked = self.tracked.get_mut(id.number())?.as_mut()?;
        Some(tracked.endpoint.due(spread, closed, now))
    }

    /// Changes every endpoint.
    pub(super) fn change_all(&mut self, now: Instant, mut change: impl FnMut(&mut Endpoint)) {
        let ids: Vec<_> = self.ids.values().copied().collect();
        for id in ids {
            self.change(id, now, &mut change);
        }
    }

    /// Gives an endpoint a request. `tokens`: its prompt's, estimated. `streamed`: its first token will
    /// be seen.
    pub(super) fn give(
        &mut self,
        id: EndpointId,
        (tokens, streamed): (u64, bool),
        now: Instant,
    ) -> Option<(SocketAddr, &Endpoint, Occupancy)> {
        let tracked = self.tracked.get_mut(id.number())?.as_mut()?;
        tracked.endpoint.given(now);
        let occupancy = tracked.endpoint.occupy(tokens, streamed, now);
        self.update(id, now, true);
        let tracked = self.tracked[id.number()].as_ref()?;
        Some((tracked.address, &tracked.endpoint, occupancy))
    }

    /// Takes the models that an endpoint lists; true if they are others than before. Each name
    /// comes with whether the endpoint was started with it.
    pub(super) fn list<'a>(
        &mut self,
        id: EndpointId,
        names: impl IntoIterator<Item = (&'a str, bool)>,
    ) -> bool {
        self.candidates.list(id, names)
    }

    /// Forgets the models that an endpoint listed.
    pub(super) fn unlist(&mut self, id: EndpointId) {
        self.candidates.unlist(id);
    }

    /// Brings everything up to this moment.
    pub(super) fn advance(&mut self, now: Instant) {
        while let Some((at, id)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            if let Some(tracked) = &mut self.tracked[id.number()] {
                tracked.due = None;
            }
            self.update(id, now, false);
        }
        for id in self.awakened.take() {
            self.update(id, now, false);
        }
    }

    /// Whether [`EndpointSet::advance`] has anything to do but for what engines produce.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.due.first().is_some_and(|(at, _)| *at <= now)
    }

    /// Brings up to date what is kept of an endpoint. `given`: it has just been given a request.
    fn update(&mut self, id: EndpointId, now: Instant, given: bool) {
        let Some(Some(tracked)) = self.tracked.get_mut(id.number()) else { return };
        let Tracked { endpoint, due, starting, places, .. } = tracked;
        endpoint.note_draining(now);
        let mut candidate = endpoint.candidate(now);
        candidate.suspect = candidate.suspect && endpoint.watch_silence(now);
        if let Some(next) = endpoint.changes_at(now)
            && due.is_none_or(|due| next < due)
        {
            if let Some(due) = due.replace(next) {
                self.due.remove(&(due, id));
            }
            self.due.insert((next, id));
        }
        self.learned = endpoint.learned_limit().or(self.learned);
        let starts = endpoint.health() == Health::Starting;
        self.starting -= usize::from(std::mem::replace(starting, starts));
        self.starting += usize::from(starts);
        let before = std::mem::replace(places, endpoint.places());
        count_places(&mut self.places, before, *places);
        if endpoint.is_hung() {
            self.hung.insert(id);
        } else if !self.hung.is_empty() {
            self.hung.remove(&id);
        }
        if given {
            self.candidates.given(id, candidate);
        } else {
            self.candidates.set(id, candidate);
        }
    }

    /// Changes the policy of the pool's picker; true if it was another one.
    pub(super) fn set_policy(&mut self, picker: &mut Picker, policy: Pick) -> bool {
        picker.set_policy(policy, &mut self.candidates)
    }

    /// The endpoints as a pick policy sees them, at the moment of the last
    /// [`EndpointSet::advance`].
    pub(super) fn candidates(&self) -> &Candidates {
        &self.candidates
    }

    pub(super) fn any_ready(&self) -> bool {
        self.candidates.ready() > 0
    }

    /// Whether no endpoint but this one is ready.
    pub(super) fn is_last(&self, id: EndpointId) -> bool {
        let ready = self.candidates.get(id).is_some_and(|candidate| candidate.ready);
        self.candidates.ready() == usize::from(ready)
    }

    /// Whether any endpoint is starting, so that it may become ready soon.
    pub(super) fn any_starting(&self) -> bool {
        self.starting > 0
    }

    /// The places of all endpoints, taken ones included.
    pub(super) fn places(&self) -> u64 {
        self.places.0
    }

    /// How many endpoints have places.
    pub(super) fn serving(&self) -> usize {
        self.places.1
    }

    /// The most requests in flight at an endpoint that begins: learned from the others, or as configured.
    pub(super) fn usual_limit(&self, settings: &forebay_config::Pool) -> u32 {
        let learned = self.learned.filter(|_| settings.limit == InFlightLimit::Learned);
        learned.map_or(settings.max_in_flight, |limit| limit.min(settings.max_in_flight))
    }

    /// Evicts requests from engines that hang, once another endpoint is ready.
    pub(super) fn relieve_hung(&mut self, now: Instant) {
        if self.any_ready() && !self.hung.is_empty() {
            for id in self.hung.clone() {
                self.change(id, now, |endpoint| endpoint.relieve(now));
            }
        }
    }
}

/// Replaces the places of one endpoint in the sums.
fn count_places(sums: &mut (u64, usize), before: u32, now: u32) {
    if before != now {
        sums.0 = sums.0 - u64::from(before) + u64::from(now);
        sums.1 = sums.1 - usize::from(before > 0) + usize::from(now > 0);
    }
}

#[cfg(test)]
mod tests;
