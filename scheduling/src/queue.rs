//! A pool's queue: the requests that it holds, in the order of their release.
//!
//! Order: priority class, then whether the request can still meet the objective, then the tenant
//! that was served least, then arrival. How much a tenant was served is counted in tokens: estimated
//! when a request is released, and corrected by its answer. A tenant that comes back after a pause
//! starts level with those that wait: it saves nothing up while it is idle. (This is the virtual
//! token counter of Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024.)
//!
//! A request that is tried again has had its turn. It goes before all others of its class, and its
//! tenant is charged for the answer alone: the prompt is charged once, and each failed try gives
//! back the tokens of the answer that it did not generate. Streams that broke go first, in the order in
//! which they broke: each of their clients sees a pause, and no one's should be much longer than another's.
//!
//! A request whose [`Entry::late_from`] has come goes behind those of its class that can still meet
//! the objective: to serve it first would make one of them late as well. Late requests still get a
//! small share of the releases, and so do lower classes if [`Queue::set_lower_share`] says so
//! (`turn.rs`). So none starves. A request that waits while no endpoint is ready never becomes late:
//! those who come after a cold start would go before those who waited through it.
//!
//! Invariant: an entry leaves exactly once, by [`Queue::pop_first`], [`Queue::remove`] or
//! [`Queue::drain`].
//!
//! - `place.rs`: a request's place, and its rank among those that are tried again
//! - `row.rs`: the requests of one tenant in one lane, and the tenants of a lane
//! - `turn.rs`: the order of classes and lanes
//! - `forecast.rs`: the order of the releases to come
//! - `tab.rs`: charging while an answer comes

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_config::PriorityClass;

use row::{Flow, LaneFlows, Row};
use turn::{Lane, LaneCounts, Turns};

pub use forecast::{LateLane, Releases, Walk};
pub use place::Place;
pub use tab::Tab;

mod forecast;
mod place;
mod row;
mod tab;
mod turn;

/// A request as the queue sees it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// `anonymous` without keys.
    pub tenant: Arc<str>,
    /// The priority class of its tenant.
    pub class: PriorityClass,
    /// The size of its body.
    pub bytes: u64,
    /// Estimated tokens of the prompt and of the longest answer that the client allows.
    pub tokens: u64,
    /// Tokens that its tenant is charged at its first release: the prompt, and a usual answer. The
    /// rest is charged as the answer comes.
    pub cost: u64,
    /// The answer's part of `cost`: the charge for each further release.
    pub answer: u64,
    /// The moment from which a release is too late for the objective, as the caller counts time;
    /// `None` if the order does not depend on the objective, or if no endpoint is ready when it
    /// arrives.
    pub late_from: Option<Duration>,
    /// Requests of the same kind can be given to the same endpoints: if one of them finds no room, no
    /// other does.
    pub kind: u64,
}

/// Held requests, each with a waker `W`: the caller's means to release it.
pub struct Queue<W> {
    /// One for each tenant and class that ever sent a request; bounded by the configuration.
    flows: Vec<Flow<W>>,
    classes: [Class<W>; PriorityClass::COUNT],
    turns: Turns,
    /// Requests that will be late, by the moment from which they are.
    due: BTreeSet<(Duration, Place)>,
    /// The number of the latest arrival.
    seq: u64,
    /// The number of the latest break of a stream.
    broke: u64,
    bounds: Bounds,
    held: Held,
    /// Whether any tab has tokens that the queue has not collected.
    owed: Arc<AtomicBool>,
}

/// The flows of one priority class, and their common state.
struct Class<W> {
    /// The flow of each tenant.
    tenants: BTreeMap<Arc<str>, usize>,
    /// The served tokens of the flow that was released last, as they were before that release.
    level: u64,
    /// Requests that are tried again, by rank.
    again: Row<(Place, W)>,
    /// Flows with requests in time.
    in_time: LaneFlows,
    /// Flows with late requests.
    late: LaneFlows,
    /// The moment since which it has held late requests, or did last.
    late_since: Duration,
    counts: LaneCounts,
}

impl<W> Default for Class<W> {
    fn default() -> Self {
        Self {
            tenants: BTreeMap::new(),
            level: 0,
            again: Row::default(),
            in_time: LaneFlows::default(),
            late: LaneFlows::default(),
            late_since: Duration::ZERO,
            counts: LaneCounts::default(),
        }
    }
}

