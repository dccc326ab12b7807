//! The throughput of one replica, learned while it serves.
//!
//! The more requests a replica has at once, the more it does in a second, and the longer each takes.
//! By Little's law a request stays for concurrency ÷ throughput. In a batching engine that time grows
//! as a straight line: the time that a request takes alone, plus a share for each neighbour. Two
//! figures, fitted to the measurements at each concurrency, give the throughput at every concurrency,
//! with its knee. A second line gives the time to the first token.
//!
//! Work is counted in tokens: a token of an answer costs about as much as [`OUTPUT_WEIGHT`] tokens of
//! a prompt. Samples of replicas that have just become ready are left out.

use forebay_config::Millis;
use forebay_signals::Totals;
use serde::{Deserialize, Serialize};

use super::load::Load;

/// Prompt tokens that cost as much as one answer token: prompts are computed in parallel.
pub const OUTPUT_WEIGHT: f64 = 4.0;
/// Assumed work per second of a full replica, before anything is measured.
const PRIOR_WORK_PER_SECOND: f64 = 5_000.0;
/// Assumed share of its limit at which a replica reaches half of its throughput.
const PRIOR_HALF: f64 = 1.0 / 8.0;
/// Weight of the assumption against a full bucket.
const PRIOR_WEIGHT: f64 = 0.1;
/// The throughput is never estimated above this many times the best that was measured.
const BELIEVED: f64 = 3.0;
/// Shortest and longest length of a sample.
const SAMPLE_SECONDS: (f64, f64) = (10.0, 60.0);
/// Time that a new replica gets to warm up.
const WARM_UP: Millis = Millis::from_secs(10);
/// Answers per replica that complete a sample before its longest length.
const ENOUGH: f64 = 5.0;
/// Seconds after which new measurements replace old ones in a bucket.
const MEMORY_SECONDS: f64 = 600.0;
/// Seconds of measurements that give a bucket its full weight.
const FULL_SECONDS: f64 = 30.0;

/// Measurements of a replica's throughput.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Capacity {
    /// Measurements, by concurrency.
    buckets: Vec<Bucket>,
    mix: Mix,
    #[serde(skip)]
    sample: WorkSample,
    #[serde(skip)]
    last: Option<Last>,
    #[serde(skip)]
    warm_until: Option<Millis>,
}

/// The mean of one replica's work at about one concurrency.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bucket {
    step: i32,
    concurrency: f64,
    work_per_second: f64,
    /// Release → first token; `None` if no answer was streamed.
    ttft_seconds: Option<f64>,
    seconds: f64,
}

/// The mean request, as decayed sums.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Mix {
    accepted: f64,
    estimated_prompt: f64,
    completed: f64,
    prompt: f64,
    generated: f64,
}

/// One replica's work since the last sample, as the mean over those that were ready. A replica that
/// stops doesn't end the sample: otherwise nothing would be learned from a burst that ends while the
/// count still falls.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct WorkSample {
    /// Time that was measured.
    seconds: f64,
    /// Requests × seconds, and the same weighted by concurrency.
    area: f64,
    square: f64,
    work: f64,
    answers: f64,
    /// Sum and count, over all replicas.
    ttft: (f64, f64),
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Last {
    at: Millis,
    in_flight: u32,
    ready: u32,
    totals: Totals,
    ttft: (f64, f64),
    /// A gateway was silent.
    silent: bool,
}

/// Two straight lines over concurrency, in units of a mean request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Curve {
    /// Time that a request takes alone, in seconds.
    pub alone_seconds: f64,
    /// Time that each neighbour adds.
    pub neighbour_seconds: f64,
    /// Time to the first token of a request alone.
    pub first_alone_seconds: f64,
    /// Time that each neighbour adds to the first token.
    pub first_neighbour_seconds: f64,
    /// The most requests at one replica.
    pub limit: f64,
    /// A mean request's work, in tokens.
    pub work: f64,
    /// Whether this was measured at least in part, rather than assumed.
    pub learned: bool,
}

impl Curve {
    /// Requests per second of one replica at `concurrency`.
    #[must_use]
    pub fn rate(&self, concurrency: f64) -> f64 {
        // Comparisons, since `min` and `max` also look for NaN: decisions spend most of their time here.
        let c = if concurrency < self.limit { concurrency } else { self.limit };
        let seconds = self.alone_seconds + self.neighbour_seconds * c;
        c / if seconds > 1e-6 { seconds } else { 1e-6 }
    }

    /// Requests per second of one replica at its limit.
    #[must_use]
    pub fn full_rate(&self) -> f64 {
        self.rate(self.limit)
    }

