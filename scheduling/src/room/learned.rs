//! A limit on an endpoint's requests that is learned from its answers.
//!
//! An engine with continuous batching takes more requests into its batch until its sequences
//! (`--max-num-seqs`) or its KV cache are used up. Up to there each request adds tokens a second,
//! and tokens come a little slower. Beyond, requests wait inside the engine: tokens come no faster, and
//! first tokens come later. So the best limit is where the engine's own queue begins.
//!
//! That is the idea of TCP Vegas (L. Brakmo, L. Peterson, "TCP Vegas: End to End Congestion Avoidance
//! on a Global Internet", IEEE JSAC 1995; Netflix's `concurrency-limits` has it for servers): the
//! requests that wait are `limit × (1 − unloaded time ÷ time)`, and the limit grows while they are few
//! and shrinks when they are many. Vegas measures the time of a whole request. In a batch this grows
//! with the neighbours, so a queue would be seen where there is none. Only the time to the first token
//! shows waiting, so by Little's law the requests that wait inside the engine are `rate × (TTFT −
//! unloaded TTFT − the steps under way)`. One prompt is worked on at a time, so a mix whose prompts
//! become longer is wrong by at most one request.
//!
//! The gradient of the throughput is the other bound: where a tenth more requests bring less than half a
//! percent more tokens a second, the limit does not grow, since only the time of a token does. It
//! comes from a straight line through the measured times of a token.
//!
//! The engine's own count of waiting requests corrects the limit: see [`LearnedLimit::reported`]. Where answers
//! are plain, no first token is seen, and that count alone does.
//!
//! Pure: callers pass `now`, as a time since any moment.

use std::time::Duration;

use forebay_signals::LimitedBy;

/// The fewest ends of requests in a window, and the shortest window.
const FEWEST_ENDS: u32 = 16;
const SHORTEST: Duration = Duration::from_millis(200);
/// The steps of the engine that a first token takes without waiting: the one under way, and its own.
const STEPS: f64 = 2.0;
/// Seconds that say nothing about the engine: of the network, and of a gateway that has much to do.
const JITTER: f64 = 0.01;
/// The limit grows while fewer requests than this wait, and shrinks when more than that do, each for a
/// limit of zero and for each request of the limit.
const FEW: (f64, f64) = (1.0, 1.0 / 128.0);
const MANY: (f64, f64) = (1.25, 1.0 / 64.0);
/// How much the limit grows in a window, as a part of itself, until it has shrunk once, and then.
const QUICKLY: f64 = 1.0 / 8.0;
const SLOWLY: f64 = 1.0 / 64.0;
/// The windows with few waiting requests after which it grows quickly again.
const PATIENCE: u32 = 64;
/// The reports in a row that have to agree: in a single one requests may wait for their turn.
const REPORTS: u32 = 4;
/// How long it does not grow beyond what the engine's own count has shown to be too much: at first, and
/// at most. Each time that it is shown again, twice as long.
const CEILING_FOR: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(960));
/// The unloaded time to a first token rises by this part of the difference in each window: what is
/// unloaded may have changed.
const FORGETS: f64 = 0.002;
/// The part of the line of token times that a window keeps when the next one comes.
const KEPT: f64 = 0.95;
/// The least gain in tokens a second for a gain in requests, both as parts.
const LEAST_GAIN: f64 = 0.05;
/// The windows, and the spread of the requests in flight as a part of their mean, from which on the line
/// is believed.
const WINDOWS: f64 = 3.5;
const SPREAD: f64 = 0.1;

/// An endpoint's sums since any moment.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EndpointSums {
    /// Streams whose first token came.
    pub first_tokens: u64,
    /// The sum of their times from release to that token, in seconds.
    pub ttft_seconds: f64,
    /// Gaps between tokens.
    pub gaps: u64,
    /// The sum of these gaps, in seconds.
    pub itl_seconds: f64,
    /// Prompt tokens that were not found in the prefix cache.
    pub uncached_tokens: u64,
    /// Generated tokens.
    pub generated_tokens: u64,
}

