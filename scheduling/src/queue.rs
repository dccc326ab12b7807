//! A pool's queue: the requests that it holds, in the order of their release.
//!
//! Order: priority class, then the tenant that was served least, then arrival. How much a tenant
//! was served is counted in tokens: estimated when a request is released, and corrected by its
//! answer. A tenant that comes back after a pause starts level with those that wait: it saves
//! nothing up while it is idle. (This is the virtual token counter of Sheng et al., "Fairness in
//! Serving Large Language Models", OSDI 2024.)
//!
//! A request that is tried again has had its turn. It goes before all others of its class, and its
//! tenant is charged for the answer alone: the prompt is charged once, and each failed try gives
//! back the tokens of the answer that it did not generate.
//!
//! Invariant: an entry leaves exactly once, by [`Queue::pop_first`], [`Queue::remove`] or
//! [`Queue::drain`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

use forebay_config::PriorityClass;

/// A request's place in one queue. The request keeps it over all its tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    flow: usize,
    /// The number of its arrival in this pool.
    pub seq: u64,
}

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
}

/// Held requests, each with a waker `W`: the caller's means to release it.
pub struct Queue<W> {
    /// One for each tenant and class that ever sent a request; bounded by the configuration.
    flows: Vec<Flow<W>>,
    classes: [Class; PriorityClass::COUNT],
    order: Order<W>,
    /// The number of the latest arrival.
    seq: u64,
    bounds: Bounds,
    held: Held,
    /// Whether any tab has tokens that the queue has not collected.
    owed: Arc<AtomicBool>,
}

/// The flows of one priority class, and what they have in common.
#[derive(Default)]
struct Class {
    /// The flow of each tenant.
    flows: HashMap<Arc<str>, usize>,
    /// The served tokens of the flow that was released last, as they were before that release.
    level: u64,
}

/// The order of release.
struct Order<W> {
    /// Flows with requests that have not had their turn, the next one first.
    new: BTreeSet<(PriorityClass, u64, usize)>,
    /// Requests that are tried again, by class and arrival.
    again: BTreeMap<(PriorityClass, u64), (Place, Entry, W)>,
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
    /// By arrival.
    held: BTreeMap<u64, (Entry, W)>,
    tab: Tab,
}

/// Charges a tenant while its answer comes, without access to the queue. The queue collects the
/// tokens before it decides on the order.
#[derive(Clone, Debug)]
pub struct Tab(Arc<Sums>);

#[derive(Debug)]
struct Sums {
    tokens: AtomicI64,
    /// The queue's own flag.
    owed: Arc<AtomicBool>,
}