    /// The number of requests that may wait or run at each replica for the next one to get its first
    /// token within `seconds`.
    #[must_use]
    pub fn room(&self, seconds: f64) -> f64 {
        let full = self.first_alone_seconds + self.first_neighbour_seconds * self.limit;
        if full <= seconds {
            return self.limit + self.full_rate() * (seconds - full);
        }
        // Even alone it takes longer. No count helps, so assume one request at a time.
        ((seconds - self.first_alone_seconds) / self.first_neighbour_seconds).max(1.0)
    }
}

impl Capacity {
    /// Records the time since the last call, with `ready` replicas now, the newest of which became ready
    /// at `newest_ready`.
    pub fn observe(&mut self, load: &Load, ready: u32, newest_ready: Option<Millis>, now: Millis) {
        let ttft = &load.latencies.upstream_ttft;
        let current = Last {
            at: now,
            in_flight: load.in_flight,
            ready,
            totals: load.totals,
            ttft: (ttft.sum(), ttft.count() as f64),
            silent: load.missing || load.stale,
        };
        let Some(last) = self.last.replace(current) else { return };
        let new = load.totals.since(&last.totals);
        self.mix.add(&new);
        self.warm_until = self.warm_until.max(newest_ready.map(|at| at + WARM_UP));
        let warms_up = self.warm_until.is_some_and(|until| now < until);
        if ready > last.ready {
            // The new replica takes the held requests first: the mean means little until it is as full.
            self.sample = WorkSample::default();
        }
        // The totals that arrive after a silence cover the whole silence.
        if last.ready == 0 || warms_up || current.silent || last.silent {
            return;
        }
        let seconds = now.since(last.at.max(self.warm_until.unwrap_or_default())).as_secs_f64();
        let replicas = f64::from(last.ready);
        let each = f64::from(last.in_flight) / replicas;
        let prompt = new.uncached_prompt_tokens() as f64;
        let work = prompt + OUTPUT_WEIGHT * new.generated_tokens as f64;
        let sample = &mut self.sample;
        sample.seconds += seconds;
        sample.area += each * seconds;
        sample.square += each * each * seconds;
        sample.work += work / replicas;
        sample.answers += new.completed as f64 / replicas;
        sample.ttft.0 += (current.ttft.0 - last.ttft.0).max(0.0);
        sample.ttft.1 += (current.ttft.1 - last.ttft.1).max(0.0);
        let enough = sample.answers >= ENOUGH;
        if sample.seconds >= SAMPLE_SECONDS.1 || (sample.seconds >= SAMPLE_SECONDS.0 && enough) {
            let sample = std::mem::take(sample);
            self.take(sample);
        }
    }

    fn take(&mut self, sample: WorkSample) {
        if sample.work <= 0.0 || sample.area <= 0.0 {
            return;
        }
        // The concurrency that requests saw: idle time doesn't count.
        let concurrency = (sample.square / sample.area).max(1.0);
        // Time with requests; idle time says nothing about the throughput.
        let busy = sample.area / concurrency;
        let work_per_second = sample.work / busy;
        let ttft_seconds = (sample.ttft.1 > 0.0).then(|| sample.ttft.0 / sample.ttft.1);
        let step = (concurrency.log2() * 2.0).round() as i32;
        let busy = busy.min(sample.seconds);
        let new = Bucket { step, concurrency, work_per_second, ttft_seconds, seconds: busy };
        match self.buckets.binary_search_by_key(&step, |bucket| bucket.step) {
            Ok(at) => self.buckets[at].merge(new),
            Err(at) => self.buckets.insert(at, new),
        }
    }

    /// A mean request's work in tokens.
    #[must_use]
    pub fn mean_work(&self) -> f64 {
        self.mix.prompt() + OUTPUT_WEIGHT * self.mix.generated()
    }

    /// `requests` with `estimated_prompt` tokens together, in mean requests.
    #[must_use]
    pub fn in_requests(&self, requests: f64, estimated_prompt: f64) -> f64 {
        if estimated_prompt <= 0.0 {
            return requests;
        }
        let prompt = estimated_prompt * self.mix.correction();
        (prompt + requests * OUTPUT_WEIGHT * self.mix.generated()) / self.mean_work().max(1.0)
    }