impl EndpointSums {
    fn since(&self, before: &Self) -> Self {
        Self {
            first_tokens: self.first_tokens.saturating_sub(before.first_tokens),
            ttft_seconds: self.ttft_seconds - before.ttft_seconds,
            gaps: self.gaps.saturating_sub(before.gaps),
            itl_seconds: self.itl_seconds - before.itl_seconds,
            uncached_tokens: self.uncached_tokens.saturating_sub(before.uncached_tokens),
            generated_tokens: self.generated_tokens.saturating_sub(before.generated_tokens),
        }
    }
}

/// A learned limit.
#[derive(Clone, Debug)]
pub(super) struct LearnedLimit {
    /// `None` before the first one is learned.
    limit: Option<f64>,
    bound: LimitedBy,
    /// It has shrunk, or can't be seen to be too much, so that it grows slowly.
    shrunk: bool,
    /// Windows in a row in which few waited and the limit was reached.
    calm: u32,
    window: Window,
    /// Unloaded seconds to a first token, once known.
    unloaded: Option<f64>,
    line: Line,
    ceiling: Option<Ceiling>,
    /// The fewest requests that waited by the engine's last reports in a row, and their number.
    waited: (u32, u32),
}

/// The ends since the last step.
#[derive(Clone, Copy, Debug, Default)]
struct Window {
    since: Duration,
    sums: EndpointSums,
    ends: u32,
    /// The sum of the requests in flight at each end.
    in_flight: f64,
    /// Whether the limit was reached.
    full: bool,
}

/// A limit that was too much.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    limit: f64,
    lasts: Duration,
    until: Duration,
}

/// Token times over requests in flight: the sums of least squares, which forget.
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    count: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Line {
    fn add(&mut self, x: f64, y: f64) {
        for (sum, value) in [
            (&mut self.count, 1.0),
            (&mut self.x, x),
            (&mut self.y, y),
            (&mut self.xx, x * x),
            (&mut self.xy, x * y),
        ] {
            *sum = *sum * KEPT + value;
        }
    }

    /// The gain in tokens a second for a gain in requests, both as parts, at this number of requests:
    /// 1 if they cost nothing, 0 if they bring nothing. `None` if too little was seen.
    fn gain(&self, at: f64) -> Option<f64> {
        let mean = self.x / self.count;
        let variance = self.xx / self.count - mean * mean;
        if self.count < WINDOWS || variance < (SPREAD * mean).powi(2) {
            return None;
        }
        let slope = (self.xy / self.count - mean * self.y / self.count) / variance;
        let time = self.y / self.count + slope * (at - mean);
        (time > 0.0).then(|| 1.0 - slope * at / time)
    }
}

