//! One event of a feed, and the state that a reader builds from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// Version of both feeds. Readers refuse any other, and ignore fields they do not know.
pub const SCHEMA: u32 = 1;

/// Changes of a value, in the value's own type; in maps, `None` removes an entry.
pub trait Delta: Clone {
    /// The changes from `old` to `self`; `None` if nothing differs.
    fn since(&self, old: &Self) -> Option<Self>;
    /// Brings `self` up to date by a change that [`Delta::since`] made.
    fn apply(&mut self, change: Self);
}

/// One event. `P` is [`crate::PoolSignals`] or [`crate::PoolReplicas`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Frame<P> {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Random per process start: shows whether the sender was restarted.
    pub sender: String,
    /// One more than the event before it.
    pub seq: u64,
    /// Whether this is a whole snapshot and not a change.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub full: bool,
    /// The sender leaves in good order: drop its figures, and do not wait for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub goodbye: bool,
    /// How long the sender has run, in milliseconds. Only in a snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub up_millis: Option<u64>,
    /// How many gateways the scaler knows to be alive; each takes its share of fleet-wide limits.
    /// Only on `/replicas`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<u32>,
    /// The pools that changed; `None` for those removed.
    #[serde(default = "BTreeMap::new")]
    pub pools: BTreeMap<String, Option<P>>,
}

/// A reader's view of one sender: the snapshot with every change since.
#[derive(Clone, Debug, PartialEq)]
pub struct View<P> {
    /// The sender's random name.
    pub sender: String,
    /// The last event's number.
    pub seq: u64,
    /// [`Frame::up_millis`] of the snapshot.
    pub up_millis: Option<u64>,
    /// See [`Frame::gateways`].
    pub gateways: Option<u32>,
    /// Every pool; shared, so that a copy of the view is cheap.
    pub pools: BTreeMap<String, Arc<P>>,
}

/// Why an event can't be used. The remedy is always to reconnect.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Gap {
    /// The sender speaks another version.
    #[error("the feed has schema {0}, this reader understands {SCHEMA}")]
    Schema(u32),
    /// Events were lost, or the sender restarted.
    #[error("expected event {expected} of the same sender, got {got}")]
    Lost {
        /// The number that should have come.
        expected: u64,
        /// The number that came.
        got: u64,
    },
    /// The first event was not a snapshot.
    #[error("the first event is not a full snapshot")]
    NoSnapshot,
}

impl<P: Delta> View<P> {
    /// Begins from a stream's first event.
    ///
    /// # Errors
    /// [`Gap`] if the event is not a snapshot, or has another schema.
    pub fn begin(frame: Frame<P>) -> Result<Self, Gap> {
        if frame.schema != SCHEMA {
            return Err(Gap::Schema(frame.schema));
        }
        if !frame.full {
            return Err(Gap::NoSnapshot);
        }
        let pools = frame
            .pools
            .into_iter()
            .filter_map(|(name, pool)| Some((name, Arc::new(pool?))))
            .collect();
        let Frame { sender, seq, up_millis, gateways, .. } = frame;
        Ok(Self { sender, seq, up_millis, gateways, pools })
    }

    /// Applies the next event; returns the names of the pools it touched.
    ///
    /// # Errors
    /// [`Gap`] if events are missing; the view is then out of date.
    pub fn apply(&mut self, frame: Frame<P>) -> Result<Vec<String>, Gap> {
        if frame.schema != SCHEMA {
            return Err(Gap::Schema(frame.schema));
        }
        let expected = self.seq + 1;
        if frame.sender != self.sender || frame.seq != expected {
            return Err(Gap::Lost { expected, got: frame.seq });
        }
        self.seq = frame.seq;
        if frame.gateways.is_some() {
            self.gateways = frame.gateways;
        }
        let mut touched = Vec::with_capacity(frame.pools.len());
        for (name, pool) in frame.pools {
            match pool {
                None => {
                    self.pools.remove(&name);
                }
                Some(change) => match self.pools.get_mut(&name) {
                    Some(known) => Arc::make_mut(known).apply(change),
                    None => {
                        self.pools.insert(name.clone(), Arc::new(change));
                    }
                },
            }
            touched.push(name);
        }
        Ok(touched)
    }
}

