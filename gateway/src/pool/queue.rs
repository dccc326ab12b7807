//! A pool's queue: holds accepted requests until an endpoint has room.
//!
//! Order: priority class, then the tenant that was served least, then arrival. How much a tenant
//! was served is counted in tokens: estimated when a request is released, and corrected as the
//! answer shows what it was. A tenant that comes back after a pause starts level with those who
//! wait: idleness saves nothing up. (This is the virtual token counter of Sheng et al., "Fairness in
//! Serving Large Language Models", OSDI 2024.)
//!
//! A request that is tried again has had its turn, and goes before all others of its class.
//!
//! Invariant: what enters leaves exactly once, by [`Queue::pop_first`] or [`Queue::remove`].
//! Pure: waiting and waking are in `pool/hold.rs`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use forebay_config::PriorityClass;
use tokio::time::Instant;

/// A request's place in one queue: its own for as long as it lives, over all its tries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    flow: usize,
    /// The arrival's number in this pool.
    pub(crate) seq: u64,
}

/// What is known of a held request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `anonymous` without keys.
    pub(crate) tenant: Arc<str>,
    pub(crate) class: PriorityClass,
    pub(crate) since: Instant,
    pub(crate) deadline: Instant,
    pub(crate) bytes: u64,
    /// Estimated, prompt and the longest answer that the client allows.
    pub(crate) tokens: u64,
    /// What its tenant is counted when it is released: prompt and a usual answer. The rest is
    /// counted as it comes.
    pub(crate) cost: u64,
    /// The answer's part of it.
    pub(crate) answer: u64,
}

/// Held requests with what wakes each.
pub(crate) struct Queue<W> {
    /// One for each tenant and class that ever held anything; bounded by configuration.
    flows: Vec<Flow<W>>,
    names: HashMap<(PriorityClass, Arc<str>), usize>,
    /// The flows that hold something new, the next one first.
    order: BTreeSet<(PriorityClass, u64, usize)>,
    /// Those that are tried again, by class and arrival.
    again: BTreeMap<(PriorityClass, u64), (Place, Request, W)>,
    /// Where each class stands: what its last released flow had been served before that.
    level: HashMap<PriorityClass, u64>,
    next: u64,
    depth: usize,
    max_requests: usize,
    max_bytes: u64,
    bytes: u64,
    tokens: u64,
}

/// One tenant's held requests in one class.
struct Flow<W> {
    class: PriorityClass,
    /// Tokens it was served, lifted to where the others stand whenever it comes back.
    served: u64,
    /// By arrival.
    held: BTreeMap<u64, (Request, W)>,
}

/// The queue is at a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) requests: usize,
}

impl<W> Queue<W> {
    /// For what comes from now on; what is held stays.
    pub(crate) fn set_bounds(&mut self, max_requests: usize, max_bytes: u64) {
        (self.max_requests, self.max_bytes) = (max_requests, max_bytes);
    }

    pub(crate) fn bounded(max_requests: usize, max_bytes: u64) -> Self {
        Self {
            flows: Vec::new(),
            names: HashMap::new(),
            order: BTreeSet::new(),
            again: BTreeMap::new(),
            level: HashMap::new(),
            next: 0,
            depth: 0,
            max_requests,
            max_bytes,
            bytes: 0,
            tokens: 0,
        }
    }

    /// The next arrival's place.
    pub(crate) fn arrive(&mut self, class: PriorityClass, tenant: &Arc<str>) -> Place {
        self.next += 1;
        let flow = *self.names.entry((class, Arc::clone(tenant))).or_insert_with(|| {
            self.flows.push(Flow { class, served: 0, held: BTreeMap::new() });
            self.flows.len() - 1
        });
        Place { flow, seq: self.next }
    }

    /// Enters a request at its place. `again`: it had its turn before, and so is not refused now.
    pub(crate) fn push(
        &mut self,
        place: Place,
        request: Request,
        waker: W,
        again: bool,
    ) -> Result<(), Full> {
        let full = self.depth >= self.max_requests
            || self.bytes.saturating_add(request.bytes) > self.max_bytes;
        if full && !again {
            return Err(Full { requests: self.depth });
        }
        self.bytes += request.bytes;
        self.tokens += request.tokens;
        self.depth += 1;
        let class = self.flows[place.flow].class;
        let before = if again {
            self.again.insert((class, place.seq), (place, request, waker)).is_some()
        } else {
            self.lift(place.flow);
            let flow = &mut self.flows[place.flow];
            self.order.insert((class, flow.served, place.flow));
            flow.held.insert(place.seq, (request, waker)).is_some()
        };
        debug_assert!(!before, "a place is given once");
        Ok(())
    }