impl LearnedLimit {
    /// A limit of which nothing is known.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            limit: None,
            bound: LimitedBy::Growing,
            shrunk: false,
            calm: 0,
            window: Window { since: now, ..Window::default() },
            unloaded: None,
            line: Line::default(),
            ceiling: None,
            waited: (u32::MAX, 0),
        }
    }

    /// The most requests in flight; `None` before that is known.
    pub(super) fn limit(&self) -> Option<u32> {
        Some((self.limit? as u32).max(1))
    }

    /// Begins with this limit, if none is known.
    pub(super) fn begin(&mut self, limit: u32) {
        self.limit.get_or_insert(limit.into());
    }

    /// Why it is not higher.
    pub(super) fn bound(&self) -> LimitedBy {
        self.bound
    }

    /// Takes that the endpoint has as many requests as it may have.
    pub(super) fn filled(&mut self) {
        self.window.full = true;
    }

    /// Takes the end of a request that was answered. `in_flight` counts it. The limit does not grow
    /// beyond `most`. `sums` reads the endpoint's sums; it is called now and then. Returns the sums of
    /// the window if this ends one.
    pub(super) fn ended(
        &mut self,
        in_flight: u32,
        most: u32,
        now: Duration,
        sums: impl FnOnce() -> EndpointSums,
    ) -> Option<EndpointSums> {
        self.window.ends += 1;
        self.window.in_flight += f64::from(in_flight);
        let enough = self.window.ends >= FEWEST_ENDS.max(in_flight / 4);
        let took = now.saturating_sub(self.window.since);
        if !enough || took < SHORTEST {
            return None;
        }
        let sums = sums();
        let window =
            std::mem::replace(&mut self.window, Window { since: now, sums, ..Window::default() });
        let new = sums.since(&window.sums);
        self.step(&window, &new, f64::from(most), now);
        Some(new)
    }

    fn step(&mut self, window: &Window, new: &EndpointSums, most: f64, now: Duration) {
        let in_flight = window.in_flight / f64::from(window.ends);
        let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        let itl = mean(new.itl_seconds, new.gaps);
        if let Some(itl) = itl {
            self.line.add(in_flight, itl);
        }
        let Some(ttft) = mean(new.ttft_seconds, new.first_tokens) else {
            // Plain answers alone show no waiting.
            self.calm = 0;
            self.shrunk = true;
            return self.grow(window.full, most, now);
        };
        let unloaded = self.unloaded.get_or_insert(ttft);
        *unloaded = ttft.min(*unloaded + FORGETS * (ttft - *unloaded));
        let seconds = now.saturating_sub(window.since).as_secs_f64();
        let rate = f64::from(window.ends) / seconds;
        let waiting = rate * (ttft - *unloaded - STEPS * itl.unwrap_or(0.0) - JITTER);
        let limit = self.limit.unwrap_or(in_flight);
        if waiting > MANY.0 + MANY.1 * limit {
            let few = FEW.0 + FEW.1 * limit;
            self.shrink(in_flight.min(limit) - (waiting - few), limit, LimitedBy::Waiting);
        } else if waiting < FEW.0 + FEW.1 * limit {
            self.grow(window.full, most, now);
        }
    }

    fn grow(&mut self, full: bool, most: f64, now: Duration) {
        let Some(limit) = self.limit.filter(|_| full) else { return };
        if self.line.gain(limit).is_some_and(|gain| gain < LEAST_GAIN) {
            self.bound = LimitedBy::Gain;
            return;
        }
        self.calm += 1;
        let part = if self.shrunk && self.calm < PATIENCE { SLOWLY } else { QUICKLY };
        let grown = limit + (limit * part).max(1.0);
        match self.ceiling.filter(|ceiling| now < ceiling.until && grown >= ceiling.limit) {
            Some(ceiling) => self.limit = Some(ceiling.limit),
            None => (self.limit, self.bound) = (Some(grown.min(most)), LimitedBy::Growing),
        }
    }

    fn shrink(&mut self, to: f64, limit: f64, bound: LimitedBy) {
        (self.shrunk, self.calm, self.bound) = (true, 0, bound);
        // At most to a half at once: a measurement can be wrong.
        self.limit = Some(to.clamp((limit / 2.0).max(1.0), limit.max(1.0)));
    }

    /// Takes the engine's own count of the requests that wait there, while `in_flight` of the caller's are
    /// there. If some wait at [`REPORTS`] in a row, and the endpoint was full at each, the limit is too high
    /// by the smallest number, and stays below for a while.
    pub(super) fn reported(&mut self, waiting: u32, in_flight: u32, full: bool, now: Duration) {
        if waiting == 0 || !full {
            self.waited = (u32::MAX, 0);
            return;
        }
        let (fewest, reports) = (self.waited.0.min(waiting), self.waited.1 + 1);
        self.waited = (fewest, reports);
        if reports >= REPORTS {
            let limit = self.limit.unwrap_or(in_flight.into());
            let enough = f64::from(in_flight) - f64::from(fewest);
            self.shrink(enough.min(limit - 1.0), limit, LimitedBy::Reported);
            let (first, longest) = CEILING_FOR;
            let lasts = self.ceiling.map_or(first, |before| (2 * before.lasts).min(longest));
            let ceiling = |limit| Ceiling { limit, lasts, until: now.saturating_add(lasts) };
            self.ceiling = self.limit.map(ceiling);
            self.waited = (u32::MAX, 0);
        }
    }
}
