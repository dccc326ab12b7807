//! The memory of requests: heads and bodies that are being read, held, or sent to a replica.
//!
//! All requests together have a bound. Each owner of requests may take as much as it leaves free
//! for others, and two bodies in any case. So a single owner gets half of all, a second one half of
//! the rest, and no share has to be configured.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use parking_lot::Mutex;

use crate::net::connection_limits;
use crate::net::machine_limits::MachineLimits;

/// The memory of a request in addition to its head and its body.
pub(crate) const REQUEST: u64 = 8 << 10;
/// The memory of a header in addition to its name and its value, as HTTP/2 counts it.
const HEADER: usize = 32;
/// Among so few owners, one that takes nothing now keeps its place.
const KNOWN_OWNERS: usize = 64;

/// The owner of a share of the memory.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum MemoryOwner {
    /// The client's tenant.
    Tenant(Arc<str>),
    /// The client's address, as trusted proxies report it; for IPv6, its /64.
    Address(IpAddr),
}

impl MemoryOwner {
    pub(crate) fn address(address: IpAddr) -> Self {
        Self::Address(connection_limits::client(address))
    }
}

impl fmt::Display for MemoryOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(name) => write!(f, "tenant `{name}`"),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(network)) => write!(f, "{network}/64"),
        }
    }
}

/// The memory of all requests of the process.
#[derive(Default)]
pub(crate) struct BodyMemory {
    used: Arc<Mutex<Used>>,
}

#[derive(Default)]
struct Used {
    all: u64,
    /// In order of the owners: to hash one would cost more than to find it, also among thousands.
    by_owner: BTreeMap<MemoryOwner, u64>,
}

/// The bound that more bytes would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryFull {
    /// The bound of all requests.
    All,
    /// The owner's share.
    Owner,
}

/// The memory of one request, counted while any part of its body exists.
#[must_use = "dropping it gives the bytes back"]
pub(crate) struct BodyShare {
    used: Arc<Mutex<Used>>,
    owner: MemoryOwner,
    own: u64,
    bounds: MachineLimits,
}

impl BodyMemory {
    /// A new request of `owner`, which takes nothing yet.
    pub(crate) fn share(&self, owner: MemoryOwner, bounds: MachineLimits) -> BodyShare {
        BodyShare { used: Arc::clone(&self.used), owner, own: 0, bounds }
    }
}

impl BodyShare {
    pub(crate) fn owner(&self) -> &MemoryOwner {
        &self.owner
    }

    /// Takes `bytes` more, or nothing if that would break a bound.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), MemoryFull> {
        let used = &mut *self.used.lock();
        let free = self.bounds.bodies_size.checked_sub(used.all);
        let left = free.and_then(|free| free.checked_sub(bytes)).ok_or(MemoryFull::All)?;
        let most = left.max(self.bounds.bodies_size_of_one);
        match used.by_owner.get_mut(&self.owner) {
            Some(of_owner) => {
                let after = *of_owner + bytes;
                if after > most {
                    return Err(MemoryFull::Owner);
                }
                *of_owner = after;
            }
            None if bytes > most => return Err(MemoryFull::Owner),
            None => {
                used.by_owner.insert(self.owner.clone(), bytes);
            }
        }
        used.all += bytes;
        self.own += bytes;
        Ok(())
    }

    /// Gives `bytes` back.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.own);
        if bytes == 0 {
            return;
        }
        self.own -= bytes;
        let mut used = self.used.lock();
        let used = &mut *used;
        used.all -= bytes;
        let is_crowded = used.by_owner.len() > KNOWN_OWNERS;
        if let Some(of_owner) = used.by_owner.get_mut(&self.owner) {
            *of_owner -= bytes;
            // The next request of the same owner finds its place.
            if *of_owner == 0 && is_crowded {
                used.by_owner.remove(&self.owner);
            }
        }
    }

    /// The body, counted until the last slice of it is dropped.
    pub(crate) fn keep(self, body: Bytes) -> Bytes {
        if body.is_empty() { body } else { Bytes::from_owner(CountedBody { body, _share: self }) }
    }
}

impl Drop for BodyShare {
    fn drop(&mut self) {
        self.shrink(self.own);
    }
}

/// A body with its share of the memory.
struct CountedBody {
    body: Bytes,
    _share: BodyShare,
}