    /// A request that found room at once: it has had its turn without being held.
    pub(crate) fn pass(&mut self, place: Place, cost: u64) {
        self.lift(place.flow);
        self.turn(place, cost);
    }

    /// A flow that holds nothing starts level with those that do, or did last.
    fn lift(&mut self, at: usize) {
        let class = self.flows[at].class;
        let first = self.order.range((class, 0, 0)..).next().filter(|first| first.0 == class);
        let level = first.map(|first| first.1).or_else(|| self.level.get(&class).copied());
        let flow = &mut self.flows[at];
        if flow.held.is_empty() {
            flow.served = flow.served.max(level.unwrap_or(0));
        }
    }

    fn turn(&mut self, place: Place, cost: u64) {
        let flow = &self.flows[place.flow];
        self.level.insert(flow.class, flow.served);
        self.charge(place, i64::try_from(cost).unwrap_or(i64::MAX));
    }

    /// Tokens that a request that had its turn used beyond what it was counted with, or less.
    pub(crate) fn charge(&mut self, place: Place, tokens: i64) {
        let flow = &mut self.flows[place.flow];
        let before = flow.served;
        flow.served = before.saturating_add_signed(tokens);
        if self.order.remove(&(flow.class, before, place.flow)) {
            self.order.insert((flow.class, flow.served, place.flow));
        }
    }

    /// What is held, the next first.
    fn in_order(&self) -> impl Iterator<Item = (Place, &Request, &W)> {
        let again = self.again.iter();
        let again =
            again.map(|((class, _), (place, request, waker))| (*class, (*place, request, waker)));
        let new = self.order.iter().flat_map(|(class, _, flow)| {
            let held = self.flows[*flow].held.iter();
            held.map(|(seq, (request, waker))| {
                (*class, (Place { flow: *flow, seq: *seq }, request, waker))
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

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<(Place, Request, W)> {
        self.pop_first(|_, _| true)
    }

    /// Takes the first that can be `placed`; if this is its first turn, its tenant is counted its
    /// cost. Those before it keep their places.
    pub(crate) fn pop_first(
        &mut self,
        mut placed: impl FnMut(&Request, &W) -> bool,
    ) -> Option<(Place, Request, W)> {
        let (place, ..) = self.in_order().find(|(_, request, waker)| placed(request, waker))?;
        let again = self.again.contains_key(&(self.flows[place.flow].class, place.seq));
        let (request, waker) = self.take(place)?;
        if !again {
            self.turn(place, request.cost);
        }
        Some((place, request, waker))
    }

    /// Takes a request out whose client left or whose time is up; `None` if it was released before.
    pub(crate) fn remove(&mut self, place: Place) -> Option<Request> {
        self.take(place).map(|(request, _)| request)
    }

    fn take(&mut self, place: Place) -> Option<(Request, W)> {
        let flow = &mut self.flows[place.flow];
        let (request, waker) = match flow.held.remove(&place.seq) {
            Some(found) => {
                if flow.held.is_empty() {
                    self.order.remove(&(flow.class, flow.served, place.flow));
                }
                found
            }
            None => {
                let (_, request, waker) = self.again.remove(&(flow.class, place.seq))?;
                (request, waker)
            }
        };
        self.forget(&request);
        Some((request, waker))
    }

    fn forget(&mut self, request: &Request) {
        self.bytes -= request.bytes;
        self.tokens -= request.tokens;
        self.depth -= 1;
    }

    pub(crate) fn depth(&self) -> usize {
        self.depth
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Since when the longest held has waited.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        // Within a flow the first came first, and of those tried again there are few.
        let held = self.flows.iter().filter_map(|flow| flow.held.first_key_value());
        let held = held.map(|(_, (request, _))| request.since);
        held.chain(self.again.values().map(|(_, request, _)| request.since)).min()
    }
}

#[cfg(test)]
mod tests;
