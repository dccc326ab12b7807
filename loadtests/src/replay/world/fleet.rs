//! The replicas: requested, started phase by phase, drained, stopped; and their cost.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use forebay_config::Pick;
use forebay_scheduling::pick::{CacheReport, Candidate, Candidates, Choice, EndpointId, Picker};
use forebay_scheduling::room::{EndpointSums, LimitRule, Room};

use super::{Event, Hold, Integral, World};
use crate::replay::replica::{Batch, PromptTokens, TokenEvent};
use crate::replay::trace::generate::normal;
use crate::replay::trace::{SECOND, Us};

/// How often a full replica's engine is asked how many requests wait there, as in the gateway.
const ENGINE_EVERY: Us = 5 * SECOND;

/// The order in which a lower count drains ready replicas. Starting ones go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The fewest requests first.
    LeastBusy,
    /// The youngest first, as Kubernetes does.
    Youngest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum StartPhase {
    Requested,
    Scheduled,
    Started,
    Ready,
    Stopped,
}

/// The requests that a replica can take.
pub(super) struct MeasuredCapacity {
    pub(super) room: Room,
    /// The sums from which its limit is learned.
    pub(super) sums: EndpointSums,
}

/// One replica.
pub(super) struct Replica {
    /// Its number among the candidates.
    pub(super) seat: EndpointId,
    phase: StartPhase,
    requested: Us,
    /// The end of each phase: scheduled, started, healthy.
    ends: [Us; 3],
    /// Since when it drains.
    pub(super) drains_since: Option<Us>,
    pub(super) batch: Batch,
    /// The plan whose end is already an event.
    pub(super) planned: Option<u32>,
    pub(super) in_flight: u32,
    pub(super) capacity: MeasuredCapacity,
    pub(super) first_token: Option<Us>,
    pub(super) completed: u64,
    pub(super) generated: u64,
}

impl Replica {
    fn is_draining(&self) -> bool {
        self.drains_since.is_some()
    }

    /// Whether it takes requests.
    pub(super) fn is_ready(&self) -> bool {
        self.phase == StartPhase::Ready && !self.is_draining()
    }
}

/// The number of replicas in each state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Requested and not ready.
    pub(crate) starting: u32,
    pub(crate) ready: u32,
    pub(crate) draining: u32,
}

/// One replica, as contestants see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ReplicaView<'a> {
    pub(crate) id: u32,
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) requested: Us,
    pub(crate) scheduled: Option<Us>,
    pub(crate) started: Option<Us>,
    pub(crate) healthy: Option<Us>,
    pub(crate) first_token: Option<Us>,
    pub(crate) in_flight: u32,
    pub(crate) completed: u64,
    pub(crate) generated: u64,
    pub(crate) batch: &'a Batch,
}

/// All replicas of a run, and their cost.
pub(super) struct Fleet {
    /// Every replica ever requested, by id.
    pub(super) replicas: Vec<Replica>,
    /// The ids of those that are not stopped, oldest first.
    pub(super) live: Vec<u32>,
    /// The place in `live` at which round robin goes on.
    pub(super) turn: usize,
    /// The live replicas as a pick policy sees them.
    pub(super) candidates: Candidates,
    /// Picks a replica under every contestant that holds requests.
    pub(super) picker: Picker,
    /// Replica time paid so far, of stopped replicas.
    pub(super) paid: Us,
    pub(super) peak: u32,
    /// Times that a stream moved to another replica.
    pub(super) moves: u32,
    /// The limit that one of them has learned last.
    pub(super) learned: Option<u32>,
    /// A buffer that is reused for each stretch of steps.
    pub(super) token_events: Vec<TokenEvent>,
}

impl Fleet {
    /// A fleet without replicas, whose gateway picks by this policy.
    pub(super) fn new(pick: Pick, seed: u64) -> Self {
        let mut fleet = Self {
            replicas: Vec::new(),
            live: Vec::new(),
            turn: 0,
            candidates: Candidates::default(),
            picker: Picker::new(pick, seed),
            paid: 0,
            peak: 0,
            moves: 0,
            learned: None,
            token_events: Vec::new(),
        };
        // The candidates keep what the policy needs.
        fleet.picker.set_policy(pick, &mut fleet.candidates);
        fleet
    }

    /// The prompt tokens of all replicas, stopped ones included.
    pub(super) fn prompt_tokens(&self) -> PromptTokens {
        self.replicas.iter().map(|replica| replica.batch.prompt_tokens()).fold(
            PromptTokens::default(),
            |sum, one| PromptTokens { all: sum.all + one.all, cached: sum.cached + one.cached },
        )
    }

    /// The replica that the pick policy has chosen. Its process has its number.
    pub(super) fn chosen(&self, choice: Choice) -> Option<u32> {
        Some(self.candidates.get(choice.id)?.process as u32)
    }
}

