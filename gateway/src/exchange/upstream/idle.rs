//! Idle connections to replicas. Each thread keeps its own, since a socket is registered with the
//! runtime that made it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::exchange::upstream::Connection;
use crate::net::clock;
use crate::net::dial::LONGEST_IDLE;
use crate::net::file_shares::{GIVEN_UP, UPSTREAM_FILES};

/// The interval at which connections that have been idle for too long are closed.
const SWEEP: Duration = Duration::from_secs(2);
const IDLE_PER_ENDPOINT: usize = 128;

/// Of each endpoint, in order of age, the oldest first. To hash an address would cost more than to
/// find it in order, also among thousands.
type Idle = BTreeMap<SocketAddr, Vec<(Instant, Box<Connection>)>>;

thread_local! {
    static POOL: RefCell<Idle> = const { RefCell::new(BTreeMap::new()) };
}

/// Keeps a connection for the next request to the same endpoint.
pub(super) fn keep(connection: Box<Connection>) {
    if UPSTREAM_FILES.is_scarce() {
        return;
    }
    POOL.with_borrow_mut(|pool| {
        let idle = pool.entry(connection.address).or_default();
        if idle.len() < IDLE_PER_ENDPOINT {
            idle.push((clock::now(), connection));
        }
    });
}

/// Takes the connection that was used last, and is still open as far as this thread has noticed.
pub(super) fn take(address: SocketAddr) -> Option<Box<Connection>> {
    POOL.with_borrow_mut(|pool| {
        let idle = pool.get_mut(&address)?;
        let now = clock::now();
        while let Some((since, mut connection)) = idle.pop() {
            if now - since > LONGEST_IDLE {
                idle.clear();
                return None;
            }
            if connection.is_quiet() {
                connection.reused = Some(now);
                return Some(connection);
            }
        }
        None
    })
}

/// Drops old connections to all addresses: a replica may never come back at its old port.
fn drop_old(pool: &mut Idle, now: Instant) {
    pool.retain(|_, idle| {
        let old = idle.iter().take_while(|(since, _)| now - *since > LONGEST_IDLE).count();
        idle.drain(..old);
        !idle.is_empty()
    });
}

/// Drops connections until none is wanted elsewhere, those to every eighth endpoint at a time. Most
/// stay: with more endpoints than places, each that is closed costs a new one later.
fn make_room<T>(pool: &mut BTreeMap<SocketAddr, T>, is_scarce: impl Fn() -> bool) {
    while !pool.is_empty() && is_scarce() {
        let mut at = (0..GIVEN_UP).cycle();
        pool.retain(|_, _| at.next() != Some(0));
    }
}

/// Closes this thread's connections when they have been idle for too long, and some idle ones when
/// another request needs a descriptor. Runs while it is polled.
pub(crate) async fn close_idle() -> Infallible {
    loop {
        tokio::select! {
            () = sleep(SWEEP) => POOL.with_borrow_mut(|pool| drop_old(pool, Instant::now())),
            () = UPSTREAM_FILES.wanted() => {
                POOL.with_borrow_mut(|pool| make_room(pool, || UPSTREAM_FILES.is_scarce()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn no_more_connections_are_dropped_than_are_wanted_and_an_eighth_at_a_time() {
        let kept_of = |idle: u16, wanted: usize| {
            let addresses = (0..idle).map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
            let dropped = Cell::new(0);
            struct Dropped<'a>(&'a Cell<usize>);
            impl Drop for Dropped<'_> {
                fn drop(&mut self) {
                    self.0.set(self.0.get() + 1);
                }
            }
            let mut pool = addresses.map(|address| (address, Dropped(&dropped))).collect();
            make_room(&mut pool, || dropped.get() < wanted);
            pool.len()
        };
        for (idle, wanted, kept) in
            [(64, 0, 64), (64, 1, 56), (64, 8, 56), (64, 9, 49), (5, 1, 4), (5, 9, 0), (0, 1, 0)]
        {
            assert_eq!(kept_of(idle, wanted), kept, "{wanted} of {idle} are wanted");
        }
    }
}
