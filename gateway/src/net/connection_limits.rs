//! The limits on client connections, in total and by client address, and the choice of the
//! connection that is closed when there is no place for another.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use forebay_base::shortage::Resource;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::figures;
use crate::net::activity::Activity;
use crate::net::file_shares::{FilePermit, UPSTREAM_FILES};

/// A connection that has been idle for less than this is not closed for another: its client may be
/// about to send a request.
const IDLE: Duration = Duration::from_secs(1);
/// The interval at which the gateway looks for an idle connection while there is no place.
const RETRY: Duration = Duration::from_millis(200);

/// Every open connection of clients. Shared by all threads; touched twice a connection.
pub(crate) struct ConnectionLimits {
    open: Mutex<Open>,
    places: Arc<Semaphore>,
    /// The resource that bounds the number of places.
    scarce: Resource,
    gauge: Gauge,
    full: Counter,
    client_full: Counter,
    made_room: Counter,
}

#[derive(Default)]
struct Open {
    next: u64,
    by_client: HashMap<IpAddr, u32>,
    connections: HashMap<u64, Arc<OpenConnection>>,
}

/// One open connection.
struct OpenConnection {
    client: IpAddr,
    since: Instant,
    /// Set once its bytes are read as HTTP.
    activity: OnceLock<Arc<Activity>>,
    close: Notify,
    close_requested_at: Mutex<Option<Instant>>,
}

impl OpenConnection {
    /// When it became idle, if it is idle.
    fn unused(&self) -> Option<Instant> {
        match self.activity.get() {
            Some(activity) => activity.unused(),
            None => Some(self.since),
        }
    }
}

/// One connection, counted until this is dropped.
#[must_use = "dropping it ends the count"]
pub(crate) struct CountedConnection {
    clients: Arc<ConnectionLimits>,
    id: u64,
    connection: Arc<OpenConnection>,
    _place: FilePermit,
}

/// The limit that another connection would exceed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitReached {
    #[error("gateway.limits.connections")]
    All,
    #[error("gateway.limits.connectionsPerClient")]
    Client,
}

impl ConnectionLimits {
    /// Limits with this number of places, which `scarce` bounds.
    pub(crate) fn new(places: u32, scarce: Resource) -> Arc<Self> {
        Arc::new(Self {
            open: Mutex::default(),
            places: Arc::new(Semaphore::new(places as usize)),
            scarce,
            gauge: figures::connections(),
            full: figures::refused_connections("connections"),
            client_full: figures::refused_connections("connections_per_client"),
            made_room: figures::connections_that_made_room(),
        })
    }

    /// Waits for a place for a connection. If all are taken, an idle connection is closed to make
    /// room.
    pub(crate) async fn place(&self) -> FilePermit {
        let place = || Arc::clone(&self.places).acquire_owned();
        if self.places.available_permits() == 0 {
            forebay_base::shortage::report(self.scarce, &"every place for a client is taken");
        }
        loop {
            if self.places.available_permits() == 0 {
                self.make_room(Instant::now());
            }
            if let Ok(Ok(place)) = timeout(RETRY, place()).await {
                return place;
            }
        }
    }

    /// Requests the close of one connection: of the client that has the most connections, the one
    /// that has been idle for longest.
    fn make_room(&self, now: Instant) {
        let open = self.open.lock();
        let long_ago = |since: Instant| now.saturating_duration_since(since) >= IDLE;
        let candidates = open.connections.values().filter_map(|connection| {
            let unused = connection.unused().filter(|since| long_ago(*since))?;
            let requested = *connection.close_requested_at.lock();
            // A connection that did not close was in use again.
            requested.is_none_or(long_ago).then_some((connection, unused))
        });
        let own = |client: &IpAddr| open.by_client.get(client).copied().unwrap_or_default();
        let chosen = candidates.max_by_key(|(connection, unused)| {
            (own(&connection.client), now.saturating_duration_since(*unused))
        });
        if let Some((connection, _)) = chosen {
            *connection.close_requested_at.lock() = Some(now);
            self.made_room.increment(1);
            connection.close.notify_one();
        }
    }

    /// Counts a connection from `address`.
    ///
    /// # Errors
    /// There are `most` connections already, or `most_per_client` from this client.
    pub(crate) fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        place: FilePermit,
        most: u32,
        most_per_client: u32,
    ) -> Result<CountedConnection, LimitReached> {
        let client = client(address);
        let mut open = self.open.lock();
        if open.connections.len() >= most as usize {
            self.full.increment(1);
            return Err(LimitReached::All);
        }
        let own = open.by_client.entry(client).or_default();
        if *own >= most_per_client {
            self.client_full.increment(1);
            return Err(LimitReached::Client);
        }
        *own += 1;
        let connection = Arc::new(OpenConnection {
            client,
            since: Instant::now(),
            activity: OnceLock::new(),
            close: Notify::new(),
            close_requested_at: Mutex::default(),
        });
        open.next += 1;
        let id = open.next;
        open.connections.insert(id, Arc::clone(&connection));
        self.gauge.set(open.connections.len() as f64);
        UPSTREAM_FILES.client_came();
        Ok(CountedConnection { clients: Arc::clone(self), id, connection, _place: place })
    }
}

