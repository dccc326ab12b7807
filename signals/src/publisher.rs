//! Serves a feed: one state, any number of readers.
//!
//! Every event is written once and shared. A reader that falls too far behind is cut off: it
//! reconnects and begins with a snapshot.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};
use bytes::Bytes;
use futures_util::stream;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::feed::{Delta, Frame, SCHEMA};

/// Events that a reader may lag behind.
const BACKLOG: usize = 256;
/// Readers that a feed's stream may have: the other half, the console, a few people.
const READERS: usize = 256;

/// One feed's sending side.
pub struct Publisher<P> {
    sender: String,
    began: Instant,
    inner: Mutex<Inner<P>>,
}

struct Inner<P> {
    seq: u64,
    gateways: Option<u32>,
    /// Shared with those who read the last state.
    pools: Arc<BTreeMap<String, P>>,
    /// `None` after the last event: streams end with it.
    events: Option<broadcast::Sender<Bytes>>,
}

impl<P: Delta + Serialize + Send + Sync + 'static> Publisher<P> {
    /// A feed with no pools yet, under a new random name.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            sender: format!("{:016x}", rand::random::<u64>()),
            began: Instant::now(),
            inner: Mutex::new(Inner {
                seq: 0,
                gateways: None,
                pools: Arc::default(),
                events: Some(broadcast::Sender::new(BACKLOG)),
            }),
        })
    }

    /// This process's name in the feed.
    #[must_use]
    pub fn sender(&self) -> &str {
        &self.sender
    }

    /// Sends every reader the changes from the last state to this one. Without changes an event is
    /// sent too: it shows that the sender is alive.
    pub fn publish(&self, pools: BTreeMap<String, P>) {
        let mut inner = self.inner.lock();
        let mut changes: BTreeMap<String, Option<P>> = BTreeMap::new();
        for (name, pool) in &pools {
            match inner.pools.get(name) {
                None => {
                    changes.insert(name.clone(), Some(pool.clone()));
                }
                Some(old) => {
                    if let Some(change) = pool.since(old) {
                        changes.insert(name.clone(), Some(change));
                    }
                }
            }
        }
        for name in inner.pools.keys().filter(|name| !pools.contains_key(*name)) {
            changes.insert(name.clone(), None);
        }
        inner.pools = Arc::new(pools);
        self.send(&mut inner, changes);
    }

    /// The last state that was published.
    #[must_use]
    pub fn pools(&self) -> Arc<BTreeMap<String, P>> {
        Arc::clone(&self.inner.lock().pools)
    }

    /// As [`Publisher::publish`], for these pools alone; the others have not changed.
    pub fn update(&self, pools: impl IntoIterator<Item = (String, P)>) {
        let mut inner = self.inner.lock();
        let mut changes: BTreeMap<String, Option<P>> = BTreeMap::new();
        for (name, pool) in pools {
            let change = match inner.pools.get(&name) {
                None => Some(pool.clone()),
                Some(old) => pool.since(old),
            };
            if let Some(change) = change {
                changes.insert(name.clone(), Some(change));
                Arc::make_mut(&mut inner.pools).insert(name, pool);
            }
        }
        self.send(&mut inner, changes);
    }

    /// Sets [`Frame::gateways`] from the next event on.
    pub fn set_gateways(&self, alive: u32) {
        self.inner.lock().gateways = Some(alive);
    }

    /// The last event: readers drop what this sender reported, and their streams end. New readers
    /// get the same.
    pub fn goodbye(&self) {
        let mut inner = self.inner.lock();
        let Some(events) = inner.events.take() else { return };
        inner.seq += 1;
        let _ = events.send(event(&self.frame(&inner, false, BTreeMap::new())));
    }

    /// Ends the stream of every reader. One that comes back begins with a snapshot.
    pub fn restart(&self) {
        if let Some(events) = &mut self.inner.lock().events {
            *events = broadcast::Sender::new(BACKLOG);
        }
    }

    fn send(&self, inner: &mut Inner<P>, pools: BTreeMap<String, Option<P>>) {
        inner.seq += 1;
        // Without readers no event is needed: a new reader begins with a snapshot.
        if let Some(events) = inner.events.as_ref().filter(|events| events.receiver_count() > 0) {
            let event = event(&self.frame(inner, false, pools));
            let _ = events.send(event);
        }
    }

    fn frame(&self, inner: &Inner<P>, full: bool, pools: BTreeMap<String, Option<P>>) -> Frame<P> {
        Frame {
            schema: SCHEMA,
            sender: self.sender.clone(),
            seq: inner.seq,
            full,
            goodbye: inner.events.is_none(),
            up_millis: full.then(|| self.began.elapsed().as_millis() as u64),
            gateways: inner.gateways,
            pools,
        }
    }

    fn snapshot(&self, inner: &Inner<P>) -> Frame<P> {
        let pools = inner.pools.iter().map(|(name, pool)| (name.clone(), Some(pool.clone())));
        self.frame(inner, true, pools.collect())
    }

    /// `GET`: the snapshot as JSON, or the stream where the reader accepts `text/event-stream`.
    pub fn route(self: &Arc<Self>) -> MethodRouter {
        get(serve::<P>).with_state(Arc::clone(self))
    }

    /// The stream's events, the snapshot first; `None` where there are too many readers.
    fn events(
        &self,
    ) -> Option<impl futures_util::Stream<Item = Result<Bytes, Infallible>> + use<P>> {
        let (first, events) = {
            let inner = self.inner.lock();
            let sender = inner.events.as_ref();
            if sender.is_some_and(|sender| sender.receiver_count() >= READERS) {
                return None;
            }
            (event(&self.snapshot(&inner)), sender.map(broadcast::Sender::subscribe))
        };
        // Lagging behind, like the sender's end, ends the stream.
        let events = stream::unfold((Some(first), events), |(first, mut events)| async move {
            if let Some(first) = first {
                return Some((Ok(first), (None, events)));
            }
            let event = events.as_mut()?.recv().await.ok()?;
            Some((Ok(event), (None, events)))
        });
        Some(events)
    }
}

