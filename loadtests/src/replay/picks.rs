//! The pick policies side by side: a load on a fixed fleet, once for each policy.

use anyhow::bail;
use forebay_config::Pick;
use serde::Serialize;

use super::contestants::fixed::Schedule;
use super::measure::within;
use super::report::{aligned, percent, seconds, span};
use super::scenario::Scenario;
use super::trace::Trace;
use super::world::{Model, Run};

/// How often the load is halved or doubled in the search for the most load.
const DOUBLINGS: i32 = 3;
/// The steps of that search between a load and twice the load. Each halves the range of the logarithm, so
/// the result is known to 1 %.
const STEPS: u32 = 7;

/// The results of all policies on one load.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PickResults {
    pub(crate) pool: String,
    pub(crate) trace: String,
    pub(crate) requests: usize,
    pub(crate) hours: f64,
    pub(crate) replicas: u32,
    pub(crate) objective_ttft_seconds: f64,
    pub(crate) objective_share: f64,
    pub(crate) picks: Vec<PickReport>,
}

/// The result of one policy.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PickReport {
    pub(crate) pick: Pick,
    /// Mean seconds from arrival to first token, of the requests that got one; `null` if none did.
    pub(crate) mean_ttft_seconds: Option<f64>,
    /// The 95th percentile of the same.
    pub(crate) p95_ttft_seconds: Option<f64>,
    /// Share of the prompts' tokens that the replicas' caches had.
    pub(crate) cached_share: f64,
    /// Generated tokens a second, up to the last one.
    pub(crate) tokens_per_second: f64,
    /// Share of all requests with a first token within the objective.
    pub(crate) share_within: f64,
    /// The largest multiple of the load, up to eight, of which the objective's share is within it; `null` if
    /// neither the load nor a half, a quarter or an eighth of it is.
    pub(crate) most_load: Option<f64>,
}

/// The policies of these names, `roundRobin` first as the one to compare with.
pub(crate) fn named(names: &[String]) -> anyhow::Result<Vec<Pick>> {
    let mut picks = vec![Pick::RoundRobin];
    for name in names {
        match Pick::ALL.iter().find(|pick| pick.name() == name) {
            _ if name == "all" => picks.extend(Pick::ALL),
            Some(pick) => picks.push(*pick),
            None => {
                let known: Vec<_> = Pick::ALL.iter().map(|pick| pick.name()).collect();
                bail!("unknown policy `{name}`; known are {}, and all", known.join(", "))
            }
        }
    }
    let mut once = Vec::new();
    for pick in picks {
        if !once.contains(&pick) {
            once.push(pick);
        }
    }
    Ok(once)
}

/// Plays the load on `replicas` replicas, once for each policy, and searches each policy's most
/// load. `play` plays a trace under a policy.
pub(crate) fn compare(
    scenario: &Scenario,
    trace: &Trace,
    picks: &[Pick],
    replicas: u32,
    play: impl Fn(&Trace, &Model, &mut Schedule) -> Run,
) -> PickResults {
    let report = |pick: &Pick| {
        let model = Model { pick: *pick, ..scenario.model.clone() };
        let play = |trace: &Trace| play(trace, &model, &mut Schedule::fixed(replicas));
        let keeps = |trace: &Trace, run: &Run| {
            within(&run.outcomes, &trace.requests, model.objective) >= scenario.share
        };
        let run = play(trace);
        let most_load = most_load(keeps(trace, &run), |speed| {
            let Ok(trace) = trace.clone().faster(speed) else { return false };
            keeps(&trace, &play(&trace))
        });
        PickReport::new(*pick, trace, &model, &run, most_load)
    };
    PickResults {
        pool: scenario.pool.name.clone(),
        trace: trace.name.clone(),
        requests: trace.requests.len(),
        hours: trace.length as f64 / 3.6e9,
        replicas,
        objective_ttft_seconds: scenario.model.objective as f64 / 1e6,
        objective_share: scenario.share,
        picks: picks.iter().map(report).collect(),
    }
}

/// The largest speed that is kept: from the load itself upwards if that is `kept`, else downwards. A policy
/// that gathers requests while endpoints are idle may not keep a smaller load than one that it keeps.
fn most_load(kept: bool, keeps: impl Fn(f64) -> bool) -> Option<f64> {
    let speed = |doublings: i32| f64::from(doublings).exp2();
    let doublings = if kept {
        (1..=DOUBLINGS).find(|up| !keeps(speed(*up))).map_or(DOUBLINGS, |above| above - 1)
    } else {
        -(1..=DOUBLINGS).find(|down| keeps(speed(-down)))?
    };
    let (mut least, mut most) = (speed(doublings), speed(doublings + 1));
    if doublings == DOUBLINGS {
        return Some(least);
    }
    for _ in 0..STEPS {
        let middle = (least * most).sqrt();
        if keeps(middle) {
            least = middle;
        } else {
            most = middle;
        }
    }
    Some(least)
}