impl<W> Class<W> {
    /// The flows of a lane; `None` for requests that are tried again.
    fn flows(&self, lane: Lane) -> Option<&LaneFlows> {
        match lane {
            Lane::Again => None,
            Lane::InTime => Some(&self.in_time),
            Lane::Late => Some(&self.late),
        }
    }
}

struct Bounds {
    requests: usize,
    bytes: u64,
}

/// Sums over what is held.
#[derive(Default)]
struct Held {
    requests: usize,
    bytes: u64,
    tokens: u64,
}

/// The queue is at one of its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Full {
    /// The number of requests held at that moment.
    pub requests: usize,
}

impl<W> Queue<W> {
    /// An empty queue.
    #[must_use]
    pub fn bounded(max_requests: usize, max_bytes: u64) -> Self {
        Self {
            flows: Vec::new(),
            classes: Default::default(),
            turns: Turns::default(),
            due: BTreeSet::new(),
            seq: 0,
            broke: 0,
            bounds: Bounds { requests: max_requests, bytes: max_bytes },
            held: Held::default(),
            owed: Arc::default(),
        }
    }

    /// Sets the bounds for new arrivals. Requests that are held stay.
    pub fn set_bounds(&mut self, max_requests: usize, max_bytes: u64) {
        self.bounds = Bounds { requests: max_requests, bytes: max_bytes };
    }

    /// Sets the share of the releases that each class gets at least while a higher one waits, 0 to 1.
    pub fn set_lower_share(&mut self, share: f64) {
        self.turns.set_lower_share(share);
    }

    /// The next arrival's place.
    pub fn arrive(&mut self, class: PriorityClass, tenant: &Arc<str>) -> Place {
        self.seq += 1;
        let known = self.classes[class as usize].tenants.get(tenant).copied();
        let flow = known.unwrap_or_else(|| self.add_flow(class, tenant));
        Place::new(flow, self.seq)
    }

    /// The place of a stream that broke: behind those that broke before it, and before all others of its
    /// class.
    pub fn broke(&mut self, place: Place) -> Place {
        self.broke += 1;
        Place { broke: self.broke, ..place }
    }

    fn add_flow(&mut self, class: PriorityClass, tenant: &Arc<str>) -> usize {
        let at = self.flows.len();
        let tab = Tab::new(&self.owed);
        let (in_time, late) = (Row::default(), Row::default());
        self.flows.push(Flow { class, served: 0, in_time, late, tab });
        self.classes[class as usize].tenants.insert(Arc::clone(tenant), at);
        at
    }

    /// Enters a request at its place. `again`: it has had its turn, and the bounds do not refuse
    /// it.
    ///
    /// # Errors
    /// The queue is full.
    pub fn push(&mut self, place: Place, entry: Entry, waker: W, again: bool) -> Result<(), Full> {
        let full = self.held.requests >= self.bounds.requests
            || self.held.bytes.saturating_add(entry.bytes) > self.bounds.bytes;
        if full && !again {
            return Err(Full { requests: self.held.requests });
        }
        self.held.bytes += entry.bytes;
        self.held.tokens += entry.tokens;
        self.held.requests += 1;
        if !again {
            self.lift(place.flow);
        }
        let flow = &mut self.flows[place.flow];
        let class = &mut self.classes[flow.class as usize];
        if again {
            class.again.insert(place.rank(), entry, (place, waker));
            class.counts.again += 1;
        } else {
            self.due.extend(entry.late_from.map(|at| (at, place)));
            class.in_time.insert(entry.kind, (flow.served, place.flow));
            flow.in_time.insert(place.seq, entry, waker);
            class.counts.in_time += 1;
        }
        Ok(())
    }

    /// Brings the queue up to this moment: requests whose [`Entry::late_from`] has come are late.
    pub fn advance(&mut self, now: Duration) {
        while let Some((at, place)) = self.due.first().copied()
            && at <= now
        {
            self.due.pop_first();
            let flow = &mut self.flows[place.flow];
            let Some((entry, waker, last)) = flow.in_time.remove(place.seq) else { continue };
            let (kind, at) = (entry.kind, (flow.served, place.flow));
            flow.late.insert(place.seq, entry, waker);
            let class = &mut self.classes[flow.class as usize];
            if last {
                class.in_time.remove(kind, at);
            }
            class.late.insert(kind, at);
            if class.counts.late == 0 {
                class.late_since = now;
                self.turns.late_begin(flow.class);
            }
            class.counts.in_time -= 1;
            class.counts.late += 1;
        }
    }

