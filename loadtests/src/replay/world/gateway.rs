//! The gateway of the model: holds requests, releases them to replicas, or refuses them.
//!
//! The queue, and the choice of a replica wherever requests are held, are the running gateway's own
//! (`forebay_scheduling`). All requests are one tenant's.

use std::sync::Arc;
use std::time::Duration;

use forebay_config::PriorityClass;
use forebay_scheduling::pick::{Choice, Requirements, Usage};
use forebay_scheduling::prompt::Prompt;
use forebay_scheduling::queue::Entry;
use rand::Rng;

use super::{Event, Model, Place, ReplayProgress, World};
use crate::replay::replica::{KV_BLOCK, Sequence, TokenEvent};
use crate::replay::trace::{Request, Us};

/// How a gateway holds requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Until a replica has room, in order: its limit less its requests in flight.
    UntilRoom,
    /// While no replica is ready; then all are released at once, to the least busy replicas.
    AtZero,
    /// Never: refused while no replica is ready, and the client retries. Otherwise round robin.
    Never,
}

impl Hold {
    /// The most requests that are held.
    pub(super) fn bound(self, model: &Model) -> usize {
        if self == Self::Never { usize::MAX } else { model.max_held }
    }
}

impl World<'_> {
    /// Admits a request that arrives or is retried.
    pub(super) fn admit(&mut self, request: u32) {
        let tries = match self.progress.places[request as usize] {
            Place::Gone => return,
            Place::Away { tries } => tries,
            _ => 0,
        };
        if self.rules.hold == Hold::Never && !self.any_ready() {
            let (first, most) = self.model.retry;
            // As the OpenAI clients do: the pause doubles, less a random part of up to a quarter.
            let pause = first.saturating_mul(1 << tries.min(20)).min(most).max(1);
            let pause = pause - (pause as f64 * 0.25 * self.random.random::<f64>()) as Us;
            self.progress.places[request as usize] = Place::Away { tries: tries + 1 };
            self.later(self.now + pause, Event::Retry { request });
            return;
        }
        let tokens = self.estimated(request);
        let (tenant, class) = (Arc::clone(&self.progress.tenant), PriorityClass::Normal);
        let place = self.progress.queue.arrive(class, &tenant);
        let late_from = self.late_from(request);
        let ahead = self.ahead(request, place, late_from);
        if self.is_in_vain(request, ahead) {
            self.refuse_in_vain(request);
            return;
        }
        let late_from = ahead.late_from(late_from, Duration::from_micros(self.now));
        let bytes = tokens * 4;
        let entry =
            Entry { tenant, class, bytes, tokens, cost: tokens, answer: 256, late_from, kind: 0 };
        if self.progress.queue.push(place, entry, request, false).is_err() {
            self.figures.totals.refused += 1;
            self.give_up(request);
            return;
        }
        self.progress.places[request as usize] = Place::Held(place);
        if self.model.pick.reads_prompts()
            && let Some(content) = self.trace.content(request)
        {
            self.progress.prompts.insert(request, Arc::new(content.prompt()));
        }
        self.release();
        self.plan_estimate();
        self.note_depth();
    }

    /// Releases held requests to the replicas that have room, and what they leave to streams that move.
    pub(super) fn release(&mut self) {
        self.release_held();
        self.release_moves();
    }

    fn release_held(&mut self) {
        if self.progress.queue.depth() == 0 {
            return;
        }
        if self.rules.hold == Hold::Never {
            while self.progress.queue.depth() > 0
                && let Some(replica) = self.next_turn()
                && let Some((_, _, request)) = self.progress.queue.pop()
            {
                self.give(request, replica);
            }
            return;
        }
        while let Some((request, choice)) = self.pop_releasable() {
            let Some(replica) = self.fleet.chosen(choice) else { break };
            let prompt = self.progress.prompts.remove(&request);
            self.give(request, replica);
            let now = Duration::from_micros(self.now);
            let (requirements, fleet) = (requirements(prompt), &mut self.fleet);
            let given = fleet.picker.given(&fleet.candidates, choice, &requirements, now);
            self.progress.given.extend(given.map(|given| (request, given)));
        }
    }

    /// The next ready replica by round robin.
    fn next_turn(&mut self) -> Option<u32> {
        let live = &self.fleet.live;
        let mut turns = (0..live.len()).map(|i| (self.fleet.turn + i) % live.len());
        let found = turns.find(|at| self.fleet.replicas[live[*at] as usize].is_ready())?;
        self.fleet.turn = found + 1;
        Some(self.fleet.live[found])
    }

    /// The next held request for which a replica has room, and the replica.
    fn pop_releasable(&mut self) -> Option<(u32, Choice)> {
        let now = Duration::from_micros(self.now);
        self.progress.queue.advance(now);
        let (picker, candidates) = (&mut self.fleet.picker, &self.fleet.candidates);
        if !candidates.have_room() {
            return None;
        }
        let ReplayProgress { queue, prompts, .. } = &mut self.progress;
        let mut choice = None;
        let (_, _, request) = queue.pop_first(|_, request| {
            let requirements = requirements(prompts.get(request).cloned());
            choice = picker.pick(candidates, &requirements, now);
            choice.is_some()
        })?;
        Some((request, choice?))
    }

    fn give(&mut self, request: u32, id: u32) {
        let now = self.now;
        let arrival = self.trace.requests[request as usize];
        self.progress.outcomes[request as usize].released = Some(now);
        self.figures.totals.released += 1;
        self.figures.hold.record((now - arrival.at) as f64 / 1e6);
        self.figures.in_flight_tokens += self.estimated(request);
        self.submit(Sequence { id: request, prompt: arrival.prompt, output: arrival.output }, id);
    }

    /// Gives a replica a sequence.
    pub(super) fn submit(&mut self, sequence: Sequence, id: u32) {
        self.progress.places[sequence.id as usize] = Place::At { replica: id };
        let replica = &mut self.fleet.replicas[id as usize];
        replica.in_flight += 1;
        let tokens = self.trace.requests[sequence.id as usize].prompt.into();
        let now = Duration::from_micros(self.now);
        let part = replica.capacity.room.given(tokens, true, now);
        self.progress.parts.extend(part.map(|part| (sequence.id, part)));
        let prefix = self.trace.content(sequence.id).map(|content| content.blocks(KV_BLOCK));
        replica.batch.submit(sequence, prefix.unwrap_or_default(), self.now);
        let candidate = self.candidate(id);
        self.fleet.candidates.given(self.fleet.replicas[id as usize].seat, candidate);
        self.plan(id);
    }

    /// Plans an event for the end of the replica's present steps.
    pub(super) fn plan(&mut self, id: u32) {
        let replica = &mut self.fleet.replicas[id as usize];
        let Some((end, plan)) = replica.batch.due() else { return };
        if replica.planned != Some(plan) {
            replica.planned = Some(plan);
            self.later(end, Event::Steps { replica: id, plan });
        }
    }

    pub(super) fn steps_ended(&mut self, id: u32, plan: u32) {
        let mut events = std::mem::take(&mut self.fleet.token_events);
        let now = self.now;
        if self.fleet.replicas[id as usize].batch.ended(plan, now, &mut events) {
            for event in events.drain(..) {
                match event {
                    TokenEvent::First(request, cached) => {
                        self.progress.outcomes[request as usize].cached = cached;
                        self.first_token(request, id);
                    }
                    TokenEvent::Last(request, tokens) => self.answered(request, tokens, id),
                }
            }
            self.plan(id);
            self.release();
            self.note_depth();
            self.stop_if_drained(id);
        }
        self.fleet.token_events = events;
    }

    fn first_token(&mut self, request: u32, id: u32) {
        let replica = &mut self.fleet.replicas[id as usize];
        replica.first_token.get_or_insert(self.now);
        if let Some(part) = self.progress.parts.get_mut(&request) {
            replica.capacity.room.first_token(part, Duration::from_micros(self.now));
            self.show(id);
        }
        if self.progress.moving.remove(&request).is_some() {
            return;
        }
        if let Some(given) = self.progress.given.get_mut(&request) {
            self.fleet.picker.first_token(given, Duration::from_micros(self.now));
        }
        let outcome = &mut self.progress.outcomes[request as usize];
        outcome.first_token = Some(self.now);
        let released = outcome.released.unwrap_or(self.now);
        self.progress.without_token -= 1;
        let arrived = self.trace.requests[request as usize].at;
        self.figures.first_token(arrived, released, self.now);
        let replica = &mut self.fleet.replicas[id as usize];
        replica.capacity.sums.first_tokens += 1;
        replica.capacity.sums.ttft_seconds += (self.now - released) as f64 / 1e6;
    }

    fn answered(&mut self, request: u32, tokens: u32, id: u32) {
        let arrival = self.trace.requests[request as usize];
        let outcome = &mut self.progress.outcomes[request as usize];
        outcome.last_token = Some(self.now);
        let first = outcome.first_token.unwrap_or(self.now);
        self.gave_back(request);
        self.progress.places[request as usize] = Place::Gone;
        self.progress.open -= 1;
        let cached = self.progress.outcomes[request as usize].cached;
        self.figures.answered(arrival, cached, first, self.now);
        self.picked_ended(request, true);
        self.figures.in_flight_tokens -= self.estimated(request);
        let replica = &mut self.fleet.replicas[id as usize];
        replica.in_flight -= 1;
        replica.completed += 1;
        replica.generated += u64::from(tokens);
        replica.capacity.sums.gaps += u64::from(tokens.saturating_sub(1));
        replica.capacity.sums.itl_seconds += (self.now - first) as f64 / 1e6;
        replica.capacity.sums.uncached_tokens += u64::from(arrival.prompt.saturating_sub(cached));
        replica.capacity.sums.generated_tokens += u64::from(tokens);
        self.vacate(request, id, true);
        self.show(id);
    }

    /// Gives back a request's part in its replica's room.
    pub(super) fn vacate(&mut self, request: u32, id: u32, complete: bool) {
        let part = self.progress.parts.remove(&request);
        let tokens = self.trace.requests[request as usize].prompt.into();
        let replica = &mut self.fleet.replicas[id as usize];
        let (now, sums) = (Duration::from_micros(self.now), replica.capacity.sums);
        replica.capacity.room.ended((part, tokens), complete, now, || sums);
        self.fleet.learned = replica.capacity.room.learned().or(self.fleet.learned);
    }

    /// Tells the policy of a request's end at its replica.
    pub(super) fn picked_ended(&mut self, request: u32, complete: bool) {
        let Some(mut given) = self.progress.given.remove(&request) else { return };
        if complete {
            let Request { prompt, output, .. } = self.trace.requests[request as usize];
            let cached = self.progress.outcomes[request as usize].cached;
            given.set_usage(Usage {
                prompt: prompt.into(),
                cached: Some(cached.into()),
                generated: output.into(),
            });
        }
        self.fleet.picker.ended(&given, complete, Duration::from_micros(self.now));
    }

    /// A client without a first token gives up.
    pub(super) fn leave(&mut self, request: u32) {
        match self.progress.places[request as usize] {
            Place::Gone => return,
            Place::Held(place) => {
                self.progress.queue.remove(place);
                self.progress.prompts.remove(&request);
            }
            Place::At { replica } => {
                let at = &mut self.fleet.replicas[replica as usize];
                at.batch.abort(request);
                at.in_flight -= 1;
                self.gave_back(request);
                self.picked_ended(request, false);
                self.vacate(request, replica, false);
                self.show(replica);
                self.figures.in_flight_tokens -= self.estimated(request);
                self.release();
                self.stop_if_drained(replica);
            }
            Place::Coming | Place::Away { .. } => {}
        }
        self.figures.totals.client_left += 1;
        self.give_up(request);
        self.note_depth();
    }

    pub(super) fn give_up(&mut self, request: u32) {
        self.progress.places[request as usize] = Place::Gone;
        self.progress.outcomes[request as usize].gave_up = true;
        self.progress.without_token -= 1;
        self.progress.open -= 1;
    }

    /// Requests a push when the queue leaves zero, reaches it or doubles, as the gateway does.
    pub(super) fn note_depth(&mut self) {
        let (depth, pushed) = (self.progress.queue.depth(), self.pushes.depth);
        if (depth == 0) != (pushed == 0) || depth >= pushed.saturating_mul(2).max(1) {
            self.pushes.depth = depth;
            self.pushes.due = true;
        } else if depth < pushed / 2 {
            self.pushes.depth = depth;
        }
    }

    /// The gateway's estimate of a request's tokens: its prompt, and 256 of output.
    fn estimated(&self, request: u32) -> u64 {
        u64::from(self.trace.requests[request as usize].prompt) + 256
    }
}

/// The conditions of a request: all are streams that any replica can take.
pub(super) fn requirements(prompt: Option<Arc<Prompt>>) -> Requirements {
    Requirements { prompt, streamed: true, ..Requirements::default() }
}