impl PickReport {
    fn new(pick: Pick, trace: &Trace, model: &Model, run: &Run, most_load: Option<f64>) -> Self {
        let outcomes = || run.outcomes.iter().zip(&trace.requests);
        let ttft = outcomes().filter_map(|(outcome, request)| {
            Some((outcome.first_token? - request.at) as f64 / 1e6)
        });
        let mut ttft: Vec<f64> = ttft.collect();
        ttft.sort_by(f64::total_cmp);
        let rank = (0.95 * ttft.len() as f64).ceil() as usize;
        let last = run.outcomes.iter().filter_map(|outcome| outcome.last_token).max();
        let generated = outcomes().filter(|(outcome, _)| outcome.last_token.is_some());
        let generated: u64 = generated.map(|(_, request)| u64::from(request.output)).sum();
        let tokens = run.prompt_tokens;
        Self {
            pick,
            mean_ttft_seconds: (!ttft.is_empty())
                .then(|| ttft.iter().sum::<f64>() / ttft.len() as f64),
            p95_ttft_seconds: ttft.get(rank.saturating_sub(1)).copied(),
            cached_share: tokens.cached as f64 / tokens.all.max(1) as f64,
            tokens_per_second: generated as f64 * 1e6 / last.unwrap_or(0).max(1) as f64,
            share_within: within(&run.outcomes, &trace.requests, model.objective),
            most_load,
        }
    }
}

/// The table for a terminal.
pub(crate) fn table(results: &PickResults) -> String {
    let head = ["", "TTFT mean", "TTFT p95", "cached", "tokens/s", "in time", "most load"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for report in &results.picks {
        let time = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), seconds);
        rows.push(vec![
            report.pick.to_string(),
            time(report.mean_ttft_seconds),
            time(report.p95_ttft_seconds),
            percent(report.cached_share),
            format!("{:.0}", report.tokens_per_second),
            percent(report.share_within),
            report.most_load.map_or_else(|| "–".to_owned(), |load| format!("× {load:.2}")),
        ]);
    }
    format!(
        "{} on {}: {} requests in {}; {} replicas; objective: TTFT within {} for {}\n\n{}",
        results.pool,
        results.trace,
        results.requests,
        span(results.hours),
        results.replicas,
        seconds(results.objective_ttft_seconds),
        percent(results.objective_share),
        aligned(&rows)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::tests::model;
    use crate::replay::trace::SECOND;
    use crate::replay::world::play;

    #[test]
    fn policies_are_named_as_in_the_configuration_and_round_robin_is_the_first() {
        let named = |names: &[&str]| {
            named(&names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())
        };
        let both = named(&["consistentHash", "roundRobin"]).expect("known");
        assert_eq!(both, [Pick::RoundRobin, Pick::ConsistentHash]);
        let all = named(&["all"]).expect("known");
        assert_eq!((all.len(), all[0]), (Pick::ALL.len(), Pick::RoundRobin));
        let error = named(&["sticky"]).expect_err("unknown").to_string();
        assert!(error.contains("known are prefixAffinity, leastLoad"), "{error}");
    }

    #[test]
    fn the_most_load_is_the_last_one_that_is_kept() {
        let kept = |least: f64, most: f64| {
            let keeps = |speed: f64| (least..=most).contains(&speed);
            most_load(keeps(1.0), keeps)
        };
        for most in [0.2, 0.5, 1.0, 3.3, 7.9] {
            let found = kept(0.0, most).expect("some");
            assert!(found <= most && found >= most / 1.01, "{most}: {found}");
        }
        assert_eq!(kept(0.0, 20.0), Some(8.0), "the most that is tried");
        assert_eq!(kept(9.0, 20.0), None);
    }

    #[test]
    fn the_most_load_is_found_where_a_smaller_one_is_not_kept() {
        let keeps = |speed: f64| (0.9..=1.4).contains(&speed);
        let found = most_load(true, keeps).expect("some");
        assert!((1.38..=1.4).contains(&found), "{found}");
    }

    #[test]
    fn a_policy_that_reads_prompts_finds_more_of_them_in_the_caches() {
        let mut trace = Trace::read("multi-turn", "", 1).expect("generated");
        let early = trace.requests.iter().filter(|request| request.at < 120 * SECOND).count();
        trace.requests.truncate(early);
        trace.contents.truncate(early);
        let report = |pick| {
            let model = Model { pick, ..model() };
            let run = play(&trace, &model, &mut Schedule::fixed(6), 1, |_| ());
            PickReport::new(pick, &trace, &model, &run, None)
        };
        let [turns, hash] = [Pick::RoundRobin, Pick::ConsistentHash].map(report);
        assert!(hash.cached_share > 1.2 * turns.cached_share, "{hash:?} {turns:?}");
        assert!(hash.mean_ttft_seconds < turns.mean_ttft_seconds, "{hash:?} {turns:?}");
    }
}
