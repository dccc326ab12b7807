//! When held requests will start, and which of them can't start in time: the running gateway's own
//! estimate, and its own order of the queue.

use std::time::Duration;

use forebay_config::HoldOrder;
use forebay_scheduling::eta::{Ahead, Outlook, Passed, ServiceTime, Starts, Wait};
use forebay_scheduling::objective::FirstTokenTime;
use forebay_scheduling::queue::Place as QueuePlace;

use super::{Event, Hold, Place, World};
use crate::replay::trace::{SECOND, Us};

/// The times that the gateway has learned.
#[derive(Default)]
pub(super) struct Estimates {
    service: ServiceTime,
    first_token: FirstTokenTime,
    /// None is known to the model.
    starts: Starts,
    /// The next estimate is an event already.
    planned: bool,
}

fn duration(us: Us) -> Duration {
    Duration::from_micros(us)
}

impl World<'_> {
    /// Whether the gateway refuses those that can't start in time.
    fn refuses(&self) -> bool {
        self.rules.hold == Hold::UntilRoom && !self.rules.scales && self.model.refuses
    }

    /// Learns from a request that gives its place back now.
    pub(super) fn gave_back(&mut self, request: u32) {
        if let Some(released) = self.progress.outcomes[request as usize].released {
            self.estimates.service.record(duration(self.now - released));
        }
    }

    /// The moment from which a release is too late for the objective, if the order depends on it and
    /// a replica is ready.
    pub(super) fn late_from(&self, request: u32) -> Option<Duration> {
        let by_objective = self.rules.hold == Hold::UntilRoom
            && self.model.order == HoldOrder::Objective
            && self.any_ready();
        let accepted = duration(self.trace.requests[request as usize].at);
        let objective = duration(self.model.objective);
        by_objective.then(|| self.estimates.first_token.late_from(accepted, objective))
    }

    /// The places at ready replicas, taken ones included.
    fn places(&self) -> u64 {
        let live = self.fleet.live.iter().map(|id| &self.fleet.replicas[*id as usize]);
        live.filter(|replica| replica.is_ready())
            .map(|one| u64::from(one.capacity.room.limit()))
            .sum()
    }

    fn outlook(&self) -> Outlook<'_> {
        Outlook {
            now: duration(self.now),
            places: self.places(),
            service: self.estimates.service,
            starts: &self.estimates.starts,
            learned: None,
            places_of_start: self.fleet.learned.unwrap_or(self.model.limit.most).into(),
            more_starts: 0,
        }
    }

    /// How long a request would wait behind all that are held.
    pub(super) fn expected_wait(&self) -> Option<Duration> {
        self.outlook().expected(self.progress.queue.depth())
    }

    /// The requests that start before one that arrives now.
    pub(super) fn ahead(
        &self,
        request: u32,
        place: QueuePlace,
        late_from: Option<Duration>,
    ) -> Ahead {
        // As in the gateway, a request that finds room is released without an estimate.
        if self.progress.queue.depth() == 0 && self.fleet.candidates.have_room() {
            return Ahead::InTime(0);
        }
        let hold = duration(self.left(request));
        self.outlook().ahead(&self.progress.queue, place, late_from, hold)
    }

    /// Whether a request that arrives now can't start in time.
    pub(super) fn is_in_vain(&self, request: u32, ahead: Ahead) -> bool {
        let room = self.progress.queue.depth() == 0 && self.fleet.candidates.have_room();
        if !self.refuses() || room {
            return false;
        }
        let left = self.left(request);
        let longest = duration(self.model.max_wait.map_or(left, |most| left.min(most)));
        let wait = Wait { longest, fallback: false, held: false };
        self.outlook().cannot_start_in_time(ahead, wait).is_some()
    }

    /// How long its client still waits for its first token.
    fn left(&self, request: u32) -> Us {
        let gives_up = self.trace.requests[request as usize].at.saturating_add(self.model.patience);
        gives_up.saturating_sub(self.now)
    }

    /// Refuses a request that can't start in time.
    pub(super) fn refuse_in_vain(&mut self, request: u32) {
        self.figures.totals.refused += 1;
        self.progress.outcomes[request as usize].too_late = Some(self.now);
        self.give_up(request);
    }

    /// Plans the next estimate, if requests are held.
    pub(super) fn plan_estimate(&mut self) {
        if self.rules.hold == Hold::UntilRoom
            && self.progress.queue.depth() > 0
            && !std::mem::replace(&mut self.estimates.planned, true)
        {
            self.later(self.now + SECOND, Event::Estimate);
        }
    }

    /// Learns how long first tokens take, and refuses those that no longer can start in time.
    pub(super) fn estimate(&mut self) {
        self.estimates.planned = false;
        self.estimates.first_token.learn(&self.figures.upstream_ttft);
        self.progress.queue.advance(duration(self.now));
        if self.refuses() {
            let (outlook, at) = (self.outlook(), duration(self.now));
            let hold = duration(self.model.patience);
            let (mut passed, mut in_vain) = (Passed::none(&self.progress.queue), Vec::new());
            for (place, entry, request) in self.progress.queue.releases() {
                let longest = duration(self.left(*request));
                let wait = Wait { longest, fallback: false, held: true };
                let ahead = passed.before(entry, at, hold);
                if outlook.cannot_start_in_time(ahead, wait).is_some() {
                    in_vain.push((place, *request));
                } else {
                    passed.pass(entry, at);
                }
            }
            for (place, request) in in_vain {
                debug_assert_eq!(self.progress.places[request as usize], Place::Held(place));
                self.progress.queue.remove(place);
                self.progress.prompts.remove(&request);
                self.refuse_in_vain(request);
            }
            self.note_depth();
        }
        self.plan_estimate();
    }
}
