//! The clairvoyant: knows every request and every start beforehand.
//!
//! It is the cheapest schedule that a search finds at a given share of requests within the
//! objective, without any client that gives up. Each schedule is played in the same world as all
//! contestants, so the reported figures were reached: the true optimum costs at most that much. A
//! start takes exactly its median and begins that long before it is needed; the count at the
//! beginning needs no start.
//!
//! 1. The replicas are ordered, and each request goes to the lowest one that can still give its
//!    first token in time. The requests of a replica in each stretch of five seconds are the worth
//!    of having that replica then.
//! 2. For a price of replica time in late requests, dynamic programming gives the stays of each
//!    replica that are worth most: staying costs time, coming costs a cold start. A search finds the
//!    price that just reaches the share. Requests that no stay would serve in time are served
//!    together with those that follow.
//! 3. From the cheapest of these schedules, stays are removed or shortened at either end while the
//!    share holds: first those that save the most replica time for the fewest late requests. The
//!    search ends when nothing can be removed, or after a bounded number of schedules.

use super::fixed::Schedule;
use crate::replay::measure::within;
use crate::replay::replica::{Batch, Sequence};
use crate::replay::trace::{Request, SECOND, Trace, Us};
use crate::replay::world::{ColdStart, Model, play};

/// One replica's stay: ready from, until.
type Stay = (Us, Us);

/// Length of the stretches in which a replica's worth is counted.
const CELL: Us = 5 * SECOND;

/// How late a first token may be in the plans, as a share of the objective.
const LATENESS: [f64; 3] = [0.5, 0.9, 2.0];
/// Fewest and most prices that are tried for each of these.
const PRICES: (usize, usize) = (8, 12);

/// Number of schedules to play, by the requests of a trace: a search over half a million requests ends
/// within half a minute.
fn budget(requests: usize) -> usize {
    (12_000_000 / requests.max(1)).clamp(LATENESS.len() * PRICES.0, 2_000)
}

/// A schedule with its result.
#[derive(Clone, Debug)]
struct PlayedSchedule {
    stays: Vec<Stay>,
    share: f64,
    paid: Us,
}

