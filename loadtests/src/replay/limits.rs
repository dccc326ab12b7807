//! Fixed limits on a replica's requests, and the learned one beside them: a queue that never ends, before
//! one replica.
//!
//! The requests of a load come one after another, as fast as the replica has room for them; when they came
//! in the load does not matter. So the throughput is what the replica can do under the limit, and the time
//! from release to the first token is what the limit costs. The learned limit begins with a cold replica.

use std::collections::HashMap;
use std::time::Duration;

use forebay_scheduling::room::{EndpointSums, LimitRule, Part, Room};
use forebay_signals::LimitedBy;
use serde::Serialize;

use super::measure::Quantiles;
use super::replica::{Batch, EngineModel, Sequence, TokenEvent};
use super::report::{aligned, percent, seconds};
use super::scenario::Scenario;
use super::trace::{Request, SECOND, Trace, Us};

/// The fixed limits that are tried first.
const FIXED: [u32; 24] = [
    1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48, 56, 64, 80, 96, 128, 160, 192, 256, 320,
    512,
];
/// Limits that differ by less than one part in so many are not told apart.
const CLOSE: u32 = 32;
/// A learned limit's most.
const MOST: u32 = 1024;
/// The ends for each request of a limit after which a run is measured, and for how many. The learned
/// limit has to be found within the same number of the best one.
const SETTLES: usize = 20;
/// The fewest ends that are measured.
const FEWEST: usize = 2000;
/// How often the engine is asked how many requests wait, as in the gateway.
const ENGINE_EVERY: Us = 5 * SECOND;

/// The results of all limits.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LimitResults {
    pub(crate) pool: String,
    pub(crate) trace: String,
    pub(crate) objective_ttft_seconds: f64,
    pub(crate) objective_share: f64,
    /// The fixed limit with the most tokens a second that keeps the objective; `null` if none does.
    pub(crate) best: Option<u32>,
    pub(crate) limits: Vec<LimitReport>,
}

/// The result of one limit.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct LimitReport {
    pub(crate) name: String,
    /// The limit at the end.
    pub(crate) limit: u32,
    /// Why it is not higher.
    pub(crate) limited_by: LimitedBy,
    pub(crate) tokens_per_second: f64,
    /// Seconds from release to first token.
    pub(crate) ttft_seconds: Quantiles,
    /// Mean seconds between tokens.
    pub(crate) itl_seconds: f64,
    /// Share of the first tokens within the objective.
    pub(crate) share_within: f64,
}

/// Plays every fixed limit, and the learned one.
pub(crate) fn compare(scenario: &Scenario, trace: &Trace) -> LimitResults {
    let (engine, objective) = (scenario.model.engine, scenario.model.objective);
    let requests = &trace.requests;
    let fixed = |limit: u32| {
        let rule = LimitRule { most: limit, learned: false };
        play(engine, rule, requests, SETTLES * limit as usize, objective)
    };
    let mut limits: Vec<LimitReport> = FIXED.into_iter().map(fixed).collect();
    while let Some(limit) = between(&limits, scenario.share) {
        limits.push(fixed(limit));
    }
    limits.sort_unstable_by_key(|report| report.limit);
    let best = best(&limits, scenario.share);
    let rule = LimitRule { most: MOST, learned: true };
    let settles = SETTLES * best.unwrap_or(1) as usize;
    limits.push(play(engine, rule, requests, settles, objective));
    LimitResults {
        pool: scenario.pool.name.clone(),
        trace: trace.name.clone(),
        objective_ttft_seconds: objective as f64 / 1e6,
        objective_share: scenario.share,
        best,
        limits,
    }
}

/// The limit with the most tokens a second that keeps the objective for this share.
fn best(limits: &[LimitReport], share: f64) -> Option<u32> {
    let kept = limits.iter().filter(|report| report.share_within >= share);
    let best = kept.max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second));
    best.map(|report| report.limit)
}

/// The limit in the middle between the best one and the next higher one; `None` if they are close.
fn between(limits: &[LimitReport], share: f64) -> Option<u32> {
    let best = best(limits, share)?;
    let above = limits.iter().map(|report| report.limit).filter(|limit| *limit > best).min()?;
    let step = (above - best) / 2;
    (step >= (best / CLOSE).max(1)).then_some(best + step)
}

/// A replica with an endless queue before it.
struct Queue<'a> {
    now: Us,
    batch: Batch,
    room: Room,
    requests: &'a [Request],
    /// The number of the next request.
    next: u32,
    in_flight: HashMap<u32, InFlight>,
    sums: EndpointSums,
    ends: usize,
}

struct InFlight {
    part: Option<Part>,
    request: Request,
    released: Us,
    first_token: Us,
}

/// The measurements of a run.
#[derive(Default)]
struct Measured {
    began: Us,
    tokens: u64,
    ttft: Vec<Us>,
    gaps: u64,
    between: Us,
}

