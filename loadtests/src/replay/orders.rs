//! The orders of held requests side by side: an overload on a fixed fleet, once for each order, beside
//! what a gateway could do that knows the load beforehand.
//!
//! - `evenly`: it knows how many requests will come, and drops as few of them as it must, evenly and
//!   as they arrive. Like any gateway, it does not know how long an answer will be.
//! - `prompts`: it drops those with the longest prompts instead, which a gateway knows as well.
//! - `shortest`: it knows the answers, too, and drops the longest requests.
//! - the bound: no gateway can do better. The shortest requests are served, each in the least time of
//!   a replica that it can take, and no moment is lost.
//!
//! The clairvoyants play in the same world, with the best share of drops that a search finds.
//!
//! From zero there are no clairvoyants: the question is whether requests that waited through the cold
//! start are released later than in the order of arrival.

use forebay_config::HoldOrder;
use serde::Serialize;

use super::contestants::fixed::Schedule;
use super::contestants::optimum::busy;
use super::measure::{Quantiles, within};
use super::report::{aligned, percent, seconds, span};
use super::scenario::Scenario;
use super::trace::{Request, Trace, Us};
use super::world::{Model, Outcome, Run};

/// The shares of dropped requests that are tried first, and the rounds that narrow them down.
const COARSE: u32 = 12;
const ROUNDS: u32 = 4;

const ORDERS: [(&str, HoldOrder); 2] =
    [("arrival", HoldOrder::Arrival), ("objective", HoldOrder::Objective)];

/// The results of all orders on one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrderResults {
    pub(crate) pool: String,
    pub(crate) trace: String,
    pub(crate) requests: usize,
    pub(crate) hours: f64,
    pub(crate) replicas: u32,
    /// The work that arrives, as a multiple of what the replicas can do until the last arrival.
    pub(crate) load: f64,
    pub(crate) objective_ttft_seconds: f64,
    /// The largest share of requests in time that any gateway could reach.
    pub(crate) bound: f64,
    pub(crate) orders: Vec<OrderReport>,
}

/// The result of one order.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct OrderReport {
    pub(crate) order: String,
    /// Share of all requests with a first token within the objective.
    pub(crate) share_within: f64,
    /// Share of all requests that were answered, whenever.
    pub(crate) share_answered: f64,
    /// Share of all requests that were refused because they could not start in time.
    pub(crate) share_too_late: f64,
    /// The share of all requests by which fewer were answered than if none is refused so: refusals of
    /// requests that could have started in time.
    pub(crate) share_lost: f64,
    /// Seconds from arrival to such a refusal; `null` if there was none.
    pub(crate) refused_after_seconds: Option<Quantiles>,
    /// Seconds from arrival to first token, of the requests that got one; `null` if none did.
    pub(crate) ttft_seconds: Option<Quantiles>,
    /// From zero, of the requests that came before the first replica was ready: the longest time by
    /// which one was released later than in the order of arrival, in seconds. `null` if none waited.
    pub(crate) overtaken_seconds: Option<f64>,
    /// The least replica time that the answered requests take, as a share of the time paid until the
    /// last of them.
    pub(crate) busy_share: f64,
}

