//! Streams that move off draining replicas, as the gateway moves them: a few of one replica at the same
//! time, to the places that no held request can use. The new replica computes the prompt and the answer
//! so far; the client sees a pause.

use std::sync::Arc;
use std::time::Duration;

use super::gateway::requirements;
use super::{Event, World};

/// The most streams of one replica that move at the same time, as in the gateway.
const AT_ONCE: usize = 4;

impl World<'_> {
    /// Plans when the streams of a replica that begins to drain may move.
    pub(super) fn plan_leaving(&mut self, id: u32) {
        if let Some(after) = self.rules.move_after {
            self.later(self.now + after, Event::Leave { replica: id });
        }
    }

    /// Moves streams off all replicas that have drained for long enough.
    pub(super) fn release_moves(&mut self) {
        if self.rules.move_after.is_none() {
            return;
        }
        for id in self.fleet.live.clone() {
            self.move_streams(id);
        }
    }

    /// Moves streams off a replica that has drained for long enough.
    pub(super) fn move_streams(&mut self, id: u32) {
        let drains = self.fleet.replicas[id as usize].drains_since;
        let leaves_at = drains.zip(self.rules.move_after).map(|(since, after)| since + after);
        if leaves_at.is_some_and(|at| at <= self.now) {
            while self.moving_off(id) < AT_ONCE && self.move_one(id) {}
            self.stop_if_drained(id);
        }
    }

    /// How many streams move off this replica now.
    fn moving_off(&self, id: u32) -> usize {
        self.progress.moving.values().filter(|from| **from == id).count()
    }

    /// Moves one stream; false if none can move now.
    fn move_one(&mut self, from: u32) -> bool {
        let Some(request) = self.fleet.replicas[from as usize].batch.first_decoding(self.now)
        else {
            return false;
        };
        let now = Duration::from_micros(self.now);
        let reads = self.model.pick.reads_prompts();
        let content = self.trace.content(request).filter(|_| reads);
        let requirements = requirements(content.map(|content| Arc::new(content.prompt())));
        let fleet = &mut self.fleet;
        let Some(choice) = fleet.picker.pick(&fleet.candidates, &requirements, now) else {
            return false;
        };
        let Some(to) = fleet.chosen(choice) else { return false };
        let old = &mut fleet.replicas[from as usize];
        let Some((sequence, generated)) = old.batch.take(request, self.now) else { return false };
        old.generated += u64::from(generated);
        old.in_flight -= 1;
        self.vacate(request, from, false);
        self.plan(from);
        self.show(from);
        self.picked_ended(request, false);
        self.submit(sequence, to);
        let fleet = &mut self.fleet;
        let given = fleet.picker.given(&fleet.candidates, choice, &requirements, now);
        self.progress.given.extend(given.map(|given| (request, given)));
        self.progress.moving.insert(request, from);
        self.fleet.moves += 1;
        true
    }
}
