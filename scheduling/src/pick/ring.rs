//! A ring for consistent hashing: each endpoint has points on it, and a key leads to the endpoint
//! whose point comes next.
//!
//! The hash of a point depends on the endpoint's address alone. So gateways that know the same
//! endpoints have the same ring, without talking, and an endpoint that comes or goes moves only the
//! keys that lead to it. Source: Karger et al., "Consistent hashing and random trees", STOC 1997.

use std::net::{IpAddr, SocketAddr};

use super::candidate::EndpointId;

/// The points of an endpoint. With more of them the shares of the endpoints differ less: with 64, by
/// about an eighth of the mean. In a pool of 10,000 they take about 17 MB.
const POINTS: usize = 64;
/// The most points of a bucket on average: a few cache lines.
const FULL: usize = 16;

/// The points of endpoints, by their hashes. Hashes are spread evenly, so the first bits of one tell
/// where it is.
#[derive(Debug, Default)]
pub(super) struct Ring {
    /// Each has the same part of the ring, and its points in order.
    buckets: Vec<Vec<Point>>,
    points: usize,
}

/// The hash of a point, and its endpoint.
type Point = (u64, EndpointId);

impl Ring {
    pub(super) fn add(&mut self, id: EndpointId, address: SocketAddr) {
        self.points += POINTS;
        if self.points > self.buckets.len() * FULL {
            self.grow();
        }
        for hash in points(address) {
            let bucket = self.bucket(hash);
            if let Err(at) = self.buckets[bucket].binary_search(&(hash, id)) {
                self.buckets[bucket].insert(at, (hash, id));
            }
        }
    }

    pub(super) fn remove(&mut self, id: EndpointId, address: SocketAddr) {
        self.points -= POINTS;
        for hash in points(address) {
            let bucket = self.bucket(hash);
            if let Ok(at) = self.buckets[bucket].binary_search(&(hash, id)) {
                self.buckets[bucket].remove(at);
            }
        }
    }

    /// The endpoints in the order in which `key` prefers them, each as often as it has points.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = EndpointId> {
        let hash = mixed(key);
        let (before, from) = self.buckets.split_at(self.bucket(hash));
        let (own, after) = from.split_first().map_or((&[][..], from), |(own, after)| (own, after));
        let (last, first) = own.split_at(own.partition_point(|(other, _)| *other < hash));
        let others = after.iter().chain(before).flatten();
        first.iter().chain(others).chain(last).map(|(_, id)| *id)
    }

    /// The number of the bucket of a hash.
    fn bucket(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.buckets.len() as u128) >> 64) as usize
    }

    /// Makes twice as many buckets.
    fn grow(&mut self) {
        let count = (2 * self.buckets.len()).max(POINTS / FULL);
        let before = std::mem::replace(&mut self.buckets, vec![Vec::new(); count]);
        for point in before.into_iter().flatten() {
            let bucket = self.bucket(point.0);
            self.buckets[bucket].push(point);
        }
    }
}

fn points(address: SocketAddr) -> impl Iterator<Item = u64> + Clone {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let seed = mixed(mixed(ip as u64) ^ (ip >> 64) as u64) ^ u64::from(address.port());
    (0..POINTS as u64).map(move |number| mixed(seed.wrapping_add(mixed(number))))
}

/// A number in which each bit depends on all bits of `key`. It is the same in every gateway and
/// version, unlike that of the standard library's hashers. Source: the finalizer of `SplitMix64`,
/// Steele et al., "Fast splittable pseudorandom number generators", OOPSLA 2014.
fn mixed(key: u64) -> u64 {
    let mut mixed = key.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    fn address(number: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, number], 8000))
    }

    /// The endpoint of each of many keys.
    fn first(ring: &Ring) -> Vec<EndpointId> {
        (0..10_000).map(|key| ring.from(key).next().expect("it has points")).collect()
    }

    fn ring(numbers: std::ops::Range<u8>) -> (Ring, Vec<EndpointId>) {
        let mut ring = Ring::default();
        let ids = numbers.map(|number| {
            let id = EndpointId::of(number.into());
            ring.add(id, address(number));
            id
        });
        let ids = ids.collect();
        (ring, ids)
    }

    #[test]
    fn endpoints_have_about_the_same_share_of_the_keys() {
        let (ring, ids) = ring(1..9);
        let mut shares = BTreeMap::new();
        for id in first(&ring) {
            *shares.entry(id).or_insert(0) += 1;
        }
        assert_eq!(shares.len(), ids.len());
        for share in shares.values() {
            assert!((700..1900).contains(share), "{shares:?}: 1250 would be even");
        }
    }

    #[test]
    fn an_endpoint_that_goes_moves_only_its_own_keys() {
        let (mut ring, ids) = ring(1..9);
        let before = first(&ring);
        ring.remove(ids[2], address(3));
        for (before, after) in before.iter().zip(first(&ring)) {
            assert_eq!(*before == ids[2], *before != after);
        }
        ring.add(ids[2], address(3));
        assert_eq!(before, first(&ring), "and comes back to them");
    }

    #[test]
    fn a_key_leads_to_every_endpoint_in_the_end() {
        let (ring, ids) = ring(1..9);
        let reached: BTreeSet<_> = ring.from(7).collect();
        assert_eq!(reached.len(), ids.len());
    }

    proptest! {
        #[test]
        fn it_has_the_same_order_as_a_sorted_list(
            steps in prop::collection::vec(0..40u8, 0..80),
            keys in prop::collection::vec(any::<u64>(), 1..10),
        ) {
            let (mut ring, mut model) = (Ring::default(), BTreeSet::new());
            for number in steps {
                let id = EndpointId::of(number.into());
                let own = points(address(number)).map(|hash| (hash, id));
                // One that is there goes, and one that is not comes.
                if model.contains(&own.clone().next().expect("it has points")) {
                    ring.remove(id, address(number));
                    own.for_each(|point| assert!(model.remove(&point)));
                } else {
                    ring.add(id, address(number));
                    model.extend(own);
                }
            }
            for key in keys {
                let start = (mixed(key), EndpointId::FIRST);
                let want = model.range(start..).chain(model.range(..start)).map(|(_, id)| *id);
                prop_assert_eq!(ring.from(key).collect::<Vec<_>>(), want.collect::<Vec<_>>());
            }
        }
    }
}