impl Tab {
    /// Adds tokens beyond those that were charged.
    pub fn charge(&self, tokens: i64) {
        // In one order with `collect`: either that sees the tokens, or this sees that the flag is
        // down. All tenants share the flag, so it is written only when it is.
        self.0.tokens.fetch_add(tokens, Ordering::SeqCst);
        if !self.0.owed.load(Ordering::SeqCst) {
            self.0.owed.store(true, Ordering::SeqCst);
        }
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
            order: Order { new: BTreeSet::new(), again: BTreeMap::new() },
            seq: 0,
            bounds: Bounds { requests: max_requests, bytes: max_bytes },
            held: Held::default(),
            owed: Arc::default(),
        }
    }

    /// Sets the bounds for new arrivals. Requests that are held stay.
    pub fn set_bounds(&mut self, max_requests: usize, max_bytes: u64) {
        self.bounds = Bounds { requests: max_requests, bytes: max_bytes };
    }

    /// The next arrival's place.
    pub fn arrive(&mut self, class: PriorityClass, tenant: &Arc<str>) -> Place {
        self.seq += 1;
        let known = self.classes[class as usize].flows.get(tenant).copied();
        let flow = known.unwrap_or_else(|| self.add_flow(class, tenant));
        Place { flow, seq: self.seq }
    }

    fn add_flow(&mut self, class: PriorityClass, tenant: &Arc<str>) -> usize {
        let at = self.flows.len();
        let sums = Sums { tokens: AtomicI64::new(0), owed: Arc::clone(&self.owed) };
        let tab = Tab(Arc::new(sums));
        self.flows.push(Flow { class, served: 0, held: BTreeMap::new(), tab });
        self.classes[class as usize].flows.insert(Arc::clone(tenant), at);
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
        let class = self.flows[place.flow].class;
        let before = if again {
            self.order.again.insert((class, place.seq), (place, entry, waker)).is_some()
        } else {
            self.lift(place.flow);
            let flow = &mut self.flows[place.flow];
            self.order.new.insert((class, flow.served, place.flow));
            flow.held.insert(place.seq, (entry, waker)).is_some()
        };
        debug_assert!(!before, "a place is given once");
        Ok(())
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
        let class = self.flows[at].class;
        let first = self.order.new.range((class, 0, 0)..).next().filter(|first| first.0 == class);
        let level = first.map_or(self.classes[class as usize].level, |first| first.1);
        let flow = &mut self.flows[at];
        if flow.held.is_empty() {
            flow.served = flow.served.max(level);
        }
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
        if self.order.new.remove(&(flow.class, before, at)) {
            self.order.new.insert((flow.class, flow.served, at));
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
            let tokens = self.flows[at].tab.0.tokens.swap(0, Ordering::SeqCst);
            if tokens != 0 {
                self.charge_flow(at, tokens);
            }
        }
    }

    /// The held requests, the next one first.
    fn in_order(&self) -> impl Iterator<Item = (Place, &Entry, &W)> {
        let again = self.order.again.iter();
        let again =
            again.map(|((class, _), (place, entry, waker))| (*class, (*place, entry, waker)));
        let new = self.order.new.iter().flat_map(|(class, _, flow)| {
            let held = self.flows[*flow].held.iter();
            held.map(|(seq, (entry, waker))| {
                (*class, (Place { flow: *flow, seq: *seq }, entry, waker))
            })
        });
        let (mut again, mut new) = (again.peekable(), new.peekable());
        let next = move || match (again.peek(), new.peek()) {
            (Some((again, _)), Some((class, _))) if again > class => new.next(),
            (Some(_), _) => again.next(),
            (None, _) => new.next(),
        };
        std::iter::from_fn(next).map(|(_, held)| held)
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
        let (place, ..) = self.in_order().find(|(_, entry, waker)| placed(entry, waker))?;
        let again = self.order.again.contains_key(&(self.flows[place.flow].class, place.seq));
        let (entry, waker) = self.take(place)?;
        self.turn(place, &entry, again);
        Some((place, entry, waker))
    }

    /// Takes out a request whose client left or whose time is up; `None` if it was released before.
    pub fn remove(&mut self, place: Place) -> Option<Entry> {
        self.take(place).map(|(entry, _)| entry)
    }

    /// Takes out all requests without a turn, the next one first: no endpoint will serve them, so
    /// their tenants are not charged.
    pub fn drain(&mut self) -> Vec<W> {
        let places: Vec<Place> = self.in_order().map(|(place, ..)| place).collect();
        let taken = places.into_iter().filter_map(|place| self.take(place));
        taken.map(|(_, waker)| waker).collect()
    }

    fn take(&mut self, place: Place) -> Option<(Entry, W)> {
        let flow = &mut self.flows[place.flow];
        let (entry, waker) = match flow.held.remove(&place.seq) {
            Some(found) => {
                if flow.held.is_empty() {
                    self.order.new.remove(&(flow.class, flow.served, place.flow));
                }
                found
            }
            None => {
                let (_, entry, waker) = self.order.again.remove(&(flow.class, place.seq))?;
                (entry, waker)
            }
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
        let first = self.flows.iter().filter_map(|flow| flow.held.first_key_value());
        let first = first.map(|(_, (_, waker))| waker);
        first.chain(self.order.again.values().map(|(_, _, waker)| waker))
    }
}

#[cfg(test)]
mod tests;
