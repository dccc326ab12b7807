//! What still goes on in the process that served here before: its requests count as this one's, so
//! that the scaler hears one gateway, and stops no replica under them.
//!
//! Only what goes on now is added. What a process has counted so far ends with it.

use std::collections::BTreeMap;

use forebay_signals::{EndpointSignals, Health, PoolSignals};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// What goes on in one process, by pool.
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
        let endpoint = |(address, it): (&String, &Option<EndpointSignals>)| {
            let EndpointSignals { health, in_flight, .. } = it.as_ref()?;
            Some((address.clone(), BusyEndpoint { health: *health, in_flight: *in_flight }))
        };
        let pool = |(name, it): (&String, &PoolSignals)| {
            let busy = BusyPool {
                queue_depth: it.queue_depth,
                queue_bytes: it.queue_bytes,
                held_tokens: it.held_tokens,
                oldest_hold_seconds: it.oldest_hold_seconds,
                in_flight: it.in_flight,
                in_flight_tokens: it.in_flight_tokens,
                zero_epoch: it.zero_epoch,
                endpoints: it.endpoints.iter().filter_map(endpoint).collect(),
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
        // The two hold for zero when each does.
        own.zero_epoch = own.zero_epoch.filter(|epoch| self.zero_epoch == Some(*epoch));
        for (address, theirs) in &self.endpoints {
            let known = own.endpoints.entry(address.clone()).or_default();
            let known = known.get_or_insert_with(|| EndpointSignals {
                health: theirs.health,
                ..EndpointSignals::default()
            });
            known.in_flight += theirs.in_flight;
            // One that gets nothing new gets it from neither.
            if known.health == Health::Draining {
                known.health = theirs.health;
            }
        }
    }
}

/// The last that was heard of it.
#[derive(Default)]
pub(crate) struct Predecessor(Mutex<Busy>);

impl Predecessor {
    /// True if that is news.
    pub(crate) fn set(&self, busy: Busy) -> bool {
        let mut known = self.0.lock();
        let news = *known != busy;
        *known = busy;
        news
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
            let it =
                EndpointSignals { health: *health, in_flight: *in_flight, ..Default::default() };
            (String::from(*address), Some(it))
        };
        let signals = PoolSignals {
            queue_depth: 1,
            in_flight: endpoints.iter().map(|it| it.2).sum(),
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
        let in_flight = |address| both.endpoints[address].as_ref().map(|it| it.in_flight);
        assert_eq!((in_flight("a"), in_flight("b")), (Some(5), Some(1)));
    }

    #[test]
    fn an_endpoint_drains_when_neither_gives_it_anything_new() {
        for (own, theirs, want) in [
            (Health::Draining, Health::Ready, Health::Ready),
            (Health::Draining, Health::Draining, Health::Draining),
            (Health::Ready, Health::Draining, Health::Ready),
            (Health::Starting, Health::Ready, Health::Starting),
        ] {
            let both = both(&[("a", own, 0)], &[("a", theirs, 0)]);
            assert_eq!(both.endpoints["a"].as_ref().map(|it| it.health), Some(want));
        }
    }

    #[test]
    fn zero_is_held_for_when_both_hold() {
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
    fn what_has_ended_counts_no_more() {
        let predecessor = Predecessor::default();
        predecessor.set(Busy::of(&pool(&[("a", Health::Ready, 3)])));
        assert!(predecessor.set(Busy::default()));
        let mut own = pool(&[]);
        predecessor.add_to(&mut own);
        assert_eq!(own, pool(&[]));
    }
}
