//! The clairvoyant: knows every request and every start beforehand.
//!
//! It is the cheapest schedule that a search finds at a given share of requests within the
//! objective, with nobody left to give up. Each schedule is played in the same world as everybody else, so what is reported was
//! reached: the true optimum costs at most that much. A start takes exactly its median and is asked
//! for so long before; counts at the beginning are there without a start.
//!
//! 1. Requests are laid on replicas one above the other: each goes to the lowest that can still
//!    give its first token in time. A replica is needed while it is busy; gaps shorter than a cold
//!    start are cheaper to stay through. This is done for several measures of "in time".
//! 2. From the cheapest of these that reaches the share, pieces are taken away (a replica's whole
//!    stay, a part at either end) as long as the share holds, those first that save the most
//!    replica time for the fewest late requests, until nothing more can be taken or the search has
//!    played its bounded number of schedules.

use super::fixed::Schedule;
use crate::replay::measure::within;
use crate::replay::replica::{Batch, Sequence};
use crate::replay::trace::{SECOND, Trace, Us};
use crate::replay::world::{ColdStart, Model, play};

/// One replica's stay: ready from, until.
type Stay = (Us, Us);

/// Schedules played, by the requests of a trace.
fn budget(requests: usize) -> usize {
    (6_000_000 / requests.max(1)).clamp(40, 1_500)
}

/// A schedule with what it reached.
#[derive(Clone, Debug)]
struct Plan {
    stays: Vec<Stay>,
    share: f64,
    paid: Us,
}

/// The schedule, for no more than `most` replicas.
pub(crate) fn schedule(
    trace: &Trace,
    model: &Model,
    most: u32,
    share: f64,
    mut told: impl FnMut(f64),
) -> Schedule {
    let cold = model.cold_start.median();
    let exact = exact(model);
    let most_plays = budget(trace.requests.len());
    let mut plays = 0;
    let mut played = |stays: Vec<Stay>, plays: &mut usize| {
        *plays += 1;
        told(*plays as f64 / most_plays as f64);
        let run = play(trace, &exact, &mut schedule_of(&stays, cold, most), 1, |_| ());
        // Nobody is left unserved for the sake of the share.
        let all = run.outcomes.iter().all(|outcome| !outcome.gave_up);
        let share = within(&run.outcomes, &trace.requests, model.objective) - f64::from(!all);
        Plan { stays, share, paid: run.paid }
    };
    let measures = [0.4, 0.6, 0.8, 1.0, 1.5, 2.5, 5.0, 15.0, 60.0, 300.0];
    let mut plans: Vec<_> = measures
        .iter()
        .map(|factor| {
            let in_time = (model.objective as f64 * factor) as Us;
            let stays = stays(trace, model, most, in_time.min(model.patience));
            played(stays, &mut plays)
        })
        .collect();
    plans.sort_by_key(|plan| plan.paid);
    let best_share = plans.iter().map(|plan| plan.share).fold(0.0, f64::max);
    let share = share.min(best_share);
    let Some(mut best) = plans.into_iter().find(|plan| plan.share >= share) else {
        return Schedule::fixed(most);
    };
    loop {
        let mut candidates = Vec::new();
        for at in 0..best.stays.len() {
            for stays in cuts(&best.stays, at) {
                if plays >= most_plays {
                    break;
                }
                let plan = played(stays.clone(), &mut plays);
                let saved = best.paid.saturating_sub(plan.paid);
                let lost = (best.share - plan.share).max(0.0);
                if saved > 0 {
                    let worth = saved as f64 / (lost + 1e-7);
                    let keep = if plan.share >= share { worth } else { worth * 1e-9 };
                    candidates.push((keep, at, stays));
                }
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0));
        let before = best.paid;
        let mut touched = std::collections::BTreeSet::new();
        let origin = best.stays.clone();
        for (_, at, stays) in candidates {
            // One cut a stay in each round; the cuts of others are laid on top of each other.
            if plays >= most_plays || !touched.insert(at) {
                continue;
            }
            let cut = combined(&origin, &best.stays, at, &stays);
            let plan = played(cut, &mut plays);
            if plan.share >= share && plan.paid < best.paid {
                best = plan;
            } else {
                touched.remove(&at);
            }
        }
        best.stays.retain(|(from, until)| from < until);
        if best.paid >= before || plays >= most_plays {
            return schedule_of(&best.stays, cold, most);
        }
    }
}

/// Starts take exactly what they take at the median.
pub(crate) fn exact(model: &Model) -> Model {
    Model { cold_start: ColdStart { spread: 0.0, ..model.cold_start }, ..model.clone() }
}

/// The least that any fleet can be busy for, by the timing model: all prompts at full speed and all
/// tokens at full batches.
pub(crate) fn floor(trace: &Trace, model: &Model) -> Us {
    let seats = model.engine.seats.min(model.limit as usize).max(1) as u32;
    let token = 1.0 / model.engine.timing.decode_throughput(seats);
    let busy = |request: &crate::replay::trace::Request| {
        model.engine.timing.prefill(request.prompt).as_secs_f64()
            + f64::from(request.output.saturating_sub(1)) * token
    };
    (trace.requests.iter().map(busy).sum::<f64>() * 1e6) as Us
}

