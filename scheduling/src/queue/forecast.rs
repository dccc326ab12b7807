//! The order in which held requests will be released, if nothing else happens.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use forebay_config::PriorityClass;

use super::row::FlowPlace;
use super::turn::{Lane, LaneCounts, Turns};
use super::{Entry, Place, Queue};

/// A walk over the held requests in the order of their releases, if no other arrives, none becomes
/// late, and each uses the tokens that it is charged for. A walk of all costs what their releases
/// would.
///
/// It borrows nothing, so the queue may change between two steps: what left is passed over, what
/// arrived meanwhile may be.
#[derive(Debug)]
pub struct Walk {
    turns: Turns,
    counts: [LaneCounts; PriorityClass::COUNT],
    classes: [ClassForecast; PriorityClass::COUNT],
    flows: HashMap<usize, FlowForecast>,
}

/// One class's future.
#[derive(Debug)]
struct ClassForecast {
    /// The rank of the first request that is tried again, and not behind the walk.
    again: u64,
    in_time: BTreeSet<FlowPlace>,
    late: BTreeSet<FlowPlace>,
}

/// One flow's future. For each of its rows: the first request that is not behind the walk.
#[derive(Clone, Copy, Debug)]
struct FlowForecast {
    served: u64,
    in_time: u64,
    late: u64,
}

/// The held requests in the order of their releases: a [`Walk`] over a queue that does not change.
pub struct Releases<'a, W> {
    queue: &'a Queue<W>,
    walk: Walk,
}

/// The late requests of a class, and those that go before them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LateLane {
    /// Requests that are released before any of them, but for their share.
    pub in_time: usize,
    /// The moment since which there have been late ones without a pause; `None` if there are none.
    pub since: Option<Duration>,
    /// The share of the latest releases that they got since then, 0 to 1; 1 if nothing is known.
    pub share: f64,
}

impl<W> Queue<W> {
    /// The late requests of a class.
    #[must_use]
    pub fn late_lane(&self, class: PriorityClass) -> LateLane {
        let own = &self.classes[class as usize];
        let higher = self.classes[..class as usize].iter().map(|class| class.counts.all());
        LateLane {
            in_time: higher.sum::<usize>() + own.counts.again + own.counts.in_time,
            since: (own.counts.late > 0).then_some(own.late_since),
            share: if own.counts.late > 0 { self.turns.seen_late_share(class) } else { 1.0 },
        }
    }

    /// The priority class of a place.
    #[must_use]
    pub fn class(&self, place: Place) -> PriorityClass {
        self.flows[place.flow].class
    }

    /// The held requests in the order of their releases.
    #[must_use]
    pub fn releases(&self) -> Releases<'_, W> {
        Releases { queue: self, walk: self.walk() }
    }

    /// A walk in the order of the releases. Costs a step for each tenant that waits.
    #[must_use]
    pub fn walk(&self) -> Walk {
        let classes = std::array::from_fn(|at| {
            let class = &self.classes[at];
            let (in_time, late) = (class.in_time.all(), class.late.all());
            ClassForecast { again: 0, in_time, late }
        });
        let holding = classes
            .iter()
            .flat_map(|class: &ClassForecast| class.in_time.iter().chain(&class.late));
        let flow =
            |(served, at): &FlowPlace| (*at, FlowForecast { served: *served, in_time: 0, late: 0 });
        let flows = holding.map(flow).collect();
        Walk { turns: self.turns, counts: self.counts(), classes, flows }
    }

    /// How many held requests will be released before one that arrives now at `place`, nearly.
    /// `late`: it can't meet the objective any more. Costs a step for each tenant that waits.
    #[must_use]
    pub fn ahead(&self, place: Place, late: bool) -> usize {
        let own = &self.flows[place.flow];
        let class = &self.classes[own.class as usize];
        let counts = self.counts();
        let higher: usize = counts[..own.class as usize].iter().map(|counts| counts.all()).sum();
        // The tokens that its tenant will have been served when its turn comes.
        let begins =
            if own.holds_nothing() { own.served.max(self.level(own.class)) } else { own.served };
        let turn = begins + own.in_time.cost() + if late { own.late.cost() } else { 0 };
        let others = if late { &class.late } else { &class.in_time };
        let mut same = if late { own.late.len() } else { own.in_time.len() };
        for (served, at) in others.each().filter(|(_, at)| *at != place.flow) {
            let flow = &self.flows[at];
            let (row, before) = match late {
                true => (&flow.late, served + flow.in_time.cost()),
                false => (&flow.in_time, served),
            };
            // As many of its requests as their mean cost allows until it has been served as much.
            let share = turn.saturating_sub(before) as f64 / row.cost().max(1) as f64;
            same += (row.len() as f64 * share.min(1.0)).ceil() as usize;
        }
        let own_class = counts[own.class as usize];
        let first = own_class.again + if late { own_class.in_time } else { 0 };
        let mut ahead = higher + first + same;
        if !late {
            ahead += part(same, Turns::late_share(), own_class.late);
        }
        let lower = counts[own.class as usize + 1..].iter();
        let share = self.turns.lower_share();
        ahead + lower.map(|counts| part(ahead, share, counts.all())).sum::<usize>()
    }
}