    /// Notes that no endpoint is ready from now on. The requests that are held in time keep their
    /// places: none of them becomes late.
    pub fn keep_places(&mut self, now: Duration) {
        self.advance(now);
        for (_, place) in std::mem::take(&mut self.due) {
            if let Some(entry) = self.flows[place.flow].in_time.get_mut(place.seq) {
                entry.late_from = None;
            }
        }
    }

    /// Charges a request that found room at once: it has its turn without being held. `again`: it
    /// had its turn before.
    pub fn pass(&mut self, place: Place, entry: &Entry, again: bool) {
        if !again {
            self.lift(place.flow);
        }
        self.turn(place, entry, again);
    }

    /// Raises a flow that holds nothing to the level of those that do, or did last.
    fn lift(&mut self, at: usize) {
        self.collect();
        if self.flows[at].holds_nothing() {
            let level = self.level(self.flows[at].class);
            let flow = &mut self.flows[at];
            flow.served = flow.served.max(level);
        }
    }

    /// The served tokens of the flow that is next in a class, or was last.
    fn level(&self, class: PriorityClass) -> u64 {
        let class = &self.classes[class as usize];
        let first = [class.in_time.first(), class.late.first()].into_iter().flatten().min();
        first.map_or(class.level, |(served, _)| served)
    }

    /// Charges a release. Only a first turn sets the level.
    fn turn(&mut self, place: Place, entry: &Entry, again: bool) {
        let flow = &self.flows[place.flow];
        if !again {
            self.classes[flow.class as usize].level = flow.served;
        }
        let tokens = if again { entry.answer } else { entry.cost };
        self.charge(place, i64::try_from(tokens).unwrap_or(i64::MAX));
    }

    /// Corrects what a request that had its turn was charged: by tokens used beyond that, or by
    /// tokens not used, which are negative.
    pub fn charge(&mut self, place: Place, tokens: i64) {
        self.charge_flow(place.flow, tokens);
    }

    fn charge_flow(&mut self, at: usize, tokens: i64) {
        let flow = &mut self.flows[at];
        let before = flow.served;
        flow.served = before.saturating_add_signed(tokens);
        let class = &mut self.classes[flow.class as usize];
        class.in_time.charge(flow.in_time.kinds(), (before, at), flow.served);
        class.late.charge(flow.late.kinds(), (before, at), flow.served);
    }

    /// The tab of a request's tenant.
    #[must_use]
    pub fn tab(&self, place: Place) -> Tab {
        self.flows[place.flow].tab.clone()
    }

    /// Charges every tab's tokens.
    fn collect(&mut self) {
        if !self.owed.load(Ordering::Relaxed) || !self.owed.swap(false, Ordering::SeqCst) {
            return;
        }
        for at in 0..self.flows.len() {
            let tokens = self.flows[at].tab.collect();
            if tokens != 0 {
                self.charge_flow(at, tokens);
            }
        }
    }

    /// The number of requests that each class holds.
    fn counts(&self) -> [LaneCounts; PriorityClass::COUNT] {
        std::array::from_fn(|class| self.classes[class].counts)
    }

    /// The requests of one lane: flow by flow, each in order of arrival.
    fn in_lane(
        &self,
        class: PriorityClass,
        lane: Lane,
    ) -> impl Iterator<Item = (Place, &Entry, &W)> {
        let class = &self.classes[class as usize];
        let again = (lane == Lane::Again).then(|| class.again.iter());
        let again = again.into_iter().flatten();
        let again = again.map(|(_, (entry, (place, waker)))| (*place, entry, waker));
        let flows = class.flows(lane).into_iter().flat_map(LaneFlows::all);
        let new = flows.flat_map(move |(_, at)| {
            let held = self.flows[at].row(lane).iter();
            held.map(move |(seq, (entry, waker))| (Place::new(at, seq), entry, waker))
        });
        again.chain(new)
    }

