//! The clairvoyant: knows every request and every start beforehand.
//!
//! It is the cheapest schedule that a search finds at a given share of requests within the
//! objective, with nobody left to give up. Each schedule is played in the same world as everybody else, so what is reported was
//! reached: the true optimum costs at most that much. A start takes exactly its median and is asked
//! for so long before; counts at the beginning are there without a start.
//!
//! 1. Requests are laid on replicas one above the other: each goes to the lowest that can still
//!    give its first token in time. What a replica gets in each stretch of five seconds is what it
//!    would be worth to have it there.
//! 2. For a price of replica time in late requests, the stays of each replica that are worth most
//!    follow exactly, by dynamic programming: staying costs its time, coming costs a cold start.
//!    The price is searched at which the share is just reached. Whoever would be left without any
//!    replica for longer than clients wait is served together with those who came after.
//! 3. From the cheapest of these, pieces are taken away (a replica's whole stay, a part at either
//!    end) as long as the share holds, those first that save the most replica time for the fewest
//!    late requests, until nothing more can be taken or the search has played its bounded number of
//!    schedules.

use super::fixed::Schedule;
use crate::replay::measure::within;
use crate::replay::replica::{Batch, Sequence};
use crate::replay::trace::{Request, SECOND, Trace, Us};
use crate::replay::world::{ColdStart, Model, play};

/// One replica's stay: ready from, until.
type Stay = (Us, Us);

/// Stretches of time in which a replica's worth is counted.
const CELL: Us = 5 * SECOND;

/// Schedules played, by the requests of a trace.
fn budget(requests: usize) -> usize {
    (12_000_000 / requests.max(1)).clamp(120, 2_000)
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
    let mut plans = Vec::new();
    for factor in [0.5, 0.9, 2.0] {
        let in_time = (model.objective as f64 * factor) as Us;
        let worth = worth(trace, model, most, in_time.min(model.patience));
        // Replica seconds that a late request is worth, between nothing and everything.
        let (mut low, mut high) = (1e-3f64.ln(), 1e6f64.ln());
        for round in 0..12 {
            let price = if round == 0 { high } else { low.midpoint(high) };
            let mut stays: Vec<_> =
                worth.iter().flat_map(|cells| chosen(cells, cold, price.exp())).collect();
            serve_all(&mut stays, trace, model);
            let plan = played(stays, &mut plays);
            let reached = plan.share >= share;
            if reached {
                high = price;
            } else {
                low = price;
            }
            plans.push(plan);
            if round == 0 && !reached {
                break;
            }
        }
    }
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
    trace.requests.iter().map(|request| busy(request, model)).sum()
}

