//! Simulated time: requests, the gateway, replicas, and a contestant that sets their count.
//!
//! One event at a time, in order of time and, at the same time, in a fixed order; everything random
//! comes from the seed. Requests are answered once or given up, never lost.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::replica::{Engine, Told};
use super::trace::{Request, SECOND, Trace, Us};
pub(crate) use contestant::{Contestant, Rules};

mod contestant;
mod fleet;
mod gateway;
mod signals;

use fleet::Replica;
pub(crate) use fleet::{Seen, Victim};
pub(crate) use gateway::Hold;

/// At most one push of the signals in so long a time, as the gateway paces them.
const PACE: Us = 20_000;

/// Everything that is the same for every contestant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) engine: Engine,
    pub(crate) cold_start: ColdStart,
    /// Most requests in flight at one replica, where the gateway bounds them.
    pub(crate) limit: u32,
    /// Most requests held.
    pub(crate) hold_most: usize,
    /// From arrival to when a client without a first token gives up.
    pub(crate) patience: Us,
    /// First pause before a refused client comes again, and the longest.
    pub(crate) retry: (Us, Us),
    /// Longest time to the first token that is within the objective.
    pub(crate) objective: Us,
    pub(crate) seed: u64,
}

/// How long a start takes, by phase, with the deviation of its logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ColdStart {
    /// Asked → scheduled, → started, → healthy.
    pub(crate) phases: [Us; 3],
    pub(crate) spread: f64,
}

impl ColdStart {
    /// From asked to healthy, at the median.
    pub(crate) fn median(&self) -> Us {
        self.phases.iter().sum()
    }
}

/// How one request fared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Given to a replica; `None` if it never was.
    pub(crate) released: Option<Us>,
    pub(crate) first_token: Option<Us>,
    pub(crate) last_token: Option<Us>,
    pub(crate) gave_up: bool,
}

/// The state of things at one time, for the plots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) at: Us,
    /// Requests that have come and have no first token yet.
    pub(crate) waiting: u32,
    /// Replicas that are paid.
    pub(crate) asked: u32,
    pub(crate) ready: u32,
}

/// What a run leaves.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) samples: Vec<Sample>,
    /// Replica time paid: from asked to stopped, over all.
    pub(crate) paid: Us,
    /// Replicas started.
    pub(crate) starts: u32,
    pub(crate) peak: u32,
    pub(crate) ended: Us,
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Coming,
    Held,
    Away { tries: u32 },
    At { replica: u32 },
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Phase { replica: u32 },
    Steps { replica: u32, plan: u32 },
    Retry { request: u32 },
}

/// The world of one run.
pub(crate) struct World<'a> {
    pub(crate) model: &'a Model,
    rules: Rules,
    pub(crate) began_ms: u64,
    requests: &'a [Request],
    now: Us,
    events: BinaryHeap<Reverse<(Us, u64, Event)>>,
    serial: u64,
    arrived: usize,
    /// The first request that may still give up.
    patient: usize,
    places: Vec<Place>,
    outcomes: Vec<Outcome>,
    open: u32,
    without_token: u32,
    queue: VecDeque<u32>,
    replicas: Vec<Replica>,
    live: Vec<u32>,
    turn: usize,
    news: bool,
    pushed: Us,
    told_depth: usize,
    books: signals::Books,
    work: Integral,
    random: SmallRng,
    paid: Us,
    peak: u32,
    told: Vec<Told>,
}

/// A count's integral over time.
#[derive(Clone, Copy, Debug, Default)]
struct Integral {
    value: u32,
    since: Us,
    sum: u64,
}

impl Integral {
    fn set(&mut self, value: u32, now: Us) {
        self.sum += u64::from(self.value) * (now - self.since);
        (self.value, self.since) = (value, now);
    }

    fn at(&self, now: Us) -> u64 {
        self.sum + u64::from(self.value) * (now - self.since)
    }
}

