//! Requests of one flow and lane, and the flows of one lane, each by kind.
//!
//! Requests of the same kind can be given to the same endpoints ([`Entry::kind`]). So if the first one of a
//! kind can't be placed, no other of that kind can, however many are held. Mostly there is one kind.

use std::collections::{BTreeMap, BTreeSet};

use forebay_config::PriorityClass;

use super::turn::Lane;
use super::{Entry, Tab};

/// A flow's place in a lane: the tokens that its tenant was served, and its number.
pub(super) type FlowPlace = (u64, usize);

/// Requests of one kind by the number of their arrival.
type ByArrival<W> = BTreeMap<u64, (Entry, W)>;

/// One tenant's held requests in one class.
pub(super) struct Flow<W> {
    pub(super) class: PriorityClass,
    /// Tokens that it was served, raised to the level of the others whenever it comes back.
    pub(super) served: u64,
    pub(super) in_time: Row<W>,
    pub(super) late: Row<W>,
    pub(super) tab: Tab,
}

impl<W> Flow<W> {
    /// Its new requests in this lane.
    pub(super) fn row(&self, lane: Lane) -> &Row<W> {
        if lane == Lane::Late { &self.late } else { &self.in_time }
    }

    pub(super) fn holds_nothing(&self) -> bool {
        self.in_time.is_empty() && self.late.is_empty()
    }
}

/// Requests of one flow and lane.
pub(super) struct Row<W> {
    /// By kind, and each kind by arrival. None is empty.
    kinds: Vec<(u64, ByArrival<W>)>,
    held: usize,
    /// The sum of their costs.
    cost: u64,
}

impl<W> Default for Row<W> {
    fn default() -> Self {
        Self { kinds: Vec::new(), held: 0, cost: 0 }
    }
}

impl<W> Row<W> {
    /// Adds a request. A place is given once, so none is there.
    pub(super) fn insert(&mut self, seq: u64, entry: Entry, waker: W) {
        let kind = entry.kind;
        self.cost += entry.cost;
        self.held += 1;
        let at = self.kinds.iter().position(|(other, _)| *other == kind).unwrap_or_else(|| {
            self.kinds.push((kind, BTreeMap::new()));
            self.kinds.len() - 1
        });
        let before = self.kinds[at].1.insert(seq, (entry, waker));
        debug_assert!(before.is_none(), "a place is given once");
    }

    /// Takes out a request, and says whether none of its kind is left.
    pub(super) fn remove(&mut self, seq: u64) -> Option<(Entry, W, bool)> {
        let found = self.kinds.iter_mut().enumerate();
        let (at, (entry, waker)) =
            found.filter_map(|(at, (_, held))| Some((at, held.remove(&seq)?))).next()?;
        let last = self.kinds[at].1.is_empty();
        if last {
            self.kinds.swap_remove(at);
        }
        self.cost -= entry.cost;
        self.held -= 1;
        Some((entry, waker, last))
    }

    /// The first request that arrived with this number or later.
    pub(super) fn next(&self, from: u64) -> Option<(u64, &(Entry, W))> {
        let firsts = self.kinds.iter().filter_map(|(_, held)| held.range(from..).next());
        firsts.min_by_key(|(seq, _)| **seq).map(|(seq, held)| (*seq, held))
    }

    /// The first request of a kind.
    pub(super) fn first_of(&self, kind: u64) -> Option<(u64, &(Entry, W))> {
        let (_, held) = self.kinds.iter().find(|(other, _)| *other == kind)?;
        held.first_key_value().map(|(seq, held)| (*seq, held))
    }

    /// The first request of each kind, in no order.
    pub(super) fn firsts(&self) -> impl Iterator<Item = (u64, &(Entry, W))> {
        let firsts = self.kinds.iter().filter_map(|(_, held)| held.first_key_value());
        firsts.map(|(seq, held)| (*seq, held))
    }

    /// A request, to change it.
    pub(super) fn get_mut(&mut self, seq: u64) -> Option<&mut Entry> {
        let held = self.kinds.iter_mut().find_map(|(_, held)| held.get_mut(&seq))?;
        Some(&mut held.0)
    }

    /// The kinds of its requests.
    pub(super) fn kinds(&self) -> impl Iterator<Item = u64> {
        self.kinds.iter().map(|(kind, _)| *kind)
    }

    /// Its requests in the order of their arrival.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, &(Entry, W))> {
        std::iter::successors(self.next(0), |(seq, _)| self.next(seq + 1))
    }

    pub(super) fn len(&self) -> usize {
        self.held
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    pub(super) fn cost(&self) -> u64 {
        self.cost
    }
}

/// The flows that have requests in one lane of a class, those that were served least first.
#[derive(Default)]
pub(super) struct LaneFlows {
    /// By the kind of their requests there. None is empty.
    kinds: Vec<(u64, BTreeSet<FlowPlace>)>,
}

impl LaneFlows {
    /// Adds a flow with requests of this kind, if it is not there.
    pub(super) fn insert(&mut self, kind: u64, flow: FlowPlace) {
        match self.kinds.iter_mut().find(|(other, _)| *other == kind) {
            Some((_, flows)) => drop(flows.insert(flow)),
            None => self.kinds.push((kind, BTreeSet::from([flow]))),
        }
    }

    /// Removes a flow that has no more requests of this kind.
    pub(super) fn remove(&mut self, kind: u64, flow: FlowPlace) {
        if let Some(at) = self.kinds.iter().position(|(other, _)| *other == kind) {
            self.kinds[at].1.remove(&flow);
            if self.kinds[at].1.is_empty() {
                self.kinds.swap_remove(at);
            }
        }
    }

    /// Moves a flow that was served more or less since. `kinds`: those of its requests.
    pub(super) fn charge(
        &mut self,
        kinds: impl Iterator<Item = u64>,
        (before, at): FlowPlace,
        served: u64,
    ) {
        for kind in kinds {
            if let Some((_, flows)) = self.kinds.iter_mut().find(|(other, _)| *other == kind) {
                flows.remove(&(before, at));
                flows.insert((served, at));
            }
        }
    }

    /// The first flow.
    pub(super) fn first(&self) -> Option<FlowPlace> {
        self.firsts().map(|(_, flow)| flow).min()
    }

    /// The first flow of each kind, in no order.
    pub(super) fn firsts(&self) -> impl Iterator<Item = (u64, FlowPlace)> {
        self.kinds.iter().filter_map(|(kind, flows)| Some((*kind, *flows.first()?)))
    }

    /// All of them, in their order.
    pub(super) fn all(&self) -> BTreeSet<FlowPlace> {
        self.each().collect()
    }

    /// Each of them once, in no order.
    pub(super) fn each(&self) -> impl Iterator<Item = FlowPlace> {
        self.kinds.iter().enumerate().flat_map(|(number, (_, flows))| {
            let before = &self.kinds[..number];
            let new =
                move |flow: &&FlowPlace| !before.iter().any(|(_, other)| other.contains(flow));
            flows.iter().filter(new).copied()
        })
    }
}
