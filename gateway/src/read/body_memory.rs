//! How much memory requests take: heads and bodies that are being read, and those that are held or
//! on their way to a replica.
//!
//! All together have a bound, and each source of requests a share that depends on how much is free:
//! it may take as much as it leaves to others, and two bodies in any case. So one alone gets half of
//! all, a second that comes half of the rest, and nobody has to be configured.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use parking_lot::Mutex;

use crate::net::bounds::Bounds;
use crate::net::connection_limits;

/// What a request takes that is neither head nor body.
pub(crate) const REQUEST: u64 = 8 << 10;
/// What a header takes beside its name and its value, as HTTP/2 reckons it.
const HEADER: usize = 32;

/// Who sends requests, as far as memory is shared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Source {
    /// One who has a key.
    Tenant(Arc<str>),
    /// One address, IPv6 by its /64: the client's own, as trusted proxies tell it.
    Address(IpAddr),
}

impl Source {
    pub(crate) fn address(address: IpAddr) -> Self {
        Self::Address(connection_limits::client(address))
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tenant(name) => write!(f, "tenant `{name}`"),
            Self::Address(IpAddr::V4(address)) => write!(f, "{address}"),
            Self::Address(IpAddr::V6(network)) => write!(f, "{network}/64"),
        }
    }
}

/// All requests of the process.
#[derive(Default)]
pub(crate) struct Bodies {
    used: Arc<Mutex<Used>>,
}

#[derive(Default)]
struct Used {
    all: u64,
    by_source: HashMap<Source, u64>,
}

/// Which bound more bytes would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// That of all.
    All,
    /// The source's share.
    Source,
}

/// One request's part of it, for as long as anybody has its body.
#[must_use = "dropping it gives the bytes back"]
pub(crate) struct Share {
    used: Arc<Mutex<Used>>,
    source: Source,
    own: u64,
    bounds: Bounds,
}

impl Bodies {
    /// A request that comes from `source`.
    pub(crate) fn share(&self, source: Source, bounds: Bounds) -> Share {
        Share { used: Arc::clone(&self.used), source, own: 0, bounds }
    }
}

impl Share {
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    /// Takes so many more bytes, or none where that is more than there may be.
    pub(crate) fn grow(&mut self, bytes: u64) -> Result<(), Full> {
        let mut used = self.used.lock();
        let free = self.bounds.bodies_size.checked_sub(used.all);
        let left = free.and_then(|free| free.checked_sub(bytes)).ok_or(Full::All)?;
        let before = used.by_source.get(&self.source).copied().unwrap_or_default();
        let after = before + bytes;
        if after > left.max(self.bounds.bodies_size_of_one) {
            return Err(Full::Source);
        }
        used.all += bytes;
        used.by_source.insert(self.source.clone(), after);
        self.own += bytes;
        Ok(())
    }

    /// Gives so many bytes back.
    pub(crate) fn shrink(&mut self, bytes: u64) {
        let bytes = bytes.min(self.own);
        self.own -= bytes;
        let mut used = self.used.lock();
        used.all -= bytes;
        if let Some(of_source) = used.by_source.get_mut(&self.source) {
            *of_source -= bytes;
            if *of_source == 0 {
                used.by_source.remove(&self.source);
            }
        }
    }

    /// The body, counted until the last slice of it is dropped.
    pub(crate) fn keep(self, body: Bytes) -> Bytes {
        if body.is_empty() { body } else { Bytes::from_owner(Kept { body, _share: self }) }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(self.own);
    }
}

struct Kept {
    body: Bytes,
    _share: Share,
}

impl AsRef<[u8]> for Kept {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

/// The memory that a request takes before its body.
pub(crate) fn without_body(parts: &Parts) -> u64 {
    let header = |name: &str, value: &[u8]| name.len() + value.len() + HEADER;
    let headers = parts.headers.iter().map(|(name, it)| header(name.as_str(), it.as_bytes()));
    let target = parts.uri.path().len() + parts.uri.query().map_or(0, str::len);
    REQUEST + (headers.sum::<usize>() + target) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bounds(all: u64, of_one: u64) -> Bounds {
        Bounds { bodies_size: all, bodies_size_of_one: of_one, ..Bounds::default() }
    }

    fn from(n: u8) -> Source {
        Source::address(IpAddr::from([10, 0, 0, n]))
    }

    #[test]
    fn a_body_counts_until_its_last_slice_is_gone() {
        let bodies = Bodies::default();
        let share = || bodies.share(from(1), bounds(10, 10));
        let mut first = share();
        assert_eq!((first.grow(4), first.grow(3)), (Ok(()), Ok(())));
        assert_eq!(first.grow(4), Err(Full::All), "what does not fit is not counted");
        let first = first.keep(Bytes::from_static(b"1234567"));
        let slice = first.slice(2..4);
        drop(first);
        let mut second = share();
        assert_eq!(second.grow(4), Err(Full::All), "a slice keeps all of it");
        assert_eq!(&slice[..], b"34");
        drop(slice);
        assert_eq!(second.grow(10), Ok(()));
        second.shrink(4);
        assert_eq!(bodies.used.lock().all, 6);
        drop(second);
        drop(share().keep(Bytes::new()));
        assert_eq!(share().grow(u64::MAX), Err(Full::All));
        let used = bodies.used.lock();
        assert!(used.all == 0 && used.by_source.is_empty());
    }

    #[test]
    fn each_source_leaves_to_others_as_much_as_it_takes() {
        let bodies = Bodies::default();
        let mut taken = Vec::new();
        let mut take = |n: u8| {
            let mut share = bodies.share(from(n), bounds(120, 10));
            let took = (1..).take_while(|_| share.grow(1).is_ok()).count();
            taken.push(share);
            took
        };
        assert_eq!([take(1), take(2), take(3)], [60, 30, 15]);
        assert_eq!(take(1), 0, "other requests of the same are one with it");
        assert_eq!(take(4), 10, "never fewer than two bodies");
        assert_eq!(take(5), 5, "but for what there is");
    }

    #[test]
    fn a_tenant_is_one_wherever_it_comes_from_and_a_v6_client_is_its_network() {
        let address = |text: &str| Source::address(text.parse().expect("an address"));
        assert_eq!(address("2001:db8::1"), address("2001:db8::2"));
        assert_eq!(address("::ffff:10.0.0.1"), address("10.0.0.1"));
        assert_ne!(address("10.0.0.1"), address("10.0.0.2"));
        assert_eq!(address("2001:db8::1").to_string(), "2001:db8::/64");
        assert_eq!(Source::Tenant("a".into()).to_string(), "tenant `a`");
    }

    proptest! {
        #[test]
        fn no_bound_is_ever_broken(
            steps in prop::collection::vec((0..5u8, 0..40u64), 0..60), all in 0..200u64, one in 0..50u64,
        ) {
            let bodies = Bodies::default();
            let mut shares = Vec::new();
            for (n, bytes) in steps {
                let mut share = bodies.share(from(n), bounds(all, one));
                let _ = share.grow(bytes);
                let used = bodies.used.lock();
                prop_assert!(used.all <= all);
                prop_assert_eq!(used.by_source.values().sum::<u64>(), used.all);
                drop(used);
                shares.push(share);
            }
            drop(shares);
            prop_assert_eq!(bodies.used.lock().all, 0);
        }
    }
}