/// Plays one limit. `settles`: the number of ends after which it is measured.
fn play(
    engine: EngineModel,
    rule: LimitRule,
    requests: &[Request],
    settles: usize,
    objective: Us,
) -> LimitReport {
    let mut room = Room::new(rule, Duration::ZERO);
    room.set_cache(engine.kv_tokens);
    let mut queue = Queue {
        now: 0,
        batch: Batch::new(engine),
        room,
        requests,
        next: 0,
        in_flight: HashMap::new(),
        sums: EndpointSums::default(),
        ends: 0,
    };
    let (mut measured, mut events) = (Measured::default(), Vec::new());
    let mut engine_next = ENGINE_EVERY;
    let until = settles + settles.max(FEWEST);
    queue.release();
    while queue.ends < until {
        let Some((end, plan)) = queue.batch.due() else { break };
        if end > engine_next {
            queue.now = engine_next;
            engine_next += ENGINE_EVERY;
            let waiting = queue.batch.waiting() as u32;
            queue.room.reported(waiting, Duration::from_micros(queue.now));
        } else {
            queue.now = end;
            queue.batch.ended(plan, end, &mut events);
            for event in events.drain(..) {
                if queue.ends == settles && measured.began == 0 {
                    measured.began = queue.now;
                }
                queue.take(event, settles, &mut measured);
            }
        }
        queue.release();
    }
    let now = Duration::from_micros(queue.now);
    let took = (queue.now - measured.began).max(1);
    let within = measured.ttft.iter().filter(|ttft| **ttft <= objective).count();
    LimitReport {
        name: if rule.learned { "learned".to_owned() } else { rule.most.to_string() },
        limit: queue.room.limit(),
        limited_by: queue.room.limited_by(now),
        tokens_per_second: measured.tokens as f64 * 1e6 / took as f64,
        share_within: within as f64 / measured.ttft.len().max(1) as f64,
        ttft_seconds: Quantiles::of(measured.ttft).unwrap_or(Quantiles {
            p50: 0.0,
            p95: 0.0,
            p99: 0.0,
        }),
        itl_seconds: measured.between as f64 / 1e6 / measured.gaps.max(1) as f64,
    }
}

impl Queue<'_> {
    /// Gives the replica all that it takes.
    fn release(&mut self) {
        let now = Duration::from_micros(self.now);
        while self.room.left(now) > 0 {
            let id = self.next;
            let request = self.requests[id as usize % self.requests.len()];
            self.next += 1;
            let part = self.room.given(request.prompt.into(), true, now);
            let one = InFlight { part, request, released: self.now, first_token: self.now };
            self.in_flight.insert(id, one);
            let sequence = Sequence { id, prompt: request.prompt, output: request.output };
            self.batch.submit(sequence, Vec::new(), self.now);
        }
    }

    /// Takes a first or last token, and measures it once enough requests have ended.
    fn take(&mut self, event: TokenEvent, settles: usize, measured: &mut Measured) {
        let now = Duration::from_micros(self.now);
        let measures = self.ends >= settles;
        match event {
            TokenEvent::First(id, _) => {
                let Some(one) = self.in_flight.get_mut(&id) else { return };
                one.first_token = self.now;
                let ttft = self.now - one.released;
                self.sums.first_tokens += 1;
                self.sums.ttft_seconds += ttft as f64 / 1e6;
                if measures {
                    measured.ttft.push(ttft);
                }
                if let Some(part) = &mut one.part {
                    self.room.first_token(part, now);
                }
            }
            TokenEvent::Last(id, tokens) => {
                let Some(one) = self.in_flight.remove(&id) else { return };
                let (gaps, between) = (tokens.saturating_sub(1), self.now - one.first_token);
                self.sums.gaps += u64::from(gaps);
                self.sums.itl_seconds += between as f64 / 1e6;
                self.sums.uncached_tokens += u64::from(one.request.prompt);
                self.sums.generated_tokens += u64::from(tokens);
                if measures {
                    measured.tokens += u64::from(tokens);
                    measured.gaps += u64::from(gaps);
                    measured.between += between;
                }
                let sums = self.sums;
                self.room.ended((one.part, one.request.prompt.into()), true, now, || sums);
                self.ends += 1;
            }
        }
    }
}