/// The schedule, for at most `most` replicas. `progress` receives the share of the search done.
pub(crate) fn schedule(
    trace: &Trace,
    model: &Model,
    most: u32,
    share: f64,
    mut progress: impl FnMut(f64),
) -> Schedule {
    let cold = model.cold_start.median();
    let exact = exact(model);
    let most_plays = budget(trace.requests.len());
    let mut plays = 0;
    let mut played = |stays: Vec<Stay>, plays: &mut usize| {
        *plays += 1;
        progress(*plays as f64 / most_plays as f64);
        let run = play(trace, &exact, &mut schedule_of(&stays, cold, most), 1, |_| ());
        // A schedule that leaves a request unserved does not count.
        let all = run.outcomes.iter().all(|outcome| !outcome.gave_up);
        let share = within(&run.outcomes, &trace.requests, model.objective) - f64::from(!all);
        PlayedSchedule { stays, share, paid: run.paid }
    };
    let mut plans = Vec::new();
    let prices = (most_plays / LATENESS.len()).min(PRICES.1);
    for factor in LATENESS {
        let in_time = (model.objective as f64 * factor) as Us;
        let worth = worth(trace, model, most, in_time.min(model.patience));
        // Replica seconds that a late request is worth, between nothing and everything.
        let (mut low, mut high) = (1e-3f64.ln(), 1e6f64.ln());
        for round in 0..prices {
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
            // One cut for each stay in a round; cuts of different stays add up.
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

/// The same model, in which every start takes exactly its median.
pub(crate) fn exact(model: &Model) -> Model {
    Model { cold_start: ColdStart { spread: 0.0, ..model.cold_start }, ..model.clone() }
}

/// The least replica time that any fleet needs, by the timing model: all prompts at full speed and
/// all tokens in full batches.
pub(crate) fn floor(trace: &Trace, model: &Model) -> Us {
    trace.requests.iter().map(|request| busy(request, model)).sum()
}

/// The time that a request takes of a full replica.
pub(crate) fn busy(request: &Request, model: &Model) -> Us {
    let seats = model.engine.seats.min(model.limit.most as usize).max(1) as u32;
    let token = 1.0 / model.engine.timing.decode_throughput(seats);
    let prompt = model.engine.timing.prefill(request.prompt).as_secs_f64();
    ((prompt + f64::from(request.output.saturating_sub(1)) * token) * 1e6) as Us
}

/// The present stays with one cut of the original added. Stays keep their places; a removed one is
/// empty.
fn combined(origin: &[Stay], present: &[Stay], at: usize, cut: &[Stay]) -> Vec<Stay> {
    debug_assert_eq!(origin.len(), present.len());
    let mut stays = present.to_vec();
    stays[at] = cut[at];
    stays
}

/// The stays with one removed, and with it shortened at either end.
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

/// Counts over time: each stay is requested a cold start before it is ready.
fn schedule_of(stays: &[Stay], cold: Us, most: u32) -> Schedule {
    let mut changes: Vec<(Us, i64)> = Vec::new();
    let mut initial_replicas = 0;
    for (from, until) in stays.iter().filter(|(from, until)| from < until) {
        if *from < cold {
            initial_replicas += 1;
        } else {
            changes.push((from - cold, 1));
        }
        changes.push((*until, -1));
    }
    changes.sort_unstable();
    let mut count = i64::from(initial_replicas);
    let mut counts: Vec<(Us, u32)> = Vec::new();
    for (at, change) in changes {
        count += change;
        let now = (count.max(0) as u32).min(most);
        match counts.last_mut() {
            Some((last, value)) if *last == at => *value = now,
            _ => counts.push((at, now)),
        }
    }
    Schedule { initial_replicas: initial_replicas.min(most), counts, at: 0 }
}

/// The requests of each replica in each cell of time, lowest replica first, if each request goes to
/// the lowest replica that gives its first token within `in_time`.
fn worth(trace: &Trace, model: &Model, most: u32, in_time: Us) -> Vec<Vec<u32>> {
    let cells = (trace.length / CELL) as usize + 1;
    let mut worth = vec![vec![0; cells]; most as usize];
    let mut levels: Vec<Level> = (0..most).map(|_| Level(Batch::new(model.engine))).collect();
    for (id, request) in trace.requests.iter().enumerate() {
        let sequence = Sequence { id: id as u32, prompt: request.prompt, output: request.output };
        levels.iter_mut().for_each(|level| level.advance(request.at));
        let limit = model.limit.most as usize;
        let first = |level: &Level| level.0.first_token_after(request.prompt, request.at);
        let lowest =
            levels.iter().position(|level| level.requests() < limit && first(level) <= in_time);
        let at = lowest.unwrap_or_else(|| {
            let least = |at: &usize| first(&levels[*at]);
            (0..levels.len()).min_by_key(least).unwrap_or(0)
        });
        worth[at][(request.at / CELL) as usize] += 1;
        levels[at].0.submit(sequence, Vec::new(), request.at);
    }
    worth
}

/// The stays that are worth most, where a request is worth `price` seconds: the better of present
/// and absent, cell by cell.
fn chosen(worth: &[u32], cold: Us, price: f64) -> Vec<Stay> {
    let (cell, start) = (CELL as f64 / SECOND as f64, cold as f64 / SECOND as f64);
    // The best value with the replica absent and present, and whether each follows a present cell.
    let (mut away, mut there) = (0.0, 0.0);
    let mut came = Vec::with_capacity(worth.len());
    for requests in worth {
        let gain = f64::from(*requests) * price - cell;
        let (stay, come) = (there + gain, away - start + gain);
        // At the beginning a replica is present without a start.
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

/// Adds stays for requests that no stay would serve while their clients wait.
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
        // Late, so that it serves later requests as well; and not too late for this one.
        let from = request.at + model.patience * 3 / 4;
        let first = trace.requests.partition_point(|r| r.at < request.at);
        let together = trace.requests[first..].iter().take_while(|r| r.at <= from);
        let until = from + CELL + together.map(|r| busy(r, model)).sum::<Us>();
        stays.push((from, until));
        until_then = until;
    }
}

/// One replica that is always present.
struct Level(Batch);

impl Level {
    fn requests(&self) -> usize {
        self.0.running() + self.0.waiting()
    }

    fn advance(&mut self, to: Us) {
        let mut events = Vec::new();
        while let Some((end, plan)) = self.0.due()
            && end <= to
        {
            self.0.ended(plan, end, &mut events);
            events.clear();
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
        assert_eq!(schedule.initial_replicas, 0);
        let (requested, count) = schedule.counts[0];
        // The start may use the time that the objective allows, and no more.
        let in_time = at - model.cold_start.median();
        assert!(
            (in_time..in_time + model.objective).contains(&requested),
            "requested at {requested}"
        );
        assert_eq!(count, 1);
        assert_eq!(schedule.counts.last().map(|(_, count)| *count), Some(0), "it goes again");
    }

    #[test]
    fn the_search_is_bounded_and_a_day_of_half_a_million_requests_gets_few_plays() {
        assert_eq!((budget(500_000), budget(50_000), budget(1)), (24, 240, 2_000));
        let trace = trace_of((0..40).map(|i| (i * 30 * SECOND, 100, 5)));
        let mut shares = Vec::new();
        schedule(&trace, &model(), 2, 0.9, |share| shares.push(share));
        assert!(!shares.is_empty() && shares.iter().all(|share| *share <= 1.0), "{shares:?}");
    }

    #[test]
    fn a_replica_stays_through_a_gap_shorter_than_a_start_and_not_through_a_longer_one() {
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
