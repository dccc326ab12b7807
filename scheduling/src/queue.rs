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
//! - `turn.rs`: the order of classes and lanes
//! - `forecast.rs`: the order of the releases to come
//! - `tab.rs`: charging while an answer comes

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use forebay_config::PriorityClass;

use turn::{Lane, LaneCounts, Turns};

pub use forecast::{Releases, Walk};
pub use place::Place;
pub use tab::Tab;

mod forecast;
mod place;
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
    tenants: HashMap<Arc<str>, usize>,
    /// The served tokens of the flow that was released last, as they were before that release.
    level: u64,
    /// Requests that are tried again, by rank.
    again: BTreeMap<u64, (Place, Entry, W)>,
    /// Flows with requests in time, by the tokens served: the next one first.
    in_time: BTreeSet<(u64, usize)>,
    /// Flows with late requests.
    late: BTreeSet<(u64, usize)>,
    counts: LaneCounts,
}

impl<W> Default for Class<W> {
    fn default() -> Self {
        Self {
            tenants: HashMap::new(),
            level: 0,
            again: BTreeMap::new(),
            in_time: BTreeSet::new(),
            late: BTreeSet::new(),
            counts: LaneCounts::default(),
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

/// One tenant's held requests in one class.
struct Flow<W> {
    class: PriorityClass,
    /// Tokens that it was served, raised to the level of the others whenever it comes back.
    served: u64,
    in_time: Row<W>,
    late: Row<W>,
    tab: Tab,
}

/// Requests of one flow and lane.
struct Row<W> {
    /// By arrival.
    held: BTreeMap<u64, (Entry, W)>,
    /// The sum of their costs.
    cost: u64,
}

impl<W> Default for Row<W> {
    fn default() -> Self {
        Self { held: BTreeMap::new(), cost: 0 }
    }
}

impl<W> Row<W> {
    /// Adds a request. A place is given once, so none is there.
    fn insert(&mut self, seq: u64, entry: Entry, waker: W) {
        self.cost += entry.cost;
        let before = self.held.insert(seq, (entry, waker));
        debug_assert!(before.is_none(), "a place is given once");
    }

    fn remove(&mut self, seq: u64) -> Option<(Entry, W)> {
        let found = self.held.remove(&seq)?;
        self.cost -= found.0.cost;
        Some(found)
    }
}

impl<W> Flow<W> {
    fn holds_nothing(&self) -> bool {
        self.in_time.held.is_empty() && self.late.held.is_empty()
    }
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
            let before = class.again.insert(place.rank(), (place, entry, waker));
            debug_assert!(before.is_none(), "a place is given once");
            class.counts.again += 1;
        } else {
            self.due.extend(entry.late_from.map(|at| (at, place)));
            class.in_time.insert((flow.served, place.flow));
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
            let Some((entry, waker)) = flow.in_time.remove(place.seq) else { continue };
            flow.late.insert(place.seq, entry, waker);
            let class = &mut self.classes[flow.class as usize];
            if flow.in_time.held.is_empty() {
                class.in_time.remove(&(flow.served, place.flow));
            }
            class.late.insert((flow.served, place.flow));
            class.counts.in_time -= 1;
            class.counts.late += 1;
        }
    }

    /// Notes that no endpoint is ready from now on. The requests that are held in time keep their
    /// places: none of them becomes late.
    pub fn keep_places(&mut self, now: Duration) {
        self.advance(now);
        for (_, place) in std::mem::take(&mut self.due) {
            let held = self.flows[place.flow].in_time.held.get_mut(&place.seq);
            if let Some((entry, _)) = held {
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
        first.map_or(class.level, |(served, _)| *served)
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
        for lane in [&mut class.in_time, &mut class.late] {
            if lane.remove(&(before, at)) {
                lane.insert((flow.served, at));
            }
        }
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
        let again = (lane == Lane::Again).then_some(&class.again);
        let again = again.into_iter().flat_map(BTreeMap::values);
        let again = again.map(|(place, entry, waker)| (*place, entry, waker));
        let flows = match lane {
            Lane::Again => None,
            Lane::InTime => Some(&class.in_time),
            Lane::Late => Some(&class.late),
        };
        let rows = flows.into_iter().flatten().map(move |(_, at)| {
            let flow = &self.flows[*at];
            (*at, if lane == Lane::Late { &flow.late } else { &flow.in_time })
        });
        let new = rows.flat_map(|(flow, row)| {
            let held = row.held.iter();
            held.map(move |(seq, (entry, waker))| (Place::new(flow, *seq), entry, waker))
        });
        again.chain(new)
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
    /// their places.
    pub fn pop_first(
        &mut self,
        mut placed: impl FnMut(&Entry, &W) -> bool,
    ) -> Option<(Place, Entry, W)> {
        self.collect();
        let mut order = self.in_order();
        let (lane, (place, ..)) = order.find(|(_, (_, entry, waker))| placed(entry, waker))?;
        drop(order);
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
        let (entry, waker) = if let Some(found) = flow.in_time.remove(place.seq) {
            class.counts.in_time -= 1;
            if flow.in_time.held.is_empty() {
                class.in_time.remove(&(flow.served, place.flow));
            }
            found.0.late_from.map(|at| self.due.remove(&(at, place)));
            found
        } else if let Some(found) = flow.late.remove(place.seq) {
            class.counts.late -= 1;
            if flow.late.held.is_empty() {
                class.late.remove(&(flow.served, place.flow));
            }
            found
        } else {
            let (_, entry, waker) = class.again.remove(&place.rank())?;
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
        let first = rows.filter_map(|row| row.held.first_key_value());
        let first = first.map(|(_, (_, waker))| waker);
        let again = self.classes.iter().flat_map(|class| class.again.values());
        first.chain(again.map(|(_, _, waker)| waker))
    }
}

#[cfg(test)]
mod tests;