/// Plays the load on `replicas` replicas, once for each order and for each clairvoyant. `play` plays
/// a trace under an order; it receives a name to show.
pub(crate) fn compare(
    scenario: &Scenario,
    trace: &Trace,
    replicas: u32,
    play: impl Fn(&'static str, &Trace, &Model, &mut Schedule) -> Run,
) -> OrderResults {
    let model = &scenario.model;
    let played = |name, trace: &Trace, model: &Model| {
        play(name, trace, model, &mut Schedule::fixed(replicas))
    };
    let of = (replicas, trace.requests.len());
    let mut orders = Vec::new();
    for (name, order) in ORDERS {
        let model = Model { order, ..model.clone() };
        let run = played(name, trace, &model);
        let unrefused = played(name, trace, &Model { refuses: false, ..model.clone() });
        let mut report = OrderReport::new(name, trace, &model, of, &run);
        let unrefused = OrderReport::new(name, trace, &model, of, &unrefused);
        report.share_lost = (unrefused.share_answered - report.share_answered).max(0.0);
        orders.push(report);
    }
    let in_order = Model { order: HoldOrder::Objective, ..model.clone() };
    for (name, keep) in [
        ("evenly", evenly as fn(&Trace, &Model, f64) -> Trace),
        ("prompts", short_prompts),
        ("shortest", shortest as fn(&Trace, &Model, f64) -> Trace),
    ] {
        let best = best(|share| {
            let kept = keep(trace, model, share);
            let run = played(name, &kept, &in_order);
            OrderReport::new(name, &kept, model, of, &run)
        });
        orders.push(OrderReport { order: format!("{name} (clairvoyant)"), ..best });
    }
    OrderResults::new(scenario, trace, replicas, orders)
}

/// Plays the load once for each order, on `replicas` replicas that start at its first request.
pub(crate) fn compare_from_zero(
    scenario: &Scenario,
    trace: &Trace,
    replicas: u32,
    play: impl Fn(&'static str, &Trace, &Model, &mut Schedule) -> Run,
) -> OrderResults {
    let first = trace.requests.first().map_or(0, |request| request.at);
    let runs = ORDERS.map(|(name, order)| {
        let model = Model { order, ..scenario.model.clone() };
        let counts = vec![(first, replicas)];
        let mut fleet = Schedule { initial_replicas: 0, counts, at: 0 };
        let run = play(name, trace, &model, &mut fleet);
        (name, model, run)
    });
    let [(_, _, arrival), _] = &runs;
    let report = |(name, model, run): &(&'static str, Model, Run)| OrderReport {
        overtaken_seconds: overtaken(trace, arrival, run),
        ..OrderReport::new(name, trace, model, (replicas, trace.requests.len()), run)
    };
    OrderResults::new(scenario, trace, replicas, runs.iter().map(report).collect())
}

impl OrderResults {
    fn new(scenario: &Scenario, trace: &Trace, replicas: u32, orders: Vec<OrderReport>) -> Self {
        let model = &scenario.model;
        let last = trace.requests.last().map_or(0, |request| request.at);
        let work: Us = trace.requests.iter().map(|request| busy(request, model)).sum();
        Self {
            pool: scenario.pool.name.clone(),
            trace: trace.name.clone(),
            requests: trace.requests.len(),
            hours: trace.length as f64 / 3.6e9,
            replicas,
            load: work as f64 / (last.max(1) * u64::from(replicas)) as f64,
            objective_ttft_seconds: model.objective as f64 / 1e6,
            bound: bound(trace, model, replicas),
            orders,
        }
    }
}

/// The longest time by which a request that came before the first release was released later than
/// in `arrival`, in seconds; `None` if none came before.
fn overtaken(trace: &Trace, arrival: &Run, run: &Run) -> Option<f64> {
    let first = arrival.outcomes.iter().filter_map(|outcome| outcome.released).min()?;
    let waited = trace.requests.iter().take_while(|request| request.at < first);
    let later = waited.zip(&arrival.outcomes).zip(&run.outcomes).map(|((_, one), other)| {
        // A request that is not released at all is as late as the run is long.
        let at = |outcome: &Outcome| outcome.released.unwrap_or(run.ended);
        at(other).saturating_sub(at(one)) as f64 / 1e6
    });
    later.max_by(f64::total_cmp)
}

/// The trace without a share of its requests, evenly.
fn evenly(trace: &Trace, _: &Model, share: f64) -> Trace {
    let dropped = |at: usize| ((at + 1) as f64 * share).floor() > (at as f64 * share).floor();
    without(trace, dropped)
}

/// The trace without the share of its requests that have the longest prompts.
fn short_prompts(trace: &Trace, _: &Model, share: f64) -> Trace {
    without_longest(trace, |request| request.prompt.into(), share)
}

/// The trace without the share of its requests that take the longest.
fn shortest(trace: &Trace, model: &Model, share: f64) -> Trace {
    without_longest(trace, |request| busy(request, model), share)
}

fn without_longest(trace: &Trace, length: impl Fn(&Request) -> u64, share: f64) -> Trace {
    let lengths: Vec<u64> = trace.requests.iter().map(length).collect();
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|at| (std::cmp::Reverse(lengths[*at]), *at));
    let mut dropped = vec![false; lengths.len()];
    let count = (share * lengths.len() as f64) as usize;
    order.iter().take(count).for_each(|at| dropped[*at] = true);
    without(trace, |at| dropped[at])
}

fn without(trace: &Trace, dropped: impl Fn(usize) -> bool) -> Trace {
    let kept = |at: &usize| !dropped(*at);
    let kept: Vec<usize> = (0..trace.requests.len()).filter(kept).collect();
    Trace {
        name: trace.name.clone(),
        began_ms: trace.began_ms,
        length: trace.length,
        requests: kept.iter().map(|at| trace.requests[*at]).collect(),
        contents: kept.iter().filter_map(|at| trace.contents.get(*at).cloned()).collect(),
    }
}

/// The best report of a search over the share of dropped requests: a grid, then its best cell, finer.
fn best(mut report: impl FnMut(f64) -> OrderReport) -> OrderReport {
    let mut best = (0.0, report(0.0));
    let mut consider = |share: f64, best: &mut (f64, OrderReport)| {
        if (0.0..1.0).contains(&share) {
            let found = report(share);
            if found.share_within > best.1.share_within {
                *best = (share, found);
            }
        }
    };
    (1..COARSE).for_each(|at| consider(f64::from(at) / f64::from(COARSE), &mut best));
    let mut step = 0.5 / f64::from(COARSE);
    for _ in 0..ROUNDS {
        let middle = best.0;
        consider(middle - step, &mut best);
        consider(middle + step, &mut best);
        step /= 2.0;
    }
    best.1
}

/// The largest share of requests in time that any gateway can reach. The first tokens come until the
/// objective after the last arrival; what is in flight then need not be complete.
fn bound(trace: &Trace, model: &Model, replicas: u32) -> f64 {
    let last = trace.requests.last().map_or(0, |request| request.at);
    let first = trace.requests.first().map_or(0, |request| request.at);
    let time = (last - first + model.objective) * u64::from(replicas);
    let mut times: Vec<Us> = trace.requests.iter().map(|request| busy(request, model)).collect();
    times.sort_unstable();
    let mut sum = 0;
    let complete = times.iter().take_while(|one| {
        sum += **one;
        sum <= time
    });
    let in_flight = replicas as usize * model.engine.seats.min(model.limit.most as usize);
    let most = (complete.count() + in_flight).min(times.len());
    most as f64 / times.len().max(1) as f64
}

impl OrderReport {
    /// `of`: the replicas, and the requests that arrived, dropped ones included.
    fn new(order: &str, trace: &Trace, model: &Model, of: (u32, usize), run: &Run) -> Self {
        let (replicas, arrived) = of;
        let outcomes = || run.outcomes.iter().zip(&trace.requests);
        let share = |count: usize| count as f64 / arrived.max(1) as f64;
        let since = |moment: fn(&Outcome) -> Option<Us>| {
            let since =
                outcomes().filter_map(|(outcome, request)| Some(moment(outcome)? - request.at));
            Quantiles::of(since.collect())
        };
        let answered = || outcomes().filter(|(outcome, _)| outcome.last_token.is_some());
        let work: Us = answered().map(|(_, request)| busy(request, model)).sum();
        let last = answered().filter_map(|(outcome, _)| outcome.last_token).max().unwrap_or(0);
        let played = within(&run.outcomes, &trace.requests, model.objective);
        Self {
            order: order.to_owned(),
            share_within: share((played * trace.requests.len() as f64).round() as usize),
            share_answered: share(answered().count()),
            share_too_late: share(outcomes().filter(|(one, _)| one.too_late.is_some()).count()),
            share_lost: 0.0,
            refused_after_seconds: since(|outcome| outcome.too_late),
            ttft_seconds: since(|outcome| outcome.first_token),
            overtaken_seconds: None,
            busy_share: work as f64 / (last.max(1) * u64::from(replicas)) as f64,
        }
    }
}

/// The table for a terminal.
pub(crate) fn table(results: &OrderResults) -> String {
    let head = [
        "",
        "in time",
        "answered",
        "refused",
        "lost",
        "refused after p95",
        "TTFT p50",
        "TTFT p95",
        "busy",
        "overtaken",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for report in &results.orders {
        let time = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), seconds);
        rows.push(vec![
            report.order.clone(),
            percent(report.share_within),
            percent(report.share_answered),
            percent(report.share_too_late),
            percent(report.share_lost),
            time(report.refused_after_seconds.map(|after| after.p95)),
            time(report.ttft_seconds.map(|ttft| ttft.p50)),
            time(report.ttft_seconds.map(|ttft| ttft.p95)),
            percent(report.busy_share),
            time(report.overtaken_seconds),
        ]);
    }
    if results.orders.iter().all(|report| report.overtaken_seconds.is_none()) {
        rows.iter_mut().for_each(|row| row.truncate(head.len() - 1));
    }
    format!(
        "{} on {}: {} requests in {}; {} replicas, {:.2} times their load; objective: TTFT within {}; \
         no gateway can serve more than {} in time\n\n{}",
        results.pool,
        results.trace,
        results.requests,
        span(results.hours),
        results.replicas,
        results.load,
        seconds(results.objective_ttft_seconds),
        percent(results.bound),
        aligned(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::tests::{fixed, model, trace_of};
    use crate::replay::trace::SECOND;
    use crate::replay::world::play;

    #[test]
    fn requests_are_dropped_evenly_or_the_longest_first() {
        let trace = trace_of((0..10).map(|at| (at * SECOND, 100, 10 + at as u32)));
        let outputs =
            |trace: Trace| trace.requests.iter().map(|one| one.output).collect::<Vec<_>>();
        assert_eq!(outputs(evenly(&trace, &model(), 0.5)), [10, 12, 14, 16, 18]);
        assert_eq!(outputs(shortest(&trace, &model(), 0.3)), [10, 11, 12, 13, 14, 15, 16]);
        let falling =
            trace_of((0..4).map(|at| (at * SECOND, 400 - 100 * at as u32, 10 + at as u32)));
        assert_eq!(outputs(short_prompts(&falling, &model(), 0.5)), [12, 13]);
        assert_eq!(outputs(evenly(&trace, &model(), 0.0)).len(), 10);
    }

    #[test]
    fn no_order_is_better_than_the_bound_and_objective_is_near_the_clairvoyant() {
        // One replica answers 8 requests at once, each in about 4.2 s: about 1.9 a second.
        let model = Model { limit: fixed(8), objective: 5 * SECOND, max_held: 100_000, ..model() };
        let trace = trace_of((0..1200).map(|at| (at * SECOND / 4, 100, 500)));
        let played = |order, trace: &Trace| {
            let model = Model { order, ..model.clone() };
            let run = play(trace, &model, &mut Schedule::fixed(1), 1, |_| ());
            OrderReport::new("", trace, &model, (1, 1200), &run)
        };
        let arrival = played(HoldOrder::Arrival, &trace);
        let objective = played(HoldOrder::Objective, &trace);
        let clairvoyant =
            best(|share| played(HoldOrder::Objective, &evenly(&trace, &model, share)));
        let bound = bound(&trace, &model, 1);
        assert!(clairvoyant.share_within <= bound, "{clairvoyant:?} {bound}");
        assert!(
            objective.share_within > 0.9 * clairvoyant.share_within,
            "{objective:?} {clairvoyant:?}"
        );
        assert!(arrival.share_within < 0.2 * objective.share_within, "{arrival:?}");
        // An overload that has just begun is expected to last for as long as clients wait, which is ten
        // minutes here. This one ends after five. So those of its late requests who would have had no place
        // after ten were refused: 2.1 less 2 of 2.1 parts of the load.
        assert!(
            objective.share_answered > 0.94 * arrival.share_answered,
            "{objective:?} {arrival:?}"
        );
    }

    #[test]
    fn who_is_refused_hears_it_at_once_and_all_that_can_be_served_is() {
        // The same, for as long as clients wait: half of the requests that are late can be served after it.
        let model = Model {
            limit: fixed(8),
            objective: 5 * SECOND,
            patience: 300 * SECOND,
            max_held: 100_000,
            order: HoldOrder::Objective,
            ..model()
        };
        let trace = trace_of((0..1500).map(|at| (at * SECOND / 5, 100, 500)));
        let played = |model: &Model| {
            let run = play(&trace, model, &mut Schedule::fixed(1), 1, |_| ());
            OrderReport::new("", &trace, model, (1, 1500), &run)
        };
        let report = played(&model);
        let unrefused = played(&Model { refuses: false, ..model.clone() });
        assert!(report.share_too_late > 0.2, "{report:?}");
        assert!(report.refused_after_seconds.is_some_and(|after| after.p95 < 1.0), "{report:?}");
        let lost = unrefused.share_answered - report.share_answered;
        assert!(lost < 0.02, "{report:?} {unrefused:?}");
        assert!(report.share_within > 0.97 * unrefused.share_within, "{report:?} {unrefused:?}");
    }

    #[test]
    fn a_burst_that_fits_into_the_hold_is_served() {
        // 40 requests from which the times are learned, then 400 at once, which are served within 210 of 300 s.
        let model = Model {
            limit: fixed(8),
            objective: 5 * SECOND,
            patience: 300 * SECOND,
            order: HoldOrder::Objective,
            ..model()
        };
        let arrivals = (0..40).chain([60; 400]).map(|second| (second * SECOND, 100, 500));
        let run = play(&trace_of(arrivals), &model, &mut Schedule::fixed(1), 1, |_| ());
        assert!(run.outcomes.iter().all(|outcome| outcome.last_token.is_some()));
    }
}
