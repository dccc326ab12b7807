//! How many connections there are, together and by client address, and which is closed first when
//! there is no place for another.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use forebay_system::Resource;
use metrics::{Counter, Gauge};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::yield_now;
use tokio::time::{Instant, timeout};

use crate::figures;
use crate::net::activity::Activity;
use crate::net::share::Place;

/// A connection that has been without a request for less than this is not closed for another: its
/// client may be about to ask.
const UNUSED: Duration = Duration::from_secs(1);
/// How often a connection to close is looked for while there is no place.
const LOOK: Duration = Duration::from_millis(200);

/// Every open connection of clients. Shared by all threads; touched twice a connection.
pub(crate) struct Clients {
    open: Mutex<Open>,
    places: Arc<Semaphore>,
    /// For want of which there are no more places.
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
    connections: HashMap<u64, Arc<Connection>>,
}

/// One connection, as far as it matters to another's place.
struct Connection {
    client: IpAddr,
    since: Instant,
    /// Once its bytes are read as HTTP.
    activity: OnceLock<Arc<Activity>>,
    asked: Notify,
    asked_at: Mutex<Option<Instant>>,
}

impl Connection {
    /// Since when it has been without a request, if it is.
    fn unused(&self) -> Option<Instant> {
        match self.activity.get() {
            Some(activity) => activity.unused(),
            None => Some(self.since),
        }
    }
}

/// One connection, counted while this lives.
#[must_use = "dropping it ends the count"]
pub(crate) struct Counted {
    clients: Arc<Clients>,
    id: u64,
    connection: Arc<Connection>,
    _place: Place,
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
    /// As many as the machine has places for, for want of `scarce`.
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

    /// A place for a connection. Where all are taken, the connection that has been without a request
    /// for longest is closed for it; if there is none, it waits.
    pub(crate) async fn place(&self) -> Place {
        let place = || Arc::clone(&self.places).acquire_owned();
        if self.places.available_permits() == 0 {
            forebay_system::report(self.scarce, &"every place for a client is taken");
        }
        loop {
            if self.places.available_permits() == 0 {
                self.make_room(Instant::now());
            }
            if let Ok(Ok(place)) = timeout(LOOK, place()).await {
                return place;
            }
        }
    }

    /// Asks one connection to close, of the client that has most of them.
    fn make_room(&self, now: Instant) {
        let open = self.open.lock();
        let rested = |since: Instant| now.saturating_duration_since(since) >= UNUSED;
        let candidates = open.connections.values().filter_map(|connection| {
            let unused = connection.unused().filter(|since| rested(*since))?;
            let asked = *connection.asked_at.lock();
            // One that did not close was in use again.
            asked.is_none_or(rested).then_some((connection, unused))
        });
        let own = |client: &IpAddr| open.by_client.get(client).copied().unwrap_or_default();
        let chosen = candidates.max_by_key(|(connection, unused)| {
            (own(&connection.client), now.saturating_duration_since(*unused))
        });
        if let Some((connection, _)) = chosen {
            *connection.asked_at.lock() = Some(now);
            self.made_room.increment(1);
            connection.asked.notify_one();
        }
    }

    /// Counts a connection from `address`, unless there are too many.
    pub(crate) fn admit(
        self: &Arc<Self>,
        address: IpAddr,
        place: Place,
        most: u32,
        most_per_client: u32,
    ) -> Result<Counted, Full> {
        let client = client(address);
        let mut open = self.open.lock();
        if open.connections.len() >= most as usize {
            self.full.increment(1);
            return Err(Full::All);
        }
        let own = open.by_client.entry(client).or_default();
        if *own >= most_per_client {
            self.client_full.increment(1);
            return Err(Full::Client);
        }
        *own += 1;
        let connection = Arc::new(Connection {
            client,
            since: Instant::now(),
            activity: OnceLock::new(),
            asked: Notify::new(),
            asked_at: Mutex::default(),
        });
        open.next += 1;
        let id = open.next;
        open.connections.insert(id, Arc::clone(&connection));
        self.gauge.set(open.connections.len() as f64);
        Ok(Counted { clients: Arc::clone(self), id, connection, _place: place })
    }
}

impl Counted {
    /// Its bytes are read as HTTP from now on.
    pub(crate) fn speaks(&self, activity: &Arc<Activity>) {
        let _ = self.connection.activity.set(Arc::clone(activity));
    }

