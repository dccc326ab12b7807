//! Simulated time: requests, the gateway, replicas, and a contestant that sets their count.
//!
//! Events happen one at a time, in order of time, and those of the same time in a fixed order;
//! everything random comes from the seed. Each request is answered once or given up, never lost.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use forebay_config::{HoldOrder, Pick};
use forebay_scheduling::pick::Given;
use forebay_scheduling::prompt::Prompt;
use forebay_scheduling::queue::{Place as QueuePlace, Queue};
use forebay_scheduling::room::{LimitRule, Part};
use rand::SeedableRng;
use rand::rngs::SmallRng;

use super::replica::{EngineModel, PromptTokens};
use super::trace::{SECOND, Trace, Us};
pub(crate) use contestant::{Contestant, Rules};

mod contestant;
mod fleet;
mod gateway;
mod moves;
mod overload;
mod signals;

pub(crate) use fleet::{ReplicaView, Victim};
pub(crate) use gateway::Hold;

/// Least time between two pushes of the signals, as in the gateway.
const PACE: Us = 20_000;

/// The parameters of a run, the same for every contestant.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Model {
    pub(crate) engine: EngineModel,
    /// The policy by which the gateway picks a replica, if it holds requests.
    pub(crate) pick: Pick,
    pub(crate) cold_start: ColdStart,
    /// Most requests in flight at one replica, if the gateway bounds them. Forebay's learns them, if
    /// that is configured.
    pub(crate) limit: LimitRule,
    /// Most requests held.
    pub(crate) max_held: usize,
    /// The order of held requests.
    pub(crate) order: HoldOrder,
    /// Longest wait that may be expected of a request when it arrives.
    pub(crate) max_wait: Option<Us>,
    /// Whether a request that can't start in time is refused.
    pub(crate) refuses: bool,
    /// Time from arrival after which a client without a first token gives up.
    pub(crate) patience: Us,
    /// The first pause before a refused client retries, and the longest.
    pub(crate) retry: (Us, Us),
    /// Longest time to the first token that is within the objective.
    pub(crate) objective: Us,
    pub(crate) seed: u64,
}

/// The duration of a start by phase, and the deviation of its logarithm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct ColdStart {
    /// Requested → scheduled, → started, → healthy.
    pub(crate) phases: [Us; 3],
    pub(crate) spread: f64,
}

impl ColdStart {
    /// The median time from requested to healthy.
    pub(crate) fn median(&self) -> Us {
        self.phases.iter().sum()
    }
}

/// The result of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// The release to a replica; `None` if there was none.
    pub(crate) released: Option<Us>,
    pub(crate) first_token: Option<Us>,
    pub(crate) last_token: Option<Us>,
    pub(crate) gave_up: bool,
    /// The moment at which the gateway refused it because it could not start in time.
    pub(crate) too_late: Option<Us>,
    /// Tokens of its prompt that its replica's cache had.
    pub(crate) cached: u32,
}

/// The state at one time, for the plots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sample {
    pub(crate) at: Us,
    /// Requests that have arrived and have no first token yet.
    pub(crate) waiting: u32,
    /// Replicas that are paid.
    pub(crate) paid: u32,
    pub(crate) ready: u32,
}

/// The result of a run.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) outcomes: Vec<Outcome>,
    pub(crate) samples: Vec<Sample>,
    /// Replica time paid: from request to stop, summed over all replicas.
    pub(crate) paid: Us,
    /// Replicas started.
    pub(crate) starts: u32,
    pub(crate) peak: u32,
    pub(crate) ended: Us,
    /// Times that a stream moved to another replica.
    pub(crate) moves: u32,
    /// The prompt tokens of all replicas.
    pub(crate) prompt_tokens: PromptTokens,
}

/// The place of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Coming,
    Held(QueuePlace),
    Away { tries: u32 },
    At { replica: u32 },
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Phase {
        replica: u32,
    },
    Steps {
        replica: u32,
        plan: u32,
    },
    Retry {
        request: u32,
    },
    /// The streams of a draining replica may move.
    Leave {
        replica: u32,
    },
    /// The gateway estimates anew when its held requests will start.
    Estimate,
    /// The gateway reads how many requests wait in a replica's engine.
    Engine {
        replica: u32,
    },
}