/// How long a request keeps a replica that is otherwise full.
fn busy(request: &Request, model: &Model) -> Us {
    let seats = model.engine.seats.min(model.limit as usize).max(1) as u32;
    let token = 1.0 / model.engine.timing.decode_throughput(seats);
    let prompt = model.engine.timing.prefill(request.prompt).as_secs_f64();
    ((prompt + f64::from(request.output.saturating_sub(1)) * token) * 1e6) as Us
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

/// The requests that each replica would get in each cell of time, the lowest replica first, if each
/// request goes to the lowest that gives its first token within `in_time`.
fn worth(trace: &Trace, model: &Model, most: u32, in_time: Us) -> Vec<Vec<u32>> {
    let cells = (trace.length / CELL) as usize + 1;
    let mut worth = vec![vec![0; cells]; most as usize];
    let mut levels: Vec<Level> = (0..most).map(|_| Level(Batch::new(model.engine))).collect();
    for (id, request) in trace.requests.iter().enumerate() {
        let sequence = Sequence { id: id as u32, prompt: request.prompt, output: request.output };
        levels.iter_mut().for_each(|level| level.advance(request.at));
        let limit = model.limit as usize;
        let first = |level: &Level| level.0.first_token_after(request.prompt, request.at);
        let lowest =
            levels.iter().position(|level| level.requests() < limit && first(level) <= in_time);
        let at = lowest.unwrap_or_else(|| {
            let least = |at: &usize| first(&levels[*at]);
            (0..levels.len()).min_by_key(least).unwrap_or(0)
        });
        worth[at][(request.at / CELL) as usize] += 1;
        levels[at].0.submit(sequence, request.at);
    }
    worth
}

/// The stays that are worth most, where a request is worth `price` seconds: the best of being there
/// and not, cell by cell.
fn chosen(worth: &[u32], cold: Us, price: f64) -> Vec<Stay> {
    let (cell, start) = (CELL as f64 / SECOND as f64, cold as f64 / SECOND as f64);
    // The best value with the replica away and there, and whether each came from being there.
    let (mut away, mut there) = (0.0, 0.0);
    let mut came = Vec::with_capacity(worth.len());
    for requests in worth {
        let gain = f64::from(*requests) * price - cell;
        let (stay, come) = (there + gain, away - start + gain);
        // Before the beginning nothing was to be waited for.
        let come = if came.is_empty() { gain } else { come };
        let from = (there > away, stay >= come && !came.is_empty());
        away = away.max(there);
        there = stay.max(come);
        came.push(from);
    }
    let mut is_there = there > away;
    let mut stays: Vec<Stay> = Vec::new();
    for (at, (away_from_there, there_from_there)) in came.into_iter().enumerate().rev() {
        let (from, until) = (at as Us * CELL, (at as Us + 1) * CELL);
        if is_there {
            match stays.last_mut() {
                Some(stay) if stay.0 == until => stay.0 = from,
                _ => stays.push((from, until)),
            }
            is_there = there_from_there;
        } else {
            is_there = away_from_there;
        }
    }
    stays.reverse();
    stays
}

/// Adds a stay for those whom no stay would serve while they wait.
fn serve_all(stays: &mut Vec<Stay>, trace: &Trace, model: &Model) {
    let mut present = stays.clone();
    present.sort_unstable();
    let mut until_then = 0;
    let mut next = 0;
    for request in &trace.requests {
        while present.get(next).is_some_and(|stay| stay.0 <= request.at) {
            until_then = present[next].1.max(until_then);
            next += 1;
        }
        let soon = present.get(next).is_some_and(|stay| stay.0 <= request.at + model.patience / 2);
        if until_then > request.at || soon {
            continue;
        }
        // Late, so that those who come in the meantime are served with it; and not too late.
        let from = request.at + model.patience * 3 / 4;
        let together = trace.requests.iter().filter(|r| r.at >= request.at && r.at <= from);
        let until = from + CELL + together.map(|r| busy(r, model)).sum::<Us>();
        stays.push((from, until));
        until_then = until;
    }
}

/// One replica that is always there.
struct Level(Batch);

impl Level {
    fn requests(&self) -> usize {
        self.0.running() + self.0.waiting()
    }

    fn advance(&mut self, to: Us) {
        let mut told = Vec::new();
        while let Some((end, plan)) = self.0.due()
            && end <= to
        {
            self.0.ended(plan, end, &mut told);
            told.clear();
        }
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
        let cold = 60 * SECOND;
        for (gap, stays) in [(5, 1), (11, 1), (14, 2), (100, 2)] {
            let mut worth = vec![0; 3];
            worth.push(1);
            worth.extend(vec![0; gap]);
            worth.push(1);
            assert_eq!(chosen(&worth, cold, 1_000.0).len(), stays, "{gap} cells");
        }
        assert_eq!(chosen(&[0, 0, 1, 0], cold, 10.0), [], "not worth a start");
        // At the beginning it may be there for nothing, and two cells cost less than a start.
        assert_eq!(chosen(&[0, 0, 9, 0], cold, 10.0), [(0, 3 * CELL)]);
        let late = [vec![0; 20], vec![9, 0]].concat();
        assert_eq!(chosen(&late, cold, 10.0), [(20 * CELL, 21 * CELL)]);
    }
}