    /// The lines that fit best, for replicas that take `limit` requests at once.
    #[must_use]
    pub fn curve(&self, limit: u32) -> Curve {
        let limit = f64::from(limit.max(1));
        let work = self.mean_work().max(1.0);
        let half = (limit * PRIOR_HALF).max(1.0);
        let weight = |bucket: &Bucket| (bucket.seconds / FULL_SECONDS).min(1.0);
        let points = self.buckets.iter().map(|bucket| {
            (bucket.concurrency, bucket.concurrency / bucket.work_per_second, weight(bucket))
        });
        let (mut alone, mut neighbour) = line(points, half).unwrap_or_else(|| {
            let neighbour = limit / (PRIOR_WORK_PER_SECOND * (half + limit));
            (half * neighbour, neighbour)
        });
        // No less than was measured, and not much more.
        let best = self.buckets.iter().map(|bucket| bucket.work_per_second).fold(0.0, f64::max);
        if best > 0.0 {
            let full = limit / (alone + neighbour * limit);
            let factor = full / full.clamp(best, BELIEVED * best);
            (alone, neighbour) = (alone * factor, neighbour * factor);
        }
        let points = self.buckets.iter().filter_map(|bucket| {
            Some((bucket.concurrency, bucket.ttft_seconds?.max(1e-4), weight(bucket)))
        });
        let first = line(points, half).unwrap_or((0.0, 0.0));
        Curve {
            alone_seconds: alone * work,
            neighbour_seconds: neighbour * work,
            first_alone_seconds: first.0,
            first_neighbour_seconds: first.1,
            limit,
            work,
            learned: !self.buckets.is_empty(),
        }
    }
}

impl Bucket {
    fn merge(&mut self, new: Self) {
        let share = new.seconds / (self.seconds.min(MEMORY_SECONDS) + new.seconds);
        let mean = |old: f64, new: f64| old + (new - old) * share;
        self.concurrency = mean(self.concurrency, new.concurrency);
        self.work_per_second = mean(self.work_per_second, new.work_per_second);
        self.ttft_seconds = match (self.ttft_seconds, new.ttft_seconds) {
            (Some(old), Some(new)) => Some(mean(old, new)),
            (old, new) => new.or(old),
        };
        self.seconds = (self.seconds + new.seconds).min(MEMORY_SECONDS);
    }
}

impl Mix {
    fn add(&mut self, new: &Totals) {
        // Roughly the last 500 requests count.
        let keep = 0.998f64.powf(new.accepted.max(new.completed) as f64);
        for (sum, new) in [
            (&mut self.accepted, new.accepted),
            (&mut self.estimated_prompt, new.accepted_prompt_tokens),
            (&mut self.completed, new.completed),
            (&mut self.prompt, new.uncached_prompt_tokens()),
            (&mut self.generated, new.generated_tokens),
        ] {
            *sum = *sum * keep + new as f64;
        }
    }

    /// Answer tokens of a mean request; 256 before the first answer.
    fn generated(&self) -> f64 {
        (self.generated + 256.0) / (self.completed + 1.0)
    }

    fn prompt(&self) -> f64 {
        let estimated =
            if self.accepted > 0.0 { self.estimated_prompt / self.accepted } else { 0.0 };
        let prior = if estimated > 0.0 { estimated } else { 512.0 };
        (self.prompt + prior) / (self.completed + 1.0)
    }

    /// Prompt tokens that are work, per estimated prompt token.
    fn correction(&self) -> f64 {
        let estimated =
            if self.accepted > 0.0 { self.estimated_prompt / self.accepted } else { 0.0 };
        if estimated > 0.0 { self.prompt() / estimated } else { 1.0 }
    }
}

/// The straight line that fits points `(x, y, weight)` best by relative error, drawn towards one that
/// doubles at `half`. Neither coefficient is negative. `None` without points.
fn line(points: impl Iterator<Item = (f64, f64, f64)> + Clone, half: f64) -> Option<(f64, f64)> {
    let total: f64 = points.clone().map(|(.., w)| w).sum();
    if total <= 0.0 {
        return None;
    }
    let mean = points.clone().map(|(_, y, w)| y * w).sum::<f64>() / total;
    // Rows (u, v) with u·alone + v·neighbour = r.
    let seen = points.clone().map(|(x, y, w)| (1.0 / y, x / y, 1.0, w));
    let prior = std::iter::once((1.0 / mean, -half / mean, 0.0, PRIOR_WEIGHT));
    let (mut uu, mut uv, mut vv, mut ur, mut vr) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (u, v, r, w) in seen.chain(prior) {
        uu += w * u * u;
        uv += w * u * v;
        vv += w * v * v;
        ur += w * u * r;
        vr += w * v * r;
    }
    let det = uu * vv - uv * uv;
    if det > 1e-12 * uu * vv {
        let (alone, neighbour) = ((ur * vv - vr * uv) / det, (vr * uu - ur * uv) / det);
        if alone >= 0.0 && neighbour > 0.0 {
            return Some((alone, neighbour));
        }
        if neighbour > 0.0 {
            let (xx, x) = points
                .fold((0.0, 0.0), |(xx, x1), (x, y, w)| (xx + w * (x / y).powi(2), x1 + w * x / y));
            return Some((0.0, x / xx));
        }
    }
    Some((mean, mean / half))
}

#[cfg(test)]
mod tests;