async fn serve<P: Delta + Serialize + Send + Sync + 'static>(
    State(publisher): State<Arc<Publisher<P>>>,
    headers: HeaderMap,
) -> Response {
    let accepts_stream = headers
        .get(header::ACCEPT)
        .and_then(|accept| accept.to_str().ok())
        .is_some_and(|accept| accept.contains("text/event-stream"));
    if accepts_stream {
        let Some(events) = publisher.events() else {
            let why = format!("{READERS} readers follow this feed already; try again later\n");
            return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "5")], why)
                .into_response();
        };
        let headers = [
            (header::CONTENT_TYPE, "text/event-stream"),
            (header::CACHE_CONTROL, "no-store"),
            // nginx would collect some KB of events first.
            (HeaderName::from_static("x-accel-buffering"), "no"),
        ];
        (headers, Body::from_stream(events)).into_response()
    } else {
        let frame = publisher.snapshot(&publisher.inner.lock());
        axum::Json(frame).into_response()
    }
}

fn event<P: Serialize>(frame: &Frame<P>) -> Bytes {
    let json = serde_json::to_vec(frame).expect("the feeds' types have string keys only");
    let mut event = Vec::with_capacity(json.len() + 8);
    event.extend_from_slice(b"data: ");
    event.extend_from_slice(&json);
    event.extend_from_slice(b"\n\n");
    event.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolReplicas;

    #[test]
    fn readers_of_the_stream_are_bounded_and_one_that_leaves_makes_room() {
        let publisher = Publisher::<PoolReplicas>::new();
        let mut readers: Vec<_> = (0..READERS).map_while(|_| publisher.events()).collect();
        assert_eq!(readers.len(), READERS);
        assert!(publisher.events().is_none());
        readers.pop();
        assert!(publisher.events().is_some());
    }
}