    /// The first request of each kind in a lane, in the order of their release.
    fn heads(&self, class: PriorityClass, lane: Lane) -> Vec<(Place, &Entry, &W)> {
        let class = &self.classes[class as usize];
        let mut heads: Vec<_> = match class.flows(lane) {
            None => {
                let heads = class.again.firsts();
                heads
                    .map(|(rank, (entry, (place, waker)))| (rank, (*place, entry, waker)))
                    .collect()
            }
            Some(flows) => {
                let heads = flows.firsts().filter_map(|(kind, (served, at))| {
                    let (seq, (entry, waker)) = self.flows[at].row(lane).first_of(kind)?;
                    Some((served, (Place::new(at, seq), entry, waker)))
                });
                heads.collect()
            }
        };
        heads.sort_unstable_by_key(|(order, (place, ..))| (*order, *place));
        heads.into_iter().map(|(_, head)| head).collect()
    }

    /// The held requests, lane by lane in the order of the next release.
    fn in_order(&self) -> impl Iterator<Item = (Lane, (Place, &Entry, &W))> {
        let lanes = self.turns.order().into_iter();
        lanes.flat_map(|(class, lane)| self.in_lane(class, lane).map(move |held| (lane, held)))
    }

    /// Takes the first request.
    pub fn pop(&mut self) -> Option<(Place, Entry, W)> {
        self.pop_first(|_, _| true)
    }

    /// Takes the first request that can be `placed`, and charges its tenant. Those before it keep
    /// their places. `placed` is asked once for each kind and lane at most, and answers alike for all
    /// requests of a kind: so the number of held requests hardly matters.
    pub fn pop_first(
        &mut self,
        mut placed: impl FnMut(&Entry, &W) -> bool,
    ) -> Option<(Place, Entry, W)> {
        self.collect();
        let lanes = self.turns.order().into_iter();
        let mut heads = lanes.flat_map(|(class, lane)| {
            self.heads(class, lane).into_iter().map(move |head| (lane, head))
        });
        let (lane, (place, ..)) = heads.find(|(_, (_, entry, waker))| placed(entry, waker))?;
        drop(heads);
        let (entry, waker) = self.take(place)?;
        self.turns.released(self.flows[place.flow].class, lane, self.counts());
        self.turn(place, &entry, lane == Lane::Again);
        Some((place, entry, waker))
    }

    /// Takes out a request whose client left or whose time is up; `None` if it was released before.
    pub fn remove(&mut self, place: Place) -> Option<(Entry, W)> {
        self.take(place)
    }

    /// Takes out all requests without a turn, the next one first: no endpoint will serve them, so
    /// their tenants are not charged.
    pub fn drain(&mut self) -> Vec<W> {
        let places: Vec<Place> = self.in_order().map(|(_, (place, ..))| place).collect();
        let taken = places.into_iter().filter_map(|place| self.take(place));
        taken.map(|(_, waker)| waker).collect()
    }

    fn take(&mut self, place: Place) -> Option<(Entry, W)> {
        let flow = &mut self.flows[place.flow];
        let class = &mut self.classes[flow.class as usize];
        let at = (flow.served, place.flow);
        let (entry, waker) = if let Some((entry, waker, last)) = flow.in_time.remove(place.seq) {
            class.counts.in_time -= 1;
            if last {
                class.in_time.remove(entry.kind, at);
            }
            entry.late_from.map(|at| self.due.remove(&(at, place)));
            (entry, waker)
        } else if let Some((entry, waker, last)) = flow.late.remove(place.seq) {
            class.counts.late -= 1;
            if last {
                class.late.remove(entry.kind, at);
            }
            (entry, waker)
        } else {
            let (entry, (_, waker), _) = class.again.remove(place.rank())?;
            class.counts.again -= 1;
            (entry, waker)
        };
        self.held.bytes -= entry.bytes;
        self.held.tokens -= entry.tokens;
        self.held.requests -= 1;
        Some((entry, waker))
    }

    /// Held requests.
    #[must_use]
    pub fn depth(&self) -> usize {
        self.held.requests
    }

    /// Bytes of the held requests' bodies.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.held.bytes
    }

    /// Estimated tokens of the held requests.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.held.tokens
    }

    /// A few wakers, the one that has waited longest among them: the first of each flow, and those
    /// of all requests that are tried again.
    pub fn longest_held(&self) -> impl Iterator<Item = &W> {
        let rows = self.flows.iter().flat_map(|flow| [&flow.in_time, &flow.late]);
        let first = rows.filter_map(|row| row.next(0)).map(|(_, (_, waker))| waker);
        let again = self.classes.iter().flat_map(|class| class.again.iter());
        first.chain(again.map(|(_, (_, (_, waker)))| waker))
    }
}

#[cfg(test)]
mod tests;