/// The world of one run.
pub(crate) struct World<'a> {
    pub(crate) model: &'a Model,
    rules: Rules,
    pub(crate) trace: &'a Trace,
    now: Us,
    agenda: Agenda,
    progress: ReplayProgress,
    fleet: fleet::Fleet,
    pushes: Pushes,
    figures: signals::PoolFigures,
    estimates: overload::Estimates,
    work: Integral,
    random: SmallRng,
}

/// The events to come, in order of time and then of their making.
#[derive(Default)]
struct Agenda {
    events: BinaryHeap<Reverse<(Us, u64, Event)>>,
    serial: u64,
}

/// How far the requests are.
struct ReplayProgress {
    /// The number of requests that have arrived.
    arrived: usize,
    /// The first request that may still give up.
    next_to_leave: usize,
    places: Vec<Place>,
    outcomes: Vec<Outcome>,
    /// Requests that have arrived and are not finished.
    open: u32,
    without_token: u32,
    /// The held requests, in the gateway's own queue.
    queue: Queue<u32>,
    /// The one tenant that all of them belong to.
    tenant: Arc<str>,
    /// The prompts of held requests, if the policy reads them.
    prompts: HashMap<u32, Arc<Prompt>>,
    /// Requests at replicas from which the policy learns.
    given: HashMap<u32, Box<Given>>,
    /// Streams that move, until the new replica goes on, with the replica that they leave.
    moving: HashMap<u32, u32>,
    /// Their parts in their replicas' slow starts.
    parts: HashMap<u32, Part>,
}

/// The pushes of the signals.
struct Pushes {
    /// A change waits for its push.
    due: bool,
    last: Us,
    /// The queue depth by which the next push is judged.
    depth: usize,
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

/// Plays a trace. `points` is the number of samples over its length; `progress` receives the time
/// reached, now and then.
pub(crate) fn play(
    trace: &Trace,
    model: &Model,
    contestant: &mut dyn Contestant,
    points: u32,
    mut progress: impl FnMut(Us),
) -> Run {
    let mut world = World::new(trace, model, contestant.rules());
    let mut samples = Vec::with_capacity(points as usize + 1);
    let sample_every = (trace.length / u64::from(points.max(1))).max(SECOND / 10);
    let mut next_sample = 0;
    let mut events = 0u64;
    loop {
        let look = contestant.next_look();
        let push = if world.pushes.due && contestant.wants_pushes() {
            Some(world.now.max(world.pushes.last + PACE))
        } else {
            None
        };
        let over = world.progress.open == 0 && world.progress.arrived == world.trace.requests.len();
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
            progress(next);
        }
        // Events come before the decision at the same time.
        if event == Some(next) {
            world.step();
            continue;
        }
        if push == Some(next) {
            world.pushes.due = false;
            world.pushes.last = next;
        }
        let count = if look == next { contestant.look(&world) } else { contestant.on_push(&world) };
        if let Some(count) = count {
            world.set_count(count);
        }
    }
    let ended = world.now.max(trace.length);
    world.now = ended;
    world.stop_the_clock();
    progress(trace.length);
    Run {
        outcomes: world.progress.outcomes,
        samples,
        paid: world.fleet.paid,
        starts: world.fleet.replicas.len() as u32,
        peak: world.fleet.peak,
        ended,
        moves: world.fleet.moves,
        prompt_tokens: world.fleet.prompt_tokens(),
    }
}

