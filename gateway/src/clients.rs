//! How many connections there are, together and by client address.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use metrics::{Counter, Gauge};
use parking_lot::Mutex;

use crate::metric;

/// Every open connection of clients. Shared by all threads; touched twice a connection.
pub(crate) struct Clients {
    open: Mutex<Open>,
    gauge: Gauge,
    full: Counter,
    client_full: Counter,
}

#[derive(Default)]
struct Open {
    all: u32,
    by_client: HashMap<IpAddr, u32>,
}

/// One connection, counted while this lives.
#[must_use = "dropping it ends the count"]
pub(crate) struct Counted {
    clients: Arc<Clients>,
    client: IpAddr,
}

/// Which bound a further connection would break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Full {
    #[error("gateway.limits.connections")]
    All,
    #[error("gateway.limits.connectionsPerClient")]
    Client,
}

impl Clients {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            gauge: metric::connections(),
            full: metric::refused_connections("connections"),
            client_full: metric::refused_connections("connections_per_client"),
        })
    }

    /// Counts a connection from `address`, unless there are too many.
    pub(crate) fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        most: u32,
        most_per_client: u32,
    ) -> Result<Counted, Full> {
        let client = client(address);
        let mut open = self.open.lock();
        if open.all >= most {
            self.full.increment(1);
            return Err(Full::All);
        }
        let own = open.by_client.entry(client).or_default();
        if *own >= most_per_client {
            self.client_full.increment(1);
            return Err(Full::Client);
        }
        *own += 1;
        open.all += 1;
        self.gauge.set(open.all);
        Ok(Counted { clients: Arc::clone(self), client })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.clients.open.lock();
        open.all = open.all.saturating_sub(1);
        if let Some(own) = open.by_client.get_mut(&self.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                open.by_client.remove(&self.client);
            }
        }
        self.clients.gauge.set(open.all);
    }
}

/// A v6 client has a whole /64 to choose addresses from.
fn client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn connections_are_bounded_together_and_by_client() {
        let clients = Clients::new();
        let admit = |address: &str| clients.admit(ip(address), 3, 2);
        let first = admit("10.0.0.1").expect("room");
        let _second = admit("10.0.0.1").expect("room");
        assert_eq!(admit("10.0.0.1").err(), Some(Full::Client));
        let _third = admit("10.0.0.2").expect("room for another client");
        assert_eq!(admit("10.0.0.3").err(), Some(Full::All));
        drop(first);
        let again = admit("10.0.0.1").expect("a place that was given back");
        drop(again);
        assert_eq!(clients.open.lock().by_client[&ip("10.0.0.1")], 1);
    }

    #[test]
    fn a_v6_client_is_its_64_bits_of_network() {
        let clients = Clients::new();
        let _first = clients.admit(ip("2001:db8::1"), 9, 1).expect("room");
        assert_eq!(clients.admit(ip("2001:db8::2"), 9, 1).err(), Some(Full::Client));
        let _other = clients.admit(ip("2001:db8:0:1::1"), 9, 1).expect("another network");
        let _mapped = clients.admit(ip("::ffff:10.0.0.1"), 9, 1).expect("room");
        assert_eq!(clients.admit(ip("10.0.0.1"), 9, 1).err(), Some(Full::Client));
    }

    #[test]
    fn a_client_that_has_gone_leaves_nothing_behind() {
        let clients = Clients::new();
        drop(clients.admit(ip("10.0.0.1"), 9, 9).expect("room"));
        let open = clients.open.lock();
        assert!(open.all == 0 && open.by_client.is_empty());
    }
}
