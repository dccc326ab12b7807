//! The figures of a run.

use serde::Serialize;

use super::trace::{Request, Trace, Us};
use super::world::{Model, Outcome, Run, Sample};

/// Share of all requests whose first token came within the objective. Requests that were refused or
/// whose clients gave up count as late.
pub(crate) fn within(outcomes: &[Outcome], requests: &[Request], objective: Us) -> f64 {
    if outcomes.is_empty() {
        return 1.0;
    }
    let in_time = outcomes.iter().zip(requests).filter(|(outcome, request)| {
        outcome.first_token.is_some_and(|first| first - request.at <= objective)
    });
    in_time.count() as f64 / outcomes.len() as f64
}

/// Quantiles in seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: f64,
    /// 95th percentile.
    pub p95: f64,
    /// 99th percentile.
    pub p99: f64,
}

impl Quantiles {
    /// The quantiles of values in microseconds; `None` without values.
    pub(crate) fn of(mut values: Vec<Us>) -> Option<Self> {
        values.sort_unstable();
        let at = |q: f64| {
            let rank = ((q * values.len() as f64).ceil() as usize).max(1) - 1;
            values.get(rank).map(|us| *us as f64 / 1e6)
        };
        Some(Self { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
    }
}

/// One contestant's result. Its JSON is one flat object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// The contestant, as on the command line.
    pub name: String,
    /// The figures of the requests.
    #[serde(flatten)]
    pub service: ServiceFigures,
    /// The figures of the replicas.
    #[serde(flatten)]
    pub fleet: FleetFigures,
    /// States over time.
    pub series: Series,
}

/// How the requests were served.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceFigures {
    /// Requests of the trace.
    pub requests: usize,
    /// Requests answered to the end.
    pub answered: usize,
    /// Requests that were refused, or whose clients left before a first token.
    pub gave_up: usize,
    /// Share of all requests with a first token within the objective.
    pub share_within: f64,
    /// Seconds from arrival to first token, of the requests that got one; `null` if none did.
    pub ttft_seconds: Option<Quantiles>,
    /// Seconds from arrival to release, of the requests that were released; `null` if none was.
    pub hold_seconds: Option<Quantiles>,
}

/// The replicas that were paid.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FleetFigures {
    /// GPU-hours paid, from the request of each replica to its stop.
    pub gpu_hours: f64,
    /// Cost at the configured price.
    pub cost: f64,
    /// Share of the fixed fleet's GPU-hours that is saved; negative if more was paid. `null` if no
    /// request was answered: a fleet that answers no request saves nothing.
    pub saving: Option<f64>,
    /// Most replicas at the same time.
    pub peak_replicas: u32,
    /// Replicas started.
    pub starts: u32,
    /// Mean number of paid replicas.
    pub mean_replicas: f64,
    /// Times that a stream moved off a replica that drained.
    pub moves: u32,
}

/// States over time; all vectors have the same length.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Series {
    /// Seconds since the trace began.
    pub at_seconds: Vec<f64>,
    /// Requests that have arrived and have no first token yet.
    pub waiting: Vec<u32>,
    /// Replicas that cost money: from request to stop.
    pub replicas: Vec<u32>,
    /// Replicas that are ready.
    pub ready: Vec<u32>,
    /// The longest TTFT of the requests that arrived since the point before, in seconds; `null` if
    /// none arrived or none was answered.
    pub ttft_seconds: Vec<Option<f64>>,
}

/// The price of a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Price {
    pub(crate) gpus: u32,
    pub(crate) gpu_hour: f64,
}

impl Report {
    pub(crate) fn new(name: &str, trace: &Trace, model: &Model, price: Price, run: &Run) -> Self {
        let outcomes = run.outcomes.iter().zip(&trace.requests);
        let ttft = outcomes
            .clone()
            .filter_map(|(outcome, request)| Some(outcome.first_token? - request.at));
        let hold = outcomes.filter_map(|(outcome, request)| Some(outcome.released? - request.at));
        let gpu_hours = run.paid as f64 / 3.6e9 * f64::from(price.gpus);
        let service = ServiceFigures {
            requests: trace.requests.len(),
            answered: run.outcomes.iter().filter(|outcome| outcome.last_token.is_some()).count(),
            gave_up: run.outcomes.iter().filter(|outcome| outcome.gave_up).count(),
            share_within: within(&run.outcomes, &trace.requests, model.objective),
            ttft_seconds: Quantiles::of(ttft.collect()),
            hold_seconds: Quantiles::of(hold.collect()),
        };
        let fleet = FleetFigures {
            gpu_hours,
            cost: gpu_hours * price.gpu_hour,
            saving: None,
            peak_replicas: run.peak,
            starts: run.starts,
            mean_replicas: run.paid as f64 / run.ended.max(1) as f64,
            moves: run.moves,
        };
        Self { name: name.to_owned(), service, fleet, series: series(trace, run) }
    }
}

fn series(trace: &Trace, run: &Run) -> Series {
    let mut ttft = vec![None; run.samples.len()];
    let mut at = 0;
    for (outcome, request) in run.outcomes.iter().zip(&trace.requests) {
        while at + 1 < run.samples.len() && run.samples[at].at < request.at {
            at += 1;
        }
        if let Some(first) = outcome.first_token
            && let Some(slot) = ttft.get_mut(at)
        {
            let seconds = (first - request.at) as f64 / 1e6;
            *slot = Some(slot.map_or(seconds, |most: f64| most.max(seconds)));
        }
    }
    let of = |pick: fn(&Sample) -> u32| run.samples.iter().map(pick).collect();
    Series {
        at_seconds: run.samples.iter().map(|sample| sample.at as f64 / 1e6).collect(),
        waiting: of(|sample| sample.waiting),
        replicas: of(|sample| sample.paid),
        ready: of(|sample| sample.ready),
        ttft_seconds: ttft,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_the_smallest_value_that_covers_its_share() {
        let got = Quantiles::of((1..=100).map(|s| s * 1_000_000).collect());
        assert_eq!(got, Some(Quantiles { p50: 50.0, p95: 95.0, p99: 99.0 }));
        assert_eq!(Quantiles::of(Vec::new()), None, "no figure without an answer");
    }

    #[test]
    fn a_request_whose_client_gave_up_is_not_in_time() {
        let requests = [Request { at: 10, prompt: 1, output: 1 }; 4];
        let first = |at| Outcome { first_token: Some(at), ..Outcome::default() };
        let gave_up = Outcome { gave_up: true, ..Outcome::default() };
        let outcomes = [first(15), first(20), first(21), gave_up];
        assert!((within(&outcomes, &requests, 10) - 0.5).abs() < 1e-12);
    }
}