impl<'a> World<'a> {
    fn new(trace: &'a Trace, model: &'a Model, rules: Rules) -> Self {
        let requests = trace.requests.len();
        let mut world = Self {
            model,
            rules,
            trace,
            now: 0,
            agenda: Agenda::default(),
            progress: ReplayProgress {
                arrived: 0,
                next_to_leave: 0,
                places: vec![Place::Coming; requests],
                outcomes: vec![Outcome::default(); requests],
                open: 0,
                without_token: 0,
                queue: Queue::bounded(rules.hold.bound(model), u64::MAX),
                tenant: "anonymous".into(),
                prompts: HashMap::new(),
                given: HashMap::new(),
                moving: HashMap::new(),
                parts: HashMap::new(),
            },
            fleet: fleet::Fleet::new(model.pick, model.seed),
            pushes: Pushes { due: true, last: 0, depth: 0 },
            figures: signals::PoolFigures::default(),
            estimates: overload::Estimates::default(),
            work: Integral::default(),
            random: SmallRng::seed_from_u64(model.seed),
        };
        world.begin_with(rules.initial_replicas);
        world
    }

    /// Microseconds since the trace began.
    pub(crate) fn now(&self) -> Us {
        self.now
    }

    /// Milliseconds since the epoch.
    pub(crate) fn now_ms(&self) -> u64 {
        self.trace.began_ms + self.now / 1000
    }

    /// Requests held by the gateway.
    pub(crate) fn held(&self) -> u32 {
        self.progress.queue.depth() as u32
    }

    /// Requests held or at replicas, integrated over time, in request-microseconds.
    pub(crate) fn work(&self) -> u64 {
        self.work.at(self.now)
    }

    fn later(&mut self, at: Us, event: Event) {
        self.agenda.serial += 1;
        self.agenda.events.push(Reverse((at, self.agenda.serial, event)));
    }

    fn next_event(&self) -> Option<Us> {
        let arrival = self.trace.requests.get(self.progress.arrived).map(|request| request.at);
        let planned = self.agenda.events.peek().map(|Reverse((at, ..))| *at);
        [arrival, planned, self.next_leaving()].into_iter().flatten().min()
    }

    /// The time at which the next client gives up.
    fn next_leaving(&self) -> Option<Us> {
        let request = self
            .trace
            .requests
            .get(self.progress.next_to_leave)
            .filter(|_| self.progress.next_to_leave < self.progress.arrived)?;
        Some(request.at.saturating_add(self.model.patience).max(self.now))
    }

    /// Performs one of the events that are due.
    fn step(&mut self) {
        let due = self.agenda.events.peek().is_some_and(|Reverse((at, ..))| *at <= self.now);
        if due && let Some(Reverse((_, _, event))) = self.agenda.events.pop() {
            match event {
                Event::Phase { replica } => self.next_phase(replica),
                Event::Steps { replica, plan } => self.steps_ended(replica, plan),
                Event::Retry { request } => self.admit(request),
                Event::Leave { replica } => self.move_streams(replica),
                Event::Estimate => self.estimate(),
                Event::Engine { replica } => self.engine_reports(replica),
            }
        } else if self
            .trace
            .requests
            .get(self.progress.arrived)
            .is_some_and(|request| request.at <= self.now)
        {
            let request = self.progress.arrived as u32;
            self.progress.arrived += 1;
            self.progress.open += 1;
            self.progress.without_token += 1;
            self.figures.totals.accepted += 1;
            let prompt = self.trace.requests[self.progress.arrived - 1].prompt;
            self.figures.totals.accepted_prompt_tokens += u64::from(prompt);
            self.admit(request);
        } else {
            let request = self.progress.next_to_leave as u32;
            self.progress.next_to_leave += 1;
            self.leave(request);
        }
        // A client with its first token does not give up.
        while self.progress.next_to_leave < self.progress.arrived
            && self.is_settled(self.progress.next_to_leave)
        {
            self.progress.next_to_leave += 1;
        }
        self.work.set(self.progress.queue.depth() as u32 + self.in_flight(), self.now);
    }

    fn is_settled(&self, request: usize) -> bool {
        self.progress.outcomes[request].first_token.is_some()
            || self.progress.places[request] == Place::Gone
    }

    fn sample(&self, at: Us) -> Sample {
        let counts = self.counts();
        Sample {
            at,
            waiting: self.progress.without_token,
            paid: counts.starting + counts.ready + counts.draining,
            ready: counts.ready,
        }
    }
}

#[cfg(test)]
mod tests;