/// The plan in which one stay of the original is cut, on top of what was cut since. Stays keep
/// their places; one that is gone is empty.
fn combined(origin: &[Stay], present: &[Stay], at: usize, cut: &[Stay]) -> Vec<Stay> {
    debug_assert_eq!(origin.len(), present.len());
    let mut stays = present.to_vec();
    stays[at] = cut[at];
    stays
}

/// A stay left out, and shortened at either end by parts.
fn cuts(stays: &[Stay], at: usize) -> Vec<Vec<Stay>> {
    let (from, until) = stays[at];
    let length = until.saturating_sub(from);
    let with = |stay: Stay| {
        let mut changed = stays.to_vec();
        changed[at] = stay;
        changed
    };
    let mut all = Vec::new();
    if length == 0 {
        return all;
    }
    all.push(with((from, from)));
    for part in [2, 4, 10] {
        let cut = length / part;
        if cut >= SECOND {
            all.push(with((from + cut, until)));
            all.push(with((from, until - cut)));
        }
    }
    all
}

/// Counts over time: each stay is asked for a cold start before it is ready.
fn schedule_of(stays: &[Stay], cold: Us, most: u32) -> Schedule {
    let mut changes: Vec<(Us, i64)> = Vec::new();
    let mut begins_with = 0;
    for (from, until) in stays.iter().filter(|(from, until)| from < until) {
        if *from < cold {
            begins_with += 1;
        } else {
            changes.push((from - cold, 1));
        }
        changes.push((*until, -1));
    }
    changes.sort_unstable();
    let mut count = i64::from(begins_with);
    let mut counts: Vec<(Us, u32)> = Vec::new();
    for (at, change) in changes {
        count += change;
        let now = (count.max(0) as u32).min(most);
        match counts.last_mut() {
            Some((last, value)) if *last == at => *value = now,
            _ => counts.push((at, now)),
        }
    }
    Schedule { begins_with: begins_with.min(most), counts, at: 0 }
}

/// When each replica is needed, if each request goes to the lowest that gives its first token
/// within `in_time`.
fn stays(trace: &Trace, model: &Model, most: u32, in_time: Us) -> Vec<Stay> {
    let mut levels: Vec<Level> = (0..most).map(|_| Level::new(Batch::new(model.engine))).collect();
    for (id, request) in trace.requests.iter().enumerate() {
        let sequence = Sequence { id: id as u32, prompt: request.prompt, output: request.output };
        levels.iter_mut().for_each(|level| level.advance(request.at));
        let limit = model.limit as usize;
        let first = |level: &Level| level.batch.first_token_after(request.prompt, request.at);
        let lowest =
            levels.iter().position(|level| level.requests() < limit && first(level) <= in_time);
        let at = lowest.unwrap_or_else(|| {
            let least = |at: &usize| first(&levels[*at]);
            (0..levels.len()).min_by_key(least).unwrap_or(0)
        });
        levels[at].take(sequence, request.at);
    }
    let gap = model.cold_start.median();
    levels.into_iter().flat_map(|level| level.stays(gap)).collect()
}

/// One replica that is always there, and when it had work.
struct Level {
    batch: Batch,
    busy: Vec<Stay>,
}

impl Level {
    fn new(batch: Batch) -> Self {
        Self { batch, busy: Vec::new() }
    }

    fn requests(&self) -> usize {
        self.batch.running() + self.batch.waiting()
    }

    fn advance(&mut self, to: Us) {
        let mut told = Vec::new();
        while let Some((end, plan)) = self.batch.due()
            && end <= to
        {
            self.batch.ended(plan, end, &mut told);
            told.clear();
            if let Some((_, until)) = self.busy.last_mut() {
                *until = end;
            }
        }
    }

    fn take(&mut self, sequence: Sequence, now: Us) {
        if self.requests() == 0 {
            self.busy.push((now, now));
        }
        self.batch.submit(sequence, now);
    }

    /// Busy times with the gaps closed that are shorter than a start.
    fn stays(mut self, gap: Us) -> Vec<Stay> {
        self.advance(Us::MAX);
        let mut stays: Vec<Stay> = Vec::new();
        for (from, until) in self.busy {
            match stays.last_mut() {
                Some((_, last)) if *last + gap >= from => *last = until,
                _ => stays.push((from, until)),
            }
        }
        stays
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::tests::{model, trace_of};

    #[test]
    fn one_burst_is_one_stay_that_is_ready_in_time() {
        let model = model();
        let at = 600 * SECOND;
        let trace = trace_of((0..20).map(|i| (at + i * SECOND, 500, 20)));
        let schedule = schedule(&trace, &model, 4, 1.0, |_| ());
        assert_eq!(schedule.begins_with, 0);
        let (asked, count) = schedule.counts[0];
        // It may use what the objective allows, and no more.
        let in_time = at - model.cold_start.median();
        assert!((in_time..in_time + model.objective).contains(&asked), "asked for at {asked}");
        assert_eq!(count, 1);
        assert_eq!(schedule.counts.last().map(|(_, count)| *count), Some(0), "it goes again");
    }

    #[test]
    fn it_stays_through_a_gap_that_is_shorter_than_a_start_and_not_through_a_longer_one() {
        let model = model();
        let cold = model.cold_start.median();
        for (gap, stays_wanted) in [(cold / 2, 1), (cold * 3, 2)] {
            let trace = trace_of([(0, 500, 20), (gap, 500, 20)]);
            assert_eq!(stays(&trace, &model, 4, SECOND).len(), stays_wanted, "gap {gap}");
        }
    }
}
