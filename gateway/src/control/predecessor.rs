//! The requests of the process that served here before an upgrade. They count as this process's
//! own, so the scaler sees one gateway, and stops no replica under them.
//!
//! Only queues and requests in flight are added. A process's totals end with it.

use std::collections::BTreeMap;

use forebay_signals::{EndpointSignals, Health, PoolSignals};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// The requests that are held and in flight in one process, by pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Busy(BTreeMap<String, BusyPool>);

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct BusyPool {
    queue_depth: u32,
    queue_bytes: u64,
    held_tokens: u64,
    oldest_hold_seconds: f64,
    in_flight: u32,
    in_flight_tokens: u64,
    zero_epoch: Option<u64>,
    endpoints: BTreeMap<String, BusyEndpoint>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct BusyEndpoint {
    health: Health,
    in_flight: u32,
}

impl Busy {
    pub(crate) fn of(pools: &BTreeMap<String, PoolSignals>) -> Self {
        let endpoint = |(address, endpoint): (&String, &Option<EndpointSignals>)| {
            let EndpointSignals { health, in_flight, .. } = endpoint.as_ref()?;
            Some((address.clone(), BusyEndpoint { health: *health, in_flight: *in_flight }))
        };
        let pool = |(name, signals): (&String, &PoolSignals)| {
            let busy = BusyPool {
                queue_depth: signals.queue_depth,
                queue_bytes: signals.queue_bytes,
                held_tokens: signals.held_tokens,
                oldest_hold_seconds: signals.oldest_hold_seconds,
                in_flight: signals.in_flight,
                in_flight_tokens: signals.in_flight_tokens,
                zero_epoch: signals.zero_epoch,
                endpoints: signals.endpoints.iter().filter_map(endpoint).collect(),
            };
            (name.clone(), busy)
        };
        Self(pools.iter().map(pool).collect())
    }
}

impl BusyPool {
    fn add_to(&self, own: &mut PoolSignals) {
        own.queue_depth += self.queue_depth;
        own.queue_bytes += self.queue_bytes;
        own.held_tokens += self.held_tokens;
        own.oldest_hold_seconds = own.oldest_hold_seconds.max(self.oldest_hold_seconds);
        own.in_flight += self.in_flight;
        own.in_flight_tokens += self.in_flight_tokens;
        // The zero barrier is up only if it is up in both processes.
        own.zero_epoch = own.zero_epoch.filter(|epoch| self.zero_epoch == Some(*epoch));
        for (address, theirs) in &self.endpoints {
            let known = own.endpoints.entry(address.clone()).or_default();
            let known = known.get_or_insert_with(|| EndpointSignals {
                health: theirs.health,
                ..EndpointSignals::default()
            });
            known.in_flight += theirs.in_flight;
            // An endpoint drains only if it gets no new request from either process.
            if known.health == Health::Draining {
                known.health = theirs.health;
            }
        }
    }
}

/// The predecessor's last report.
#[derive(Default)]
pub(crate) struct Predecessor(Mutex<Busy>);

impl Predecessor {
    /// Returns whether the report differs from the last one.
    pub(crate) fn set(&self, busy: Busy) -> bool {
        let mut known = self.0.lock();
        let changed = *known != busy;
        *known = busy;
        changed
    }

    /// Whether it has requests, as far as is known.
    pub(crate) fn is_busy(&self) -> bool {
        !self.0.lock().0.is_empty()
    }

    pub(crate) fn add_to(&self, pools: &mut BTreeMap<String, PoolSignals>) {
        for (name, theirs) in &self.0.lock().0 {
            if let Some(own) = pools.get_mut(name) {
                theirs.add_to(own);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(endpoints: &[(&str, Health, u32)]) -> BTreeMap<String, PoolSignals> {
        let endpoint = |(address, health, in_flight): &(&str, Health, u32)| {
            let signals =
                EndpointSignals { health: *health, in_flight: *in_flight, ..Default::default() };
            (String::from(*address), Some(signals))
        };
        let signals = PoolSignals {
            queue_depth: 1,
            in_flight: endpoints.iter().map(|(.., in_flight)| in_flight).sum(),
            zero_epoch: Some(7),
            endpoints: endpoints.iter().map(endpoint).collect(),
            ..PoolSignals::default()
        };
        BTreeMap::from([("p".to_owned(), signals)])
    }

    fn both(own: &[(&str, Health, u32)], theirs: &[(&str, Health, u32)]) -> PoolSignals {
        let (predecessor, mut own) = (Predecessor::default(), pool(own));
        assert!(predecessor.set(Busy::of(&pool(theirs))));
        predecessor.add_to(&mut own);
        own.remove("p").expect("there")
    }

    #[test]
    fn requests_of_both_count() {
        let both = both(
            &[("a", Health::Ready, 2)],
            &[("a", Health::Ready, 3), ("b", Health::Draining, 1)],
        );
        assert_eq!((both.queue_depth, both.in_flight), (2, 6));
        let in_flight =
            |address| both.endpoints[address].as_ref().map(|endpoint| endpoint.in_flight);
        assert_eq!((in_flight("a"), in_flight("b")), (Some(5), Some(1)));
    }

    #[test]
    fn an_endpoint_drains_if_it_drains_in_both() {
        for (own, theirs, want) in [
            (Health::Draining, Health::Ready, Health::Ready),
            (Health::Draining, Health::Draining, Health::Draining),
            (Health::Ready, Health::Draining, Health::Ready),
            (Health::Starting, Health::Ready, Health::Starting),
        ] {
            let both = both(&[("a", own, 0)], &[("a", theirs, 0)]);
            assert_eq!(both.endpoints["a"].as_ref().map(|endpoint| endpoint.health), Some(want));
        }
    }

    #[test]
    fn the_zero_barrier_is_up_if_it_is_up_in_both() {
        let mut own = pool(&[]);
        let mut theirs = pool(&[]);
        let epoch = |own: &BTreeMap<String, PoolSignals>| own["p"].zero_epoch;
        Predecessor(Mutex::new(Busy::of(&theirs))).add_to(&mut own);
        assert_eq!(epoch(&own), Some(7));
        theirs.get_mut("p").expect("there").zero_epoch = None;
        Predecessor(Mutex::new(Busy::of(&theirs))).add_to(&mut own);
        assert_eq!(epoch(&own), None);
    }

    #[test]
    fn a_predecessor_that_has_ended_adds_nothing() {
        let predecessor = Predecessor::default();
        predecessor.set(Busy::of(&pool(&[("a", Health::Ready, 3)])));
        assert!(predecessor.set(Busy::default()));
        let mut own = pool(&[]);
        predecessor.add_to(&mut own);
        assert_eq!(own, pool(&[]));
    }
}