/// The address of a replica: its id.
pub(super) fn address(id: u32) -> SocketAddr {
    (Ipv4Addr::from_bits(id), 8000).into()
}

impl World<'_> {
    /// A replica as a pick policy sees it.
    pub(super) fn candidate(&self, id: u32) -> Candidate {
        let replica = &self.fleet.replicas[id as usize];
        let room = match self.rules.hold {
            Hold::UntilRoom => replica.capacity.room.left(Duration::from_micros(self.now)),
            Hold::AtZero | Hold::Never => u32::MAX,
        };
        let ready = replica.is_ready();
        Candidate {
            process: id.into(),
            ready,
            room: if ready { room } else { 0 },
            in_flight: replica.in_flight,
            suspect: false,
        }
    }

    /// Shows a replica's change to the pick policy.
    pub(super) fn show(&mut self, id: u32) {
        let candidate = self.candidate(id);
        self.fleet.candidates.set(self.fleet.replicas[id as usize].seat, candidate);
    }

    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for id in &self.fleet.live {
            let replica = &self.fleet.replicas[*id as usize];
            *if replica.is_draining() {
                &mut counts.draining
            } else if replica.is_ready() {
                &mut counts.ready
            } else {
                &mut counts.starting
            } += 1;
        }
        counts
    }

    /// Every replica that is not stopped, oldest first.
    pub(crate) fn replicas(&self) -> impl Iterator<Item = ReplicaView<'_>> {
        self.fleet.live.iter().map(|id| {
            let replica = &self.fleet.replicas[*id as usize];
            let reached = |phase, at: usize| (replica.phase >= phase).then(|| replica.ends[at]);
            ReplicaView {
                id: *id,
                ready: replica.is_ready(),
                draining: replica.is_draining(),
                requested: replica.requested,
                scheduled: reached(StartPhase::Scheduled, 0),
                started: reached(StartPhase::Started, 1),
                healthy: reached(StartPhase::Ready, 2),
                first_token: replica.first_token,
                in_flight: replica.in_flight,
                completed: replica.completed,
                generated: replica.generated,
                batch: &replica.batch,
            }
        })
    }

    /// Requests at replicas.
    pub(crate) fn in_flight(&self) -> u32 {
        self.fleet.live.iter().map(|id| self.fleet.replicas[*id as usize].in_flight).sum()
    }

    pub(super) fn any_ready(&self) -> bool {
        self.fleet.live.iter().any(|id| self.fleet.replicas[*id as usize].is_ready())
    }

    /// Notes whether any replica is ready, for the figures and for the queue.
    fn note_readiness(&mut self) {
        let any = self.any_ready();
        if !any {
            self.progress.queue.keep_places(Duration::from_micros(self.now));
        }
        self.figures.readiness(any, self.now);
    }

    /// Starts the trace with this many ready replicas.
    pub(super) fn begin_with(&mut self, count: u32) {
        for _ in 0..count {
            self.start();
        }
        for id in 0..count {
            let replica = &mut self.fleet.replicas[id as usize];
            (replica.phase, replica.ends) = (StartPhase::Ready, [0; 3]);
            replica.capacity.room.skip_slow_start();
            self.show(id);
            self.report_cache(id);
        }
        self.fleet.peak = count;
        self.agenda.events.clear();
        (0..count).for_each(|id| self.follow_engine(id));
        self.note_readiness();
    }

    /// Sets the number of replicas that are not draining.
    pub(super) fn set_count(&mut self, count: u32) {
        let counts = self.counts();
        let mut staying = counts.starting + counts.ready;
        if staying < count && self.rules.revives_draining {
            // Draining replicas are the quickest to have.
            for at in 0..self.fleet.live.len() {
                let id = self.fleet.live[at];
                if staying < count && self.fleet.replicas[id as usize].is_draining() {
                    self.fleet.replicas[id as usize].drains_since = None;
                    self.show(id);
                    self.pushes.due = true;
                    staying += 1;
                }
            }
            self.release();
        }
        while staying < count {
            self.start();
            staying += 1;
        }
        while staying > count {
            let rank = |id: &&u32| {
                let replica = &self.fleet.replicas[**id as usize];
                let busy = match self.rules.victim {
                    Victim::LeastBusy => replica.in_flight,
                    Victim::Youngest => 0,
                };
                (replica.is_ready(), busy, std::cmp::Reverse(**id))
            };
            let staying_ones = self
                .fleet
                .live
                .iter()
                .filter(|id| !self.fleet.replicas[**id as usize].is_draining());
            let Some(id) = staying_ones.min_by_key(rank).copied() else { break };
            self.fleet.replicas[id as usize].drains_since = Some(self.now);
            self.plan_leaving(id);
            self.show(id);
            self.pushes.due = true;
            staying -= 1;
            self.stop_if_drained(id);
        }
        self.fleet.peak = self.fleet.peak.max(self.fleet.live.len() as u32);
        self.note_readiness();
        self.work.set(self.held() + self.in_flight(), self.now);
    }

    fn start(&mut self) {
        let cold = self.model.cold_start;
        let id = self.fleet.replicas.len() as u32;
        let factor = (cold.spread * normal(&mut self.random)).exp();
        let mut end = self.now;
        let ends = cold.phases.map(|phase| {
            end += (phase as f64 * factor).round() as Us;
            end
        });
        let candidate =
            Candidate { process: id.into(), ready: false, room: 0, in_flight: 0, suspect: false };
        let seat = self.fleet.candidates.add(address(id), candidate);
        let mut room = Room::new(self.limit_rule(), Duration::from_micros(self.now));
        if !self.rules.measures_room {
            room.skip_slow_start();
        }
        self.fleet.replicas.push(Replica {
            seat,
            phase: StartPhase::Requested,
            requested: self.now,
            ends,
            drains_since: None,
            batch: Batch::new(self.model.engine),
            planned: None,
            in_flight: 0,
            capacity: MeasuredCapacity { room, sums: EndpointSums::default() },
            first_token: None,
            completed: 0,
            generated: 0,
        });
        self.fleet.live.push(id);
        self.pushes.due = true;
        self.later(ends[0], Event::Phase { replica: id });
    }

    /// Advances a start to its next phase.
    pub(super) fn next_phase(&mut self, id: u32) {
        let replica = &mut self.fleet.replicas[id as usize];
        let (phase, next) = match replica.phase {
            StartPhase::Requested => (StartPhase::Scheduled, Some(replica.ends[1])),
            StartPhase::Scheduled => (StartPhase::Started, Some(replica.ends[2])),
            StartPhase::Started => (StartPhase::Ready, None),
            StartPhase::Ready | StartPhase::Stopped => return,
        };
        replica.phase = phase;
        self.show(id);
        self.pushes.due = true;
        if let Some(at) = next {
            self.later(at, Event::Phase { replica: id });
            return;
        }
        self.report_cache(id);
        if let Some(limit) = self.fleet.learned {
            self.fleet.replicas[id as usize].capacity.room.expect(limit);
        }
        self.show(id);
        self.follow_engine(id);
        self.note_readiness();
        self.release();
    }

    fn limit_rule(&self) -> LimitRule {
        let LimitRule { most, learned } = self.model.limit;
        LimitRule { most, learned: learned && self.rules.measures_room }
    }

    /// Begins to read a replica's own figures, if its limit is learned.
    fn follow_engine(&mut self, id: u32) {
        if self.limit_rule().learned {
            let room = &mut self.fleet.replicas[id as usize].capacity.room;
            room.set_cache(self.model.engine.kv_tokens);
            self.later(self.now + ENGINE_EVERY, Event::Engine { replica: id });
        }
    }

    /// Reads how many requests wait in a replica's engine.
    pub(super) fn engine_reports(&mut self, id: u32) {
        let now = Duration::from_micros(self.now);
        let replica = &mut self.fleet.replicas[id as usize];
        if replica.phase == StartPhase::Stopped {
            return;
        }
        if replica.capacity.room.left(now) == 0 {
            replica.capacity.room.reported(replica.batch.waiting() as u32, now);
        }
        self.show(id);
        self.later(self.now + ENGINE_EVERY, Event::Engine { replica: id });
    }

    /// Tells the policy the size of a ready replica's cache, as the replica's `/metrics` would.
    fn report_cache(&mut self, id: u32) {
        let seat = self.fleet.replicas[id as usize].seat;
        if self.fleet.picker.wants_report(seat, id.into()) {
            let tokens = Some(self.model.engine.kv_tokens);
            let report = CacheReport { tokens, ..CacheReport::default() };
            self.fleet.picker.reported(seat, id.into(), &report);
        }
    }

    /// Stops a draining replica without requests. A starting one stops at once.
    pub(super) fn stop_if_drained(&mut self, id: u32) {
        let replica = &mut self.fleet.replicas[id as usize];
        if !replica.is_draining() || replica.in_flight > 0 || replica.phase == StartPhase::Stopped {
            return;
        }
        replica.phase = StartPhase::Stopped;
        self.fleet.paid += self.now - replica.requested;
        self.fleet.live.retain(|live| *live != id);
        self.fleet.candidates.remove(self.fleet.replicas[id as usize].seat);
        self.pushes.due = true;
        self.note_readiness();
    }

    /// Ends the run: running replicas are paid up to now.
    pub(super) fn stop_the_clock(&mut self) {
        for id in std::mem::take(&mut self.fleet.live) {
            self.fleet.paid += self.now - self.fleet.replicas[id as usize].requested;
        }
        self.work = Integral::default();
    }
}
