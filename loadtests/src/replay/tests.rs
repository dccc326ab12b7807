//! The model against queueing theory.

use forebay_scheduling::room::LimitRule;

use super::contestants::fixed::Schedule;
use super::replica::EngineModel;
use super::trace::{Request, SECOND, Trace, Us, generate};
use super::world::{ColdStart, Model, play};
use crate::timing::Timing;

/// A replica with the simulated vLLM's defaults and a cold start of a minute.
pub(crate) fn model() -> Model {
    Model {
        engine: EngineModel {
            timing: Timing::default(),
            seats: 256,
            tokens_per_step: 8192,
            kv_tokens: 262_144,
        },
        pick: forebay_config::Pick::default(),
        cold_start: ColdStart { phases: [2 * SECOND, 8 * SECOND, 50 * SECOND], spread: 0.1 },
        limit: fixed(32),
        max_held: 10_000,
        order: forebay_config::HoldOrder::Arrival,
        max_wait: None,
        refuses: true,
        patience: 600 * SECOND,
        retry: (SECOND / 2, 8 * SECOND),
        objective: 2 * SECOND,
        seed: 1,
    }
}

/// A limit of this number.
pub(crate) fn fixed(most: u32) -> LimitRule {
    LimitRule { most, learned: false }
}

/// Requests as (at, prompt, output).
pub(crate) fn trace_of(requests: impl IntoIterator<Item = (Us, u32, u32)>) -> Trace {
    let make = |(at, prompt, output)| Request { at, prompt, output };
    let requests: Vec<_> = requests.into_iter().map(make).collect();
    let length = requests.last().map_or(0, |request| request.at) + 60 * SECOND;
    Trace {
        name: "test".to_owned(),
        began_ms: 1_700_000_000_000,
        length,
        requests,
        contents: Vec::new(),
    }
}

/// Random arrivals, one server, a constant service time: by Pollaczek and Khinchine the mean wait is
/// ρ / (2 (1 - ρ)) service times.
#[test]
fn waits_are_those_of_an_m_d_1_queue() {
    // A prompt of 1,000 tokens at 10,000 a second and an answer of one token: 100 ms each.
    let timing = Timing { prefill_tokens_per_second: 10_000.0, ..Timing::default() };
    let engine = EngineModel { timing, seats: 1, ..model().engine };
    let model = Model { engine, limit: fixed(1), patience: Us::MAX / 2, ..model() };
    for load in [0.3, 0.5, 0.8] {
        let arrivals = generate::poisson(load * 10.0, 20_000, 3);
        let trace = trace_of(arrivals.into_iter().map(|at| (at, 1_000, 1)));
        let run = play(&trace, &model, &mut Schedule::fixed(1), 10, |_| ());
        let wait = |(outcome, request): (&super::world::Outcome, &Request)| {
            (outcome.first_token.expect("answered") - request.at) as f64 / 1e6 - 0.1
        };
        let waits: f64 = run.outcomes.iter().zip(&trace.requests).map(wait).sum();
        let mean = waits / trace.requests.len() as f64;
        let want = 0.1 * load / (2.0 * (1.0 - load));
        assert!((mean / want - 1.0).abs() < 0.1, "load {load}: {mean} s, theory says {want} s");
    }
}