/// The table for a terminal.
pub(crate) fn table(results: &LimitResults) -> String {
    let head = ["limit", "tokens/s", "of the best", "TTFT p50", "TTFT p95", "ITL", "in time", ""];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    let best = results.limits.iter().find(|report| Some(report.limit) == results.best);
    for report in &results.limits {
        let of_best = best.map(|best| report.tokens_per_second / best.tokens_per_second);
        let learned = report.name == "learned";
        let remark = match learned {
            true => format!("{} at the end", report.limit),
            false if Some(report.limit) == results.best => "the best".to_owned(),
            false => String::new(),
        };
        rows.push(vec![
            report.name.clone(),
            format!("{:.0}", report.tokens_per_second),
            of_best.map_or_else(|| "–".to_owned(), percent),
            seconds(report.ttft_seconds.p50),
            seconds(report.ttft_seconds.p95),
            seconds(report.itl_seconds),
            percent(report.share_within),
            remark,
        ]);
    }
    format!(
        "{}, the requests of {} in an endless queue before one replica; objective: TTFT from release \
         within {} for {}\n\n{}",
        results.pool,
        results.trace,
        seconds(results.objective_ttft_seconds),
        percent(results.objective_share),
        aligned(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timing::Timing;

    /// Requests of these median lengths, spread by a fixed pattern over a factor of eight.
    fn requests(prompt: f64, output: f64) -> Vec<Request> {
        let spread = |at: u64, seed: u64| {
            let share = crate::mix::unit(crate::mix::mix(seed, at));
            8f64.powf(share - 0.5)
        };
        let of = |at| Request {
            at: 0,
            prompt: (prompt * spread(at, 1)) as u32,
            output: (output * spread(at, 2)) as u32,
        };
        (0..997).map(of).collect()
    }

    fn engine(prefill: f64, (base, each): (u64, u64), seats: usize, kv_tokens: u64) -> EngineModel {
        EngineModel {
            timing: Timing {
                cold_start: Duration::ZERO,
                prefill_tokens_per_second: prefill,
                decode_base: Duration::from_micros(base),
                decode_per_sequence: Duration::from_micros(each),
            },
            seats,
            tokens_per_step: 8192,
            kv_tokens,
        }
    }

    #[test]
    fn a_cold_replica_soon_does_what_it_does_under_the_best_fixed_limit() {
        let objective = 5 * SECOND;
        for (name, engine, load) in [
            // Sequences run out: 256.
            ("large", engine(40_000.0, (6_000, 60), 256, 450_000), (500.0, 200.0)),
            // The KV cache runs out: about 40 requests.
            ("small", engine(2_500.0, (35_000, 300), 256, 45_000), (500.0, 200.0)),
            // Prompts are most of the work.
            ("prompts", engine(6_000.0, (25_000, 250), 128, 300_000), (3000.0, 150.0)),
        ] {
            let requests = requests(load.0, load.1);
            let fixed = |limit: u32| {
                let rule = LimitRule { most: limit, learned: false };
                play(engine, rule, &requests, 4 * limit as usize, objective)
            };
            let fixed: Vec<_> = [32, 40, 48, 64, 80, 128, 256, 320].map(fixed).into();
            let kept = fixed.iter().filter(|report| report.share_within >= 0.95);
            let best = kept
                .max_by(|a, b| a.tokens_per_second.total_cmp(&b.tokens_per_second))
                .expect("one keeps the objective");
            let rule = LimitRule { most: MOST, learned: true };
            let settles = SETTLES * best.limit as usize;
            let learned = play(engine, rule, &requests, settles, objective);
            let share = learned.tokens_per_second / best.tokens_per_second;
            assert!(share >= 0.95, "{name}: {share}\n{learned:?}\n{best:?}");
            let p95 = |report: &LimitReport| report.ttft_seconds.p95;
            assert!(p95(&learned) <= p95(best), "{name}: {learned:?}\n{best:?}");
        }
    }

    #[test]
    fn the_best_fixed_limit_is_looked_for_between_two() {
        let report = |limit: u32| LimitReport {
            name: String::new(),
            limit,
            limited_by: LimitedBy::Configured,
            tokens_per_second: f64::from(limit),
            ttft_seconds: Quantiles { p50: 1.0, p95: 1.0, p99: 1.0 },
            itl_seconds: 0.1,
            share_within: if limit <= 35 { 0.96 } else { 0.9 },
        };
        let mut limits = vec![report(1), report(32), report(40)];
        while let Some(limit) = between(&limits, 0.95) {
            limits.push(report(limit));
        }
        let tried: Vec<_> = limits.iter().map(|report| report.limit).collect();
        assert_eq!((tried, best(&limits, 0.95)), (vec![1, 32, 40, 36, 34, 35], Some(35)));
        assert_eq!(between(&[report(1000)], 0.95), None, "none keeps the objective");
    }

    #[test]
    fn a_limit_is_not_learned_from_a_load_that_does_not_reach_it() {
        let engine = engine(40_000.0, (6_000, 60), 4, 450_000);
        let requests = requests(500.0, 20.0);
        let rule = LimitRule { most: MOST, learned: true };
        let learned = play(engine, rule, &requests, 400, 5 * SECOND);
        assert!((4..=16).contains(&learned.limit), "four run at once: {learned:?}");
    }
}
