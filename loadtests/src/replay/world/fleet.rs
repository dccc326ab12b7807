//! Replicas: asked for, started phase by phase, drained, stopped; and what they cost.

use super::{Event, Integral, World};
use crate::replay::replica::Batch;
use crate::replay::trace::Us;
use crate::replay::trace::generate::normal;

/// Whom a lower count takes first, among those that are ready. Those that are not go before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The one with the fewest requests.
    LeastBusy,
    /// The one that was asked for last, as Kubernetes does.
    Youngest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Asked,
    Scheduled,
    Started,
    Ready,
    Stopped,
}

/// One replica.
pub(super) struct Replica {
    phase: Phase,
    asked: Us,
    /// When each phase ends: scheduled, started, healthy.
    ends: [Us; 3],
    draining: bool,
    pub(super) batch: Batch,
    /// The plan whose end is an event already.
    pub(super) planned: Option<u32>,
    pub(super) in_flight: u32,
    pub(super) first_token: Option<Us>,
    pub(super) completed: u64,
    pub(super) generated: u64,
}

impl Replica {
    /// Takes requests.
    pub(super) fn is_ready(&self) -> bool {
        self.phase == Phase::Ready && !self.draining
    }
}

/// How many there are of each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Asked for and not ready.
    pub(crate) starting: u32,
    pub(crate) ready: u32,
    pub(crate) draining: u32,
}

/// One replica, for who decides on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen<'a> {
    pub(crate) id: u32,
    pub(crate) ready: bool,
    pub(crate) draining: bool,
    pub(crate) asked: Us,
    pub(crate) scheduled: Option<Us>,
    pub(crate) started: Option<Us>,
    pub(crate) healthy: Option<Us>,
    pub(crate) first_token: Option<Us>,
    pub(crate) in_flight: u32,
    pub(crate) completed: u64,
    pub(crate) generated: u64,
    pub(crate) batch: &'a Batch,
}

impl World<'_> {
    pub(crate) fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for id in &self.live {
            let replica = &self.replicas[*id as usize];
            *if replica.draining {
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
    pub(crate) fn fleet(&self) -> impl Iterator<Item = Seen<'_>> {
        self.live.iter().map(|id| {
            let replica = &self.replicas[*id as usize];
            let reached = |phase, at: usize| (replica.phase >= phase).then(|| replica.ends[at]);
            Seen {
                id: *id,
                ready: replica.is_ready(),
                draining: replica.draining,
                asked: replica.asked,
                scheduled: reached(Phase::Scheduled, 0),
                started: reached(Phase::Started, 1),
                healthy: reached(Phase::Ready, 2),
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
        self.live.iter().map(|id| self.replicas[*id as usize].in_flight).sum()
    }

    pub(super) fn any_ready(&self) -> bool {
        self.live.iter().any(|id| self.replicas[*id as usize].is_ready())
    }

    /// Replicas that are ready as the trace begins.
    pub(super) fn begin_with(&mut self, count: u32) {
        for _ in 0..count {
            self.ask();
        }
        for id in 0..count {
            let replica = &mut self.replicas[id as usize];
            (replica.phase, replica.ends) = (Phase::Ready, [0; 3]);
        }
        self.peak = count;
        self.events.clear();
        self.books.readiness(count > 0, 0);
    }

    /// So many replicas that are not draining.
    pub(super) fn set_count(&mut self, count: u32) {
        let counts = self.counts();
        let mut staying = counts.starting + counts.ready;
        if staying < count && self.rules.keeps_draining {
            // Those on their way out are the quickest.
            for at in 0..self.live.len() {
                let id = self.live[at];
                if staying < count && self.replicas[id as usize].draining {
                    self.replicas[id as usize].draining = false;
                    self.news = true;
                    staying += 1;
                }
            }
            self.release();
        }
        while staying < count {
            self.ask();
            staying += 1;
        }
        while staying > count {
            let rank = |id: &&u32| {
                let replica = &self.replicas[**id as usize];
                let busy = match self.rules.victim {
                    Victim::LeastBusy => replica.in_flight,
                    Victim::Youngest => 0,
                };
                (replica.is_ready(), busy, std::cmp::Reverse(**id))
            };
            let staying_ones = self.live.iter().filter(|id| !self.replicas[**id as usize].draining);
            let Some(id) = staying_ones.min_by_key(rank).copied() else { break };
            self.replicas[id as usize].draining = true;
            self.news = true;
            staying -= 1;
            self.stop_if_drained(id);
        }
        self.peak = self.peak.max(self.live.len() as u32);
        self.books.readiness(self.any_ready(), self.now);
        self.work.set(self.held() + self.in_flight(), self.now);
    }

    fn ask(&mut self) {
        let cold = self.model.cold_start;
        let id = self.replicas.len() as u32;
        let factor = (cold.spread * normal(&mut self.random)).exp();
        let mut end = self.now;
        let ends = cold.phases.map(|phase| {
            end += (phase as f64 * factor).round() as Us;
            end
        });
        self.replicas.push(Replica {
            phase: Phase::Asked,
            asked: self.now,
            ends,
            draining: false,
            batch: Batch::new(self.model.engine),
            planned: None,
            in_flight: 0,
            first_token: None,
            completed: 0,
            generated: 0,
        });
        self.live.push(id);
        self.news = true;
        self.later(ends[0], Event::Phase { replica: id });
    }

    /// A start's next phase.
    pub(super) fn next_phase(&mut self, id: u32) {
        let replica = &mut self.replicas[id as usize];
        let (phase, next) = match replica.phase {
            Phase::Asked => (Phase::Scheduled, Some(replica.ends[1])),
            Phase::Scheduled => (Phase::Started, Some(replica.ends[2])),
            Phase::Started => (Phase::Ready, None),
            Phase::Ready | Phase::Stopped => return,
        };
        replica.phase = phase;
        self.news = true;
        if let Some(at) = next {
            self.later(at, Event::Phase { replica: id });
            return;
        }
        self.books.readiness(self.any_ready(), self.now);
        self.release();
    }

    /// Stops a replica that is to go and has nothing left. One that is not ready goes at once.
    pub(super) fn stop_if_drained(&mut self, id: u32) {
        let replica = &mut self.replicas[id as usize];
        if !replica.draining || replica.in_flight > 0 || replica.phase == Phase::Stopped {
            return;
        }
        replica.phase = Phase::Stopped;
        self.paid += self.now - replica.asked;
        self.live.retain(|live| *live != id);
        self.news = true;
        self.books.readiness(self.any_ready(), self.now);
    }

    /// The end: what runs is paid up to now.
    pub(super) fn stop_the_clock(&mut self) {
        for id in std::mem::take(&mut self.live) {
            self.paid += self.now - self.replicas[id as usize].asked;
        }
        self.work = Integral::default();
    }
}