/// The turns that a lane with `held` requests gets during `releases` of others.
fn part(releases: usize, share: f64, held: usize) -> usize {
    ((releases as f64 * share) as usize).min(held)
}

impl Walk {
    /// The next request; `None` at the end.
    pub fn next<'a, W>(&mut self, queue: &'a Queue<W>) -> Option<(Place, &'a Entry, &'a W)> {
        let order = self.turns.order();
        let next = |(class, lane)| Some((class, lane, self.take(queue, class, lane)?));
        let (class, lane, released) = order.into_iter().find_map(next)?;
        let count = self.counts[class as usize].of(lane);
        *count = count.saturating_sub(1);
        self.turns.released(class, lane, self.counts);
        Some(released)
    }

    fn take<'a, W>(
        &mut self,
        queue: &'a Queue<W>,
        class: PriorityClass,
        lane: Lane,
    ) -> Option<(Place, &'a Entry, &'a W)> {
        let forecast = &mut self.classes[class as usize];
        if lane == Lane::Again {
            let again = &queue.classes[class as usize].again;
            let (rank, (entry, (place, waker))) = again.next(forecast.again)?;
            forecast.again = rank + 1;
            self.charge(class, place.flow, entry.answer);
            return Some((*place, entry, waker));
        }
        let lanes = if lane == Lane::Late { &mut forecast.late } else { &mut forecast.in_time };
        loop {
            let (_, at) = *lanes.first()?;
            let (flow, ahead) = (&queue.flows[at], self.flows.get_mut(&at)?);
            let (row, first) = match lane {
                Lane::Late => (&flow.late, &mut ahead.late),
                _ => (&flow.in_time, &mut ahead.in_time),
            };
            if let Some((seq, (entry, waker))) = row.next(*first) {
                *first = seq + 1;
                self.charge(class, at, entry.cost);
                return Some((Place::new(at, seq), entry, waker));
            }
            // The walk is at the end of this row.
            lanes.pop_first();
        }
    }

    /// Charges a flow, and moves it to its places in the lanes.
    fn charge(&mut self, class: PriorityClass, at: usize, tokens: u64) {
        // A flow without other requests is in no lane.
        let Some(flow) = self.flows.get_mut(&at) else { return };
        let before = flow.served;
        flow.served = before.saturating_add(tokens);
        let forecast = &mut self.classes[class as usize];
        for lane in [&mut forecast.in_time, &mut forecast.late] {
            if lane.remove(&(before, at)) {
                lane.insert((flow.served, at));
            }
        }
    }
}

impl<'a, W> Iterator for Releases<'a, W> {
    type Item = (Place, &'a Entry, &'a W);

    fn next(&mut self) -> Option<Self::Item> {
        self.walk.next(self.queue)
    }
}
