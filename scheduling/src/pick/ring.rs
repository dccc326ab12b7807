//! A ring for consistent hashing: each endpoint has points on it, and a key leads to the endpoint
//! whose point comes next.
//!
//! The hash of a point depends on the endpoint's address alone. So gateways that know the same
//! endpoints have the same ring, without talking, and an endpoint that comes or goes moves only the
//! keys that lead to it. Source: Karger et al., "Consistent hashing and random trees", STOC 1997.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use super::candidate::EndpointId;

/// The points of an endpoint. With more of them the shares of the endpoints differ less: with 64, by
/// about an eighth of the mean. In a pool of 10,000 they take about 15 MB.
const POINTS: u64 = 64;

/// The points of endpoints, by their hashes.
#[derive(Debug, Default)]
pub(super) struct Ring(BTreeSet<(u64, EndpointId)>);

impl Ring {
    pub(super) fn add(&mut self, id: EndpointId, address: SocketAddr) {
        self.0.extend(points(address).map(|point| (point, id)));
    }

    pub(super) fn remove(&mut self, id: EndpointId, address: SocketAddr) {
        for point in points(address) {
            self.0.remove(&(point, id));
        }
    }

    /// The endpoints in the order in which `key` prefers them, each as often as it has points.
    pub(super) fn from(&self, key: u64) -> impl Iterator<Item = EndpointId> {
        let start = (mixed(key), EndpointId::FIRST);
        self.0.range(start..).chain(self.0.range(..start)).map(|(_, id)| *id)
    }
}

fn points(address: SocketAddr) -> impl Iterator<Item = u64> {
    let ip = match address.ip() {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let seed = mixed(mixed(ip as u64) ^ (ip >> 64) as u64) ^ u64::from(address.port());
    (0..POINTS).map(move |number| mixed(seed.wrapping_add(mixed(number))))
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
    use std::collections::BTreeMap;

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
        let reached: std::collections::BTreeSet<_> = ring.from(7).collect();
        assert_eq!(reached.len(), ids.len());
    }
}