/// Plays a trace. `points` is how many samples are taken over its length; `told` hears of the time
/// reached now and then.
pub(crate) fn play(
    trace: &Trace,
    model: &Model,
    contestant: &mut dyn Contestant,
    points: u32,
    mut told: impl FnMut(Us),
) -> Run {
    let mut world = World::new(trace, model, contestant.rules());
    let mut samples = Vec::with_capacity(points as usize + 1);
    let sample_every = (trace.length / u64::from(points.max(1))).max(SECOND / 10);
    let mut next_sample = 0;
    let mut events = 0u64;
    loop {
        let look = contestant.next();
        let push = if world.news && contestant.hears() {
            Some(world.now.max(world.pushed + PACE))
        } else {
            None
        };
        let over = world.open == 0 && world.arrived == world.requests.len();
        let event = world.next_event();
        let next = [event, Some(look), push].into_iter().flatten().min().unwrap_or(look);
        if over && next >= trace.length {
            break;
        }
        while next_sample <= next && next_sample <= trace.length {
            samples.push(world.sample(next_sample));
            next_sample += sample_every;
        }
        world.now = next;
        events += 1;
        if events.is_multiple_of(65_536) {
            told(next);
        }
        // What happened comes before what is decided on it.
        if event == Some(next) {
            world.step();
            continue;
        }
        if push == Some(next) {
            world.news = false;
            world.pushed = next;
        }
        let count = if look == next { contestant.look(&world) } else { contestant.pushed(&world) };
        if let Some(count) = count {
            world.set_count(count);
        }
    }
    let ended = world.now.max(trace.length);
    world.now = ended;
    world.stop_the_clock();
    told(trace.length);
    Run {
        outcomes: world.outcomes,
        samples,
        paid: world.paid,
        starts: world.replicas.len() as u32,
        peak: world.peak,
        ended,
    }
}

impl<'a> World<'a> {
    fn new(trace: &'a Trace, model: &'a Model, rules: Rules) -> Self {
        let requests = trace.requests.as_slice();
        let mut world = Self {
            model,
            rules,
            began_ms: trace.began_ms,
            requests,
            now: 0,
            events: BinaryHeap::new(),
            serial: 0,
            arrived: 0,
            patient: 0,
            places: vec![Place::Coming; requests.len()],
            outcomes: vec![Outcome::default(); requests.len()],
            open: 0,
            without_token: 0,
            queue: VecDeque::new(),
            replicas: Vec::new(),
            live: Vec::new(),
            turn: 0,
            news: true,
            pushed: 0,
            told_depth: 0,
            books: signals::Books::default(),
            work: Integral::default(),
            random: SmallRng::seed_from_u64(model.seed),
            paid: 0,
            peak: 0,
            told: Vec::new(),
        };
        world.begin_with(rules.begins_with);
        world
    }

    /// Microseconds since the trace began.
    pub(crate) fn now(&self) -> Us {
        self.now
    }

    /// Milliseconds since the epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.began_ms + self.now / 1000
    }

    /// Requests held by the gateway.
    pub(crate) fn held(&self) -> u32 {
        self.queue.len() as u32
    }

    /// Requests held or at replicas, summed over time, in request-microseconds.
    pub(crate) fn work(&self) -> u64 {
        self.work.at(self.now)
    }

    fn later(&mut self, at: Us, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, event)));
    }

    fn next_event(&self) -> Option<Us> {
        let arrival = self.requests.get(self.arrived).map(|request| request.at);
        let planned = self.events.peek().map(|Reverse((at, ..))| *at);
        [arrival, planned, self.next_leaving()].into_iter().flatten().min()
    }

    /// When the next client gives up.
    fn next_leaving(&self) -> Option<Us> {
        let request = self.requests.get(self.patient).filter(|_| self.patient < self.arrived)?;
        Some(request.at.saturating_add(self.model.patience).max(self.now))
    }

    /// What happens now: one of the events that are due.
    fn step(&mut self) {
        let due = self.events.peek().is_some_and(|Reverse((at, ..))| *at <= self.now);
        if due && let Some(Reverse((_, _, event))) = self.events.pop() {
            match event {
                Event::Phase { replica } => self.next_phase(replica),
                Event::Steps { replica, plan } => self.steps_ended(replica, plan),
                Event::Retry { request } => self.admit(request),
            }
        } else if self.requests.get(self.arrived).is_some_and(|request| request.at <= self.now) {
            let request = self.arrived as u32;
            self.arrived += 1;
            self.open += 1;
            self.without_token += 1;
            self.books.totals.accepted += 1;
            let prompt = self.requests[self.arrived - 1].prompt;
            self.books.totals.accepted_prompt_tokens += u64::from(prompt);
            self.admit(request);
        } else {
            let request = self.patient as u32;
            self.patient += 1;
            self.leave(request);
        }
        // Those who have their first token give up no more.
        while self.patient < self.arrived && self.is_settled(self.patient) {
            self.patient += 1;
        }
        self.work.set(self.queue.len() as u32 + self.in_flight(), self.now);
    }

    fn is_settled(&self, request: usize) -> bool {
        self.outcomes[request].first_token.is_some() || self.places[request] == Place::Gone
    }

    fn sample(&self, at: Us) -> Sample {
        let counts = self.counts();
        Sample {
            at,
            waiting: self.without_token,
            asked: counts.starting + counts.ready + counts.draining,
            ready: counts.ready,
        }
    }
}

#[cfg(test)]
mod tests;
