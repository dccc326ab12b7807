//! Endpoints by their ranks. The first one is known at any time, and all are there to draw from.
//!
//! A tournament: each node of a binary tree has the lower of the two ranks below it. So the root has
//! the lowest of all, and a change is played again along one path. That takes about ten instructions
//! for each doubling of the pool, where a search tree takes some hundred to remove a rank and to insert
//! another.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};
use std::iter::from_fn;

use super::candidate::{EndpointId, Rank};

/// Endpoints, each at a place of its own: the first places, without a gap.
#[derive(Debug, Default)]
pub(super) struct Ranking {
    /// The root is at 1, the nodes below a node are at twice its number and at the next one, and the
    /// second half has the places. [`Rank::NONE`] where no endpoint is.
    nodes: Vec<Rank>,
    count: usize,
    places: HashMap<EndpointId, u32, BuildHasherDefault<NumberHasher>>,
}

impl Ranking {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn contains(&self, id: EndpointId) -> bool {
        self.places.contains_key(&id)
    }

    /// The endpoint at this place.
    pub(super) fn get(&self, place: usize) -> Option<EndpointId> {
        (place < self.count).then(|| self.nodes[self.half() + place].id())
    }

    /// All endpoints, by their places.
    pub(super) fn all(&self) -> impl Iterator<Item = EndpointId> {
        let places = self.nodes.iter().skip(self.half()).take(self.count);
        places.map(|rank| rank.id())
    }

    /// The lowest rank.
    pub(super) fn first(&self) -> Option<Rank> {
        self.nodes.get(1).copied().filter(|rank| *rank != Rank::NONE)
    }

    /// All ranks, the lowest first. Each costs a little more than the one before.
    pub(super) fn ascending(&self) -> impl Iterator<Item = Rank> {
        let mut next: BinaryHeap<_> =
            self.first().map(|rank| Reverse((rank, 1))).into_iter().collect();
        from_fn(move || {
            loop {
                let Reverse((rank, node)) = next.pop()?;
                if node >= self.half() {
                    return Some(rank);
                }
                let below = [2 * node, 2 * node + 1].map(|node| Reverse((self.nodes[node], node)));
                next.extend(below.into_iter().filter(|Reverse((rank, _))| *rank != Rank::NONE));
            }
        })
    }

    /// Adds an endpoint at the next place.
    pub(super) fn add(&mut self, rank: Rank) {
        if self.count == self.half() {
            self.grow();
        }
        self.places.insert(rank.id(), self.count as u32);
        self.count += 1;
        self.set(self.count - 1, rank);
    }

    /// Removes an endpoint. The one at the last place takes its place.
    pub(super) fn remove(&mut self, id: EndpointId) {
        let Some(place) = self.places.remove(&id) else { return };
        self.count -= 1;
        let last = self.nodes[self.half() + self.count];
        self.set(self.count, Rank::NONE);
        if (place as usize) < self.count {
            self.places.insert(last.id(), place);
            self.set(place as usize, last);
        }
    }

    /// Replaces an endpoint's rank.
    pub(super) fn change(&mut self, rank: Rank) {
        if let Some(place) = self.places.get(&rank.id()) {
            self.set(*place as usize, rank);
        }
    }

    fn set(&mut self, place: usize, rank: Rank) {
        let mut node = self.half() + place;
        self.nodes[node] = rank;
        while node > 1 {
            node /= 2;
            let lower = self.lower(node);
            if self.nodes[node] == lower {
                return;
            }
            self.nodes[node] = lower;
        }
    }

    fn lower(&self, node: usize) -> Rank {
        self.nodes[2 * node].min(self.nodes[2 * node + 1])
    }

    fn half(&self) -> usize {
        self.nodes.len() / 2
    }

    /// Makes room for twice as many.
    fn grow(&mut self) {
        let (before, half) = (self.half(), (2 * self.half()).max(1));
        let mut nodes = vec![Rank::NONE; 2 * half];
        nodes[half..half + before].copy_from_slice(&self.nodes[before..]);
        self.nodes = nodes;
        for node in (1..half).rev() {
            self.nodes[node] = self.lower(node);
        }
    }
}

/// A hasher for endpoints' numbers, which no client can choose.
#[derive(Debug, Default)]
struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u32(u32::from(*byte)));
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_has_the_same_order_as_a_sorted_list(
            steps in prop::collection::vec((0..40u32, 0..4u32, 0..5u64), 0..200),
        ) {
            let (mut ranking, mut model) = (Ranking::default(), BTreeMap::new());
            for (number, in_flight, turn) in steps {
                let id = EndpointId::of(number);
                let rank = Rank::new(in_flight, turn, id);
                match (turn, model.contains_key(&id)) {
                    (0, _) => {
                        ranking.remove(id);
                        model.remove(&id);
                    }
                    (_, true) => {
                        ranking.change(rank);
                        model.insert(id, rank);
                    }
                    (_, false) => {
                        ranking.add(rank);
                        model.insert(id, rank);
                    }
                }
                let mut sorted: Vec<_> = model.values().copied().collect();
                sorted.sort_unstable();
                prop_assert_eq!(ranking.first(), sorted.first().copied());
                prop_assert_eq!(ranking.ascending().collect::<Vec<_>>(), sorted);
                let mut all: Vec<_> = ranking.all().collect();
                prop_assert!(all.iter().enumerate().all(|(at, id)| ranking.get(at) == Some(*id)));
                all.sort_unstable();
                prop_assert_eq!(all, model.keys().copied().collect::<Vec<_>>());
                prop_assert_eq!((ranking.len(), ranking.get(ranking.len())), (model.len(), None));
                prop_assert_eq!(ranking.contains(id), model.contains_key(&id));
            }
        }
    }
}