/// The changes between two maps, `None` for keys that are gone.
pub(crate) fn map_since<V: Clone + PartialEq>(
    new: &BTreeMap<String, Option<V>>,
    old: &BTreeMap<String, Option<V>>,
) -> BTreeMap<String, Option<V>> {
    let mut changes: BTreeMap<_, _> = new
        .iter()
        .filter(|(key, value)| old.get(*key) != Some(value))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for key in old.keys().filter(|key| !new.contains_key(*key)) {
        changes.insert(key.clone(), None);
    }
    changes
}

/// Applies what [`map_since`] made.
pub(crate) fn map_apply<V>(
    map: &mut BTreeMap<String, Option<V>>,
    changes: BTreeMap<String, Option<V>>,
) {
    for (key, value) in changes {
        match value {
            Some(value) => map.insert(key, Some(value)),
            None => map.remove(&key),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EndpointSignals, PoolSignals};
    use proptest::prelude::*;

    fn frame(
        seq: u64,
        full: bool,
        pools: BTreeMap<String, Option<PoolSignals>>,
    ) -> Frame<PoolSignals> {
        Frame {
            schema: SCHEMA,
            sender: "a".into(),
            seq,
            full,
            goodbye: false,
            up_millis: None,
            gateways: None,
            pools,
        }
    }

    #[test]
    fn a_gap_a_restart_and_another_schema_are_noticed() {
        let first = || View::begin(frame(3, true, BTreeMap::new())).expect("a snapshot");
        assert_eq!(View::begin(frame(3, false, BTreeMap::new())), Err(Gap::NoSnapshot));
        assert_eq!(first().apply(frame(4, false, BTreeMap::new())), Ok(vec![]));
        let lost = |got| Err(Gap::Lost { expected: 4, got });
        assert_eq!(first().apply(frame(5, false, BTreeMap::new())), lost(5), "one is missing");
        assert_eq!(first().apply(frame(3, false, BTreeMap::new())), lost(3), "one comes twice");
        let other = Frame { sender: "b".into(), ..frame(4, false, BTreeMap::new()) };
        assert_eq!(first().apply(other), lost(4), "the sender restarted");
        let newer = Frame { schema: SCHEMA + 1, ..frame(4, false, BTreeMap::new()) };
        assert_eq!(first().apply(newer), Err(Gap::Schema(SCHEMA + 1)));
    }

    #[test]
    fn readers_ignore_fields_they_do_not_know() {
        let text = r#"{"schema":1,"sender":"a","seq":1,"full":true,"new":1,"pools":{"p":{"queueDepth":3,"new":[]}}}"#;
        let frame: Frame<PoolSignals> = serde_json::from_str(text).expect("understood");
        assert_eq!(View::begin(frame).expect("a snapshot").pools["p"].queue_depth, 3);
    }

    fn pool() -> impl Strategy<Value = PoolSignals> {
        let endpoints = prop::collection::btree_map("[a-c]", 0..3u32, 0..3);
        (0..3u32, endpoints).prop_map(|(queue_depth, endpoints)| {
            let endpoint = |in_flight| Some(EndpointSignals { in_flight, ..Default::default() });
            let endpoints = endpoints.into_iter().map(|(name, n)| (name, endpoint(n))).collect();
            PoolSignals { queue_depth, endpoints, ..PoolSignals::default() }
        })
    }

    proptest! {
        #[test]
        fn a_change_brings_the_old_up_to_the_new(old in pool(), new in pool()) {
            let mut reader = old.clone();
            if let Some(change) = new.since(&old) {
                let wire = serde_json::to_string(&change).expect("plain data");
                reader.apply(serde_json::from_str(&wire).expect("own format"));
            }
            prop_assert_eq!(reader, new);
        }
    }
}
