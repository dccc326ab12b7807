//! The order in which held requests will be released, if nothing else happens.

use std::collections::btree_map::{Iter, Values};
use std::collections::{BTreeSet, HashMap};
use std::iter::Peekable;

use forebay_config::PriorityClass;

use super::turn::{Lane, LaneCounts, Turns};
use super::{Entry, Place, Queue};

/// The held requests in the order of their releases, if no other arrives, none becomes late, and
/// each uses the tokens that it is charged for. A walk of all costs what their releases would.
pub struct Releases<'a, W> {
    turns: Turns,
    counts: [LaneCounts; PriorityClass::COUNT],
    classes: [ClassForecast<'a, W>; PriorityClass::COUNT],
    flows: HashMap<usize, FlowForecast<'a, W>>,
}

/// One class's future.
struct ClassForecast<'a, W> {
    again: Values<'a, u64, (Place, Entry, W)>,
    in_time: BTreeSet<(u64, usize)>,
    late: BTreeSet<(u64, usize)>,
}

/// One flow's future.
struct FlowForecast<'a, W> {
    served: u64,
    in_time: Peekable<Iter<'a, u64, (Entry, W)>>,
    late: Peekable<Iter<'a, u64, (Entry, W)>>,
}

impl<W> Queue<W> {
    /// The held requests in the order of their releases.
    #[must_use]
    pub fn releases(&self) -> Releases<'_, W> {
        let classes = std::array::from_fn(|at| {
            let class = &self.classes[at];
            let (in_time, late) = (class.in_time.clone(), class.late.clone());
            ClassForecast { again: class.again.values(), in_time, late }
        });
        let holding = self.classes.iter().flat_map(|class| class.in_time.iter().chain(&class.late));
        let flow = |at: usize| {
            let flow = &self.flows[at];
            let in_time = flow.in_time.held.iter().peekable();
            FlowForecast { served: flow.served, in_time, late: flow.late.held.iter().peekable() }
        };
        let flows = holding.map(|(_, at)| (*at, flow(*at))).collect();
        Releases { turns: self.turns, counts: self.counts(), classes, flows }
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
        let turn = begins + own.in_time.cost + if late { own.late.cost } else { 0 };
        let others = if late { &class.late } else { &class.in_time };
        let mut same = if late { own.late.held.len() } else { own.in_time.held.len() };
        for (served, at) in others.iter().filter(|(_, at)| *at != place.flow) {
            let flow = &self.flows[*at];
            let (row, before) = match late {
                true => (&flow.late, served + flow.in_time.cost),
                false => (&flow.in_time, *served),
            };
            // As many of its requests as their mean cost allows until it has been served as much.
            let share = turn.saturating_sub(before) as f64 / row.cost.max(1) as f64;
            same += (row.held.len() as f64 * share.min(1.0)).ceil() as usize;
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

impl<'a, W> Releases<'a, W> {
    fn take(&mut self, class: PriorityClass, lane: Lane) -> Option<(Place, &'a Entry, &'a W)> {
        let forecast = &mut self.classes[class as usize];
        let lanes = match lane {
            Lane::Again => {
                let (place, entry, waker) = forecast.again.next()?;
                self.charge(class, place.flow, entry.answer);
                return Some((*place, entry, waker));
            }
            Lane::InTime => &forecast.in_time,
            Lane::Late => &forecast.late,
        };
        let (_, at) = *lanes.first()?;
        let flow = self.flows.get_mut(&at)?;
        let row = if lane == Lane::Late { &mut flow.late } else { &mut flow.in_time };
        let (seq, (entry, waker)) = row.next()?;
        self.charge(class, at, entry.cost);
        Some((Place { flow: at, seq: *seq }, entry, waker))
    }

    /// Charges a flow, and moves it to its places in the lanes where it still holds requests.
    fn charge(&mut self, class: PriorityClass, at: usize, tokens: u64) {
        // A flow without other requests is in no lane.
        let Some(flow) = self.flows.get_mut(&at) else { return };
        let before = flow.served;
        flow.served = before.saturating_add(tokens);
        let forecast = &mut self.classes[class as usize];
        let rows = [&mut flow.in_time, &mut flow.late];
        for (lane, row) in [&mut forecast.in_time, &mut forecast.late].into_iter().zip(rows) {
            if lane.remove(&(before, at)) && row.peek().is_some() {
                lane.insert((flow.served, at));
            }
        }
    }
}

impl<'a, W> Iterator for Releases<'a, W> {
    type Item = (Place, &'a Entry, &'a W);

    fn next(&mut self) -> Option<Self::Item> {
        let order = self.turns.order();
        let next = |(class, lane)| Some((class, lane, self.take(class, lane)?));
        let (class, lane, released) = order.into_iter().find_map(next)?;
        *self.counts[class as usize].of(lane) -= 1;
        self.turns.released(class, lane, self.counts);
        Some(released)
    }
}