impl CountedConnection {
    /// Sets the activity, which knows the connection's requests from now on.
    pub(crate) fn set_activity(&self, activity: &Arc<Activity>) {
        let _ = self.connection.activity.set(Arc::clone(activity));
    }

    /// Waits until the connection should close in favour of another, if it is idle then. The caller
    /// reads from the connection first, so that it knows everything the client has sent.
    pub(crate) async fn close_requested(&self) {
        self.connection.close.notified().await;
        // The runtime looks at its sockets before it goes on.
        yield_now().await;
    }
}

impl Drop for CountedConnection {
    fn drop(&mut self) {
        let mut open = self.clients.open.lock();
        open.connections.remove(&self.id);
        if let Some(own) = open.by_client.get_mut(&self.connection.client) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                open.by_client.remove(&self.connection.client);
            }
        }
        self.clients.gauge.set(open.connections.len() as f64);
        UPSTREAM_FILES.client_left();
    }
}

/// The client behind an address: one IPv6 client has a whole /64 network of addresses.
pub(crate) fn client(address: IpAddr) -> IpAddr {
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

    fn admit(
        clients: &Arc<ConnectionLimits>,
        address: &str,
        bounds: (u32, u32),
    ) -> Result<CountedConnection, LimitReached> {
        let place = Arc::clone(&clients.places).try_acquire_owned().expect("a place");
        clients.admit(ip(address), place, bounds.0, bounds.1)
    }

    #[tokio::test]
    async fn connections_are_bounded_in_total_and_by_client() {
        let clients = ConnectionLimits::new(9, Resource::Files);
        let admit = |address: &str| admit(&clients, address, (3, 2));
        let first = admit("10.0.0.1").expect("room");
        let _second = admit("10.0.0.1").expect("room");
        assert_eq!(admit("10.0.0.1").err(), Some(LimitReached::Client));
        let _third = admit("10.0.0.2").expect("room for another client");
        assert_eq!(admit("10.0.0.3").err(), Some(LimitReached::All));
        drop(first);
        let again = admit("10.0.0.1").expect("a place that was given back");
        drop(again);
        assert_eq!(clients.open.lock().by_client[&ip("10.0.0.1")], 1);
        assert_eq!(clients.places.available_permits(), 7);
    }

    #[tokio::test]
    async fn a_v6_client_is_its_64_bit_network() {
        let clients = ConnectionLimits::new(9, Resource::Files);
        let admit = |address: &str| admit(&clients, address, (9, 1));
        let _first = admit("2001:db8::1").expect("room");
        assert_eq!(admit("2001:db8::2").err(), Some(LimitReached::Client));
        let _other = admit("2001:db8:0:1::1").expect("another network");
        let _mapped = admit("::ffff:10.0.0.1").expect("room");
        assert_eq!(admit("10.0.0.1").err(), Some(LimitReached::Client));
    }

    #[tokio::test]
    async fn a_client_that_has_left_leaves_nothing_behind() {
        let clients = ConnectionLimits::new(9, Resource::Files);
        drop(admit(&clients, "10.0.0.1", (9, 9)).expect("room"));
        let open = clients.open.lock();
        assert!(open.connections.is_empty() && open.by_client.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_largest_client_makes_room_with_the_connection_that_is_idle_for_longest() {
        let clients = ConnectionLimits::new(5, Resource::Files);
        let second = Duration::from_secs(1);
        let admit = |address: &str| admit(&clients, address, (9, 9)).expect("room");
        let busy = admit("10.0.0.1");
        let activity = Activity::new(Instant::now(), true);
        busy.set_activity(&activity);
        let _flight = activity.begin();
        let oldest = admit("10.0.0.2");
        tokio::time::advance(second).await;
        let older = admit("10.0.0.1");
        tokio::time::advance(second).await;
        let _younger = admit("10.0.0.1");
        tokio::time::advance(second).await;
        let _fresh = admit("10.0.0.1");
        let mut place = Box::pin(clients.place());
        assert!(timeout(Duration::from_millis(1), &mut place).await.is_err(), "all are taken");
        let requested =
            |counted: &CountedConnection| counted.connection.close_requested_at.lock().is_some();
        assert!(
            requested(&older) && !requested(&oldest) && !requested(&busy),
            "the client with the most connections closes one"
        );
        timeout(second, older.close_requested()).await.expect("requested");
        drop(older);
        drop(place.await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_in_use_is_not_closed_for_another() {
        let clients = ConnectionLimits::new(1, Resource::Files);
        let busy = admit(&clients, "10.0.0.1", (9, 9)).expect("room");
        let activity = Activity::new(Instant::now(), true);
        busy.set_activity(&activity);
        let flight = activity.begin();
        let mut place = Box::pin(clients.place());
        assert!(timeout(Duration::from_secs(60), &mut place).await.is_err());
        assert!(busy.connection.close_requested_at.lock().is_none());
        drop(flight);
        let mut closed = Box::pin(busy.close_requested());
        let wait = async {
            tokio::select! {
                () = &mut closed => {}
                _ = &mut place => unreachable!("the only place is taken"),
            }
        };
        timeout(Duration::from_secs(5), wait).await.expect("requested once it is idle");
    }
}