impl AsRef<[u8]> for CountedBody {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// The memory that a request takes before its body.
pub(crate) fn without_body(parts: &Parts) -> u64 {
    let header = |name: &str, value: &[u8]| name.len() + value.len() + HEADER;
    let headers = parts.headers.iter();
    let headers = headers.map(|(name, value)| header(name.as_str(), value.as_bytes()));
    let target = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    REQUEST + (headers.sum::<usize>() + target) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(all: u64, of_one: u64) -> MachineLimits {
        MachineLimits { bodies_size: all, bodies_size_of_one: of_one, ..MachineLimits::default() }
    }

    fn from(n: u8) -> MemoryOwner {
        MemoryOwner::address(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn a_body_counts_until_its_last_slice_is_gone() {
        let memory = BodyMemory::default();
        let share = || memory.share(from(1), bounds(10, 10));
        let mut first = share();
        assert_eq!((first.grow(4), first.grow(3)), (Ok(()), Ok(())));
        assert_eq!(first.grow(4), Err(MemoryFull::All), "bytes that do not fit are not counted");
        let first = first.keep(Bytes::from_static(b"1234567"));
        let slice = first.slice(2..4);
        drop(first);
        let mut second = share();
        assert_eq!(second.grow(4), Err(MemoryFull::All), "a slice keeps all of it");
        assert_eq!(&slice[..], b"34");
        drop(slice);
        assert_eq!(second.grow(10), Ok(()));
        second.shrink(4);
        assert_eq!(memory.used.lock().all, 6);
        drop(second);
        drop(share().keep(Bytes::new()));
        assert_eq!(share().grow(u64::MAX), Err(MemoryFull::All));
        let used = memory.used.lock();
        assert!(used.all == 0 && used.by_owner.values().all(|bytes| *bytes == 0));
    }

    #[test]
    fn owners_without_requests_take_no_memory_to_speak_of() {
        let memory = BodyMemory::default();
        let owner = |n: u32| MemoryOwner::address(IpAddr::from(n.to_be_bytes()));
        let share = |n: u32| memory.share(owner(n), bounds(1 << 20, 10));
        for at_once in [1, 1000] {
            let mut shares: Vec<_> = (0..at_once).map(share).collect();
            shares.iter_mut().for_each(|share| assert_eq!(share.grow(1), Ok(())));
            drop(shares);
            for n in at_once..2000 {
                assert_eq!(share(n).grow(1), Ok(()));
            }
        }
        assert!(memory.used.lock().by_owner.len() <= KNOWN_OWNERS + 1);
    }

    #[test]
    fn each_owner_leaves_to_others_as_much_as_it_takes() {
        let memory = BodyMemory::default();
        let mut taken = Vec::new();
        let mut take = |n: u8| {
            let mut share = memory.share(from(n), bounds(120, 10));
            let took = (1..).take_while(|_| share.grow(1).is_ok()).count();
            taken.push(share);
            took
        };
        assert_eq!([take(1), take(2), take(3)], [60, 30, 15]);
        assert_eq!(take(1), 0, "all requests of one owner count together");
        assert_eq!(take(4), 10, "never fewer than two bodies");
        assert_eq!(take(5), 5, "but no more than there is");
    }

    #[test]
    fn a_tenant_is_one_owner_at_every_address_and_a_v6_client_is_its_network() {
        let address = |text: &str| MemoryOwner::address(text.parse().expect("an address"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::2"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
        assert_eq!(address("2001:db8::1").to_string(), "2001:db8::/64");
        assert_eq!(MemoryOwner::Tenant("a".into()).to_string(), "tenant `a`");
    }

    proptest! {
        #[test]
        fn no_bound_is_ever_broken(
            steps in prop::collection::vec((0..5u8, 0..40u64), 0..60), all in 0..200u64, one in 0..50u64,
        ) {
            let memory = BodyMemory::default();
            let mut shares = Vec::new();
            for (n, bytes) in steps {
                let mut share = memory.share(from(n), bounds(all, one));
                let _ = share.grow(bytes);
                let used = memory.used.lock();
                prop_assert!(used.all <= all);
                prop_assert_eq!(used.by_owner.values().sum::<u64>(), used.all);
                drop(used);
                shares.push(share);
            }
            drop(shares);
            prop_assert_eq!(memory.used.lock().all, 0);
        }
    }
}
