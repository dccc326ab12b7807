//! The gateway's part: who is held, who is released where, and who comes again.

use rand::Rng;

use super::{Event, Place, World};
use crate::replay::replica::{Sequence, Told};
use crate::replay::trace::Us;

/// How requests get to replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hold {
    /// Held in order until a replica has room: the limit less what it has.
    UntilRoom,
    /// Held while none is ready, then given all at once to the replicas with the least.
    AtZero,
    /// Not held: refused while none is ready, the client comes again. Otherwise round robin.
    Never,
}

impl World<'_> {
    /// A request has come, or come again.
    pub(super) fn admit(&mut self, request: u32) {
        let tries = match self.places[request as usize] {
            Place::Gone => return,
            Place::Away { tries } => tries,
            _ => 0,
        };
        if self.rules.hold == Hold::Never && !self.any_ready() {
            let (first, most) = self.model.retry;
            // As the OpenAI clients do: doubling, less up to a quarter by chance.
            let pause = first.saturating_mul(1 << tries.min(20)).min(most).max(1);
            let pause = pause - (pause as f64 * 0.25 * self.random.random::<f64>()) as Us;
            self.places[request as usize] = Place::Away { tries: tries + 1 };
            self.later(self.now + pause, Event::Retry { request });
            return;
        }
        if self.queue.len() >= self.model.hold_most && self.rules.hold != Hold::Never {
            self.books.totals.refused += 1;
            self.give_up(request);
            return;
        }
        self.places[request as usize] = Place::Held;
        self.queue.push_back(request);
        self.books.held_tokens += self.estimated(request);
        self.release();
        self.tell_of_depth();
    }

    /// Gives those who are held to the replicas that have room.
    pub(super) fn release(&mut self) {
        while let Some(request) = self.queue.front().copied() {
            let Some(replica) = self.pick() else { break };
            self.queue.pop_front();
            self.books.held_tokens -= self.estimated(request);
            self.give(request, replica);
        }
    }

    fn pick(&mut self) -> Option<u32> {
        let open = |world: &Self, id: u32| {
            let replica = &world.replicas[id as usize];
            let room = replica.in_flight < world.model.limit;
            replica.is_ready() && (room || world.rules.hold != Hold::UntilRoom)
        };
        if self.rules.hold == Hold::Never {
            let live = self.live.len();
            let at = (0..live).map(|i| (self.turn + i) % live);
            let found = at.clone().find(|at| open(self, self.live[*at]))?;
            self.turn = found + 1;
            return Some(self.live[found]);
        }
        let with_room = self.live.iter().copied().filter(|id| open(self, *id));
        with_room.min_by_key(|id| (self.replicas[*id as usize].in_flight, *id))
    }

    fn give(&mut self, request: u32, id: u32) {
        let now = self.now;
        let asked = self.requests[request as usize];
        self.places[request as usize] = Place::At { replica: id };
        self.outcomes[request as usize].released = Some(now);
        self.books.totals.released += 1;
        self.books.hold.record((now - asked.at) as f64 / 1e6);
        self.books.in_flight_tokens += self.estimated(request);
        let replica = &mut self.replicas[id as usize];
        replica.in_flight += 1;
        let sequence = Sequence { id: request, prompt: asked.prompt, output: asked.output };
        replica.batch.submit(sequence, now);
        self.plan(id);
    }

    /// Looks forward to the end of the replica's present steps.
    fn plan(&mut self, id: u32) {
        let replica = &mut self.replicas[id as usize];
        let Some((end, plan)) = replica.batch.due() else { return };
        if replica.planned != Some(plan) {
            replica.planned = Some(plan);
            self.later(end, Event::Steps { replica: id, plan });
        }
    }

    pub(super) fn steps_ended(&mut self, id: u32, plan: u32) {
        let mut told = std::mem::take(&mut self.told);
        let now = self.now;
        if self.replicas[id as usize].batch.ended(plan, now, &mut told) {
            for told in told.drain(..) {
                match told {
                    Told::First(request) => self.first_token(request, id),
                    Told::Last(request, tokens) => self.answered(request, tokens, id),
                }
            }
            self.plan(id);
            self.release();
            self.tell_of_depth();
            self.stop_if_drained(id);
        }
        self.told = told;
    }

    fn first_token(&mut self, request: u32, id: u32) {
        self.replicas[id as usize].first_token.get_or_insert(self.now);
        let outcome = &mut self.outcomes[request as usize];
        outcome.first_token = Some(self.now);
        self.without_token -= 1;
        let arrived = self.requests[request as usize].at;
        let released = outcome.released.unwrap_or(arrived);
        self.books.first_token(arrived, released, self.now);
    }

    fn answered(&mut self, request: u32, tokens: u32, id: u32) {
        let asked = self.requests[request as usize];
        let outcome = &mut self.outcomes[request as usize];
        outcome.last_token = Some(self.now);
        let first = outcome.first_token.unwrap_or(self.now);
        self.places[request as usize] = Place::Gone;
        self.open -= 1;
        self.books.answered(asked, first, self.now);
        self.books.in_flight_tokens -= self.estimated(request);
        let replica = &mut self.replicas[id as usize];
        replica.in_flight -= 1;
        replica.completed += 1;
        replica.generated += u64::from(tokens);
    }

    /// A client's patience is over.
    pub(super) fn leave(&mut self, request: u32) {
        match self.places[request as usize] {
            Place::Gone => return,
            Place::Held => {
                self.queue.retain(|held| *held != request);
                self.books.held_tokens -= self.estimated(request);
            }
            Place::At { replica } => {
                let at = &mut self.replicas[replica as usize];
                at.batch.abort(request);
                at.in_flight -= 1;
                self.books.in_flight_tokens -= self.estimated(request);
                self.release();
                self.stop_if_drained(replica);
            }
            Place::Coming | Place::Away { .. } => {}
        }
        self.books.totals.client_left += 1;
        self.give_up(request);
        self.tell_of_depth();
    }

    fn give_up(&mut self, request: u32) {
        self.places[request as usize] = Place::Gone;
        self.outcomes[request as usize].gave_up = true;
        self.without_token -= 1;
        self.open -= 1;
    }

    /// Leaving zero, reaching it and doubling are news for the scaler, as the gateway has it.
    fn tell_of_depth(&mut self) {
        let (depth, told) = (self.queue.len(), self.told_depth);
        if (depth == 0) != (told == 0) || depth >= told.saturating_mul(2).max(1) {
            self.told_depth = depth;
            self.news = true;
        } else if depth < told / 2 {
            self.told_depth = depth;
        }
    }

    /// What the gateway takes for a request's tokens before it knows: its prompt, and 256 of answer.
    fn estimated(&self, request: u32) -> u64 {
        u64::from(self.requests[request as usize].prompt) + 256
    }
}