    /// Until it should close for another's sake, if it is without a request. Whoever polls this reads
    /// from the connection first: by then all is known that its client has sent.
    pub(crate) async fn asked_to_close(&self) {
        self.connection.asked.notified().await;
        // The runtime looks at its sockets before it goes on.
        yield_now().await;
    }
}

impl Drop for Counted {
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
    }
}

/// Who an address is: a v6 client has a whole /64 to choose addresses from.
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

    fn admit(clients: &Arc<Clients>, address: &str, bounds: (u32, u32)) -> Result<Counted, Full> {
        let place = Arc::clone(&clients.places).try_acquire_owned().expect("a place");
        clients.admit(ip(address), place, bounds.0, bounds.1)
    }

    #[tokio::test]
    async fn connections_are_bounded_together_and_by_client() {
        let clients = Clients::new(9, Resource::Files);
        let admit = |address: &str| admit(&clients, address, (3, 2));
        let first = admit("10.0.0.1").expect("room");
        let _second = admit("10.0.0.1").expect("room");
        assert_eq!(admit("10.0.0.1").err(), Some(Full::Client));
        let _third = admit("10.0.0.2").expect("room for another client");
        assert_eq!(admit("10.0.0.3").err(), Some(Full::All));
        drop(first);
        let again = admit("10.0.0.1").expect("a place that was given back");
        drop(again);
        assert_eq!(clients.open.lock().by_client[&ip("10.0.0.1")], 1);
        assert_eq!(clients.places.available_permits(), 7);
    }

    #[tokio::test]
    async fn a_v6_client_is_its_64_bits_of_network() {
        let clients = Clients::new(9, Resource::Files);
        let admit = |address: &str| admit(&clients, address, (9, 1));
        let _first = admit("2001:db8::1").expect("room");
        assert_eq!(admit("2001:db8::2").err(), Some(Full::Client));
        let _other = admit("2001:db8:0:1::1").expect("another network");
        let _mapped = admit("::ffff:10.0.0.1").expect("room");
        assert_eq!(admit("10.0.0.1").err(), Some(Full::Client));
    }

    #[tokio::test]
    async fn a_client_that_has_gone_leaves_nothing_behind() {
        let clients = Clients::new(9, Resource::Files);
        drop(admit(&clients, "10.0.0.1", (9, 9)).expect("room"));
        let open = clients.open.lock();
        assert!(open.connections.is_empty() && open.by_client.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_without_a_request_for_longest_makes_room_and_the_largest_client_first()
    {
        let clients = Clients::new(5, Resource::Files);
        let second = Duration::from_secs(1);
        let admit = |address: &str| admit(&clients, address, (9, 9)).expect("room");
        let busy = admit("10.0.0.1");
        let activity = Activity::new(Instant::now(), true);
        busy.speaks(&activity);
        let _flight = activity.begin(Instant::now());
        let oldest = admit("10.0.0.2");
        tokio::time::advance(second).await;
        let older = admit("10.0.0.1");
        tokio::time::advance(second).await;
        let _younger = admit("10.0.0.1");
        tokio::time::advance(second).await;
        let _fresh = admit("10.0.0.1");
        let mut place = Box::pin(clients.place());
        assert!(timeout(Duration::from_millis(1), &mut place).await.is_err(), "all are taken");
        let asked = |it: &Counted| it.connection.asked_at.lock().is_some();
        assert!(asked(&older) && !asked(&oldest) && !asked(&busy), "of the client with most");
        timeout(second, older.asked_to_close()).await.expect("told");
        drop(older);
        drop(place.await);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_in_use_makes_room() {
        let clients = Clients::new(1, Resource::Files);
        let busy = admit(&clients, "10.0.0.1", (9, 9)).expect("room");
        let activity = Activity::new(Instant::now(), true);
        busy.speaks(&activity);
        let flight = activity.begin(Instant::now());
        let mut place = Box::pin(clients.place());
        assert!(timeout(Duration::from_secs(60), &mut place).await.is_err());
        assert!(busy.connection.asked_at.lock().is_none());
        drop(flight);
        let mut closed = Box::pin(busy.asked_to_close());
        let wait = async {
            tokio::select! {
                () = &mut closed => {}
                _ = &mut place => unreachable!("the only place is taken"),
            }
        };
        timeout(Duration::from_secs(5), wait).await.expect("asked once it is unused");
    }
}
