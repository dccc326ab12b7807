//! A pool's queue: holds accepted requests until an endpoint has room.
//!
//! Order: priority, then arrival. A request that is tried again keeps its arrival, and so its place.
//!
//! Invariant: what enters leaves exactly once, by [`Queue::pop`] or [`Queue::remove`].
//! Pure: waiting and waking are in `pool.rs`.

use std::collections::BTreeMap;

use tokio::time::Instant;

/// A request's place: smaller is earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    /// As vLLM's: lower is earlier.
    pub(crate) priority: i32,
    /// The arrival's number in this pool.
    pub(crate) seq: u64,
}

/// What is known of a held request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// `anonymous` without keys.
    pub(crate) tenant: std::sync::Arc<str>,
    pub(crate) since: Instant,
    pub(crate) deadline: Instant,
    pub(crate) bytes: u64,
    /// Estimated, prompt and answer.
    pub(crate) tokens: u64,
}

/// Held requests with what wakes each.
pub(crate) struct Queue<W> {
    entries: BTreeMap<Place, (Request, W)>,
    next: u64,
    max_requests: usize,
    max_bytes: u64,
    bytes: u64,
    tokens: u64,
}

/// The queue is at a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full {
    pub(crate) requests: usize,
}

impl<W> Queue<W> {
    pub(crate) fn bounded(max_requests: usize, max_bytes: u64) -> Self {
        Self { entries: BTreeMap::new(), next: 0, max_requests, max_bytes, bytes: 0, tokens: 0 }
    }

    /// The next arrival's place.
    pub(crate) fn arrive(&mut self, priority: i32) -> Place {
        self.next += 1;
        Place { priority, seq: self.next }
    }

    /// Enters a request at its place. One that was accepted before is not refused now: `again`.
    pub(crate) fn push(
        &mut self,
        place: Place,
        request: Request,
        waker: W,
        again: bool,
    ) -> Result<(), Full> {
        let full = self.entries.len() >= self.max_requests
            || self.bytes.saturating_add(request.bytes) > self.max_bytes;
        if full && !again {
            return Err(Full { requests: self.entries.len() });
        }
        self.bytes += request.bytes;
        self.tokens += request.tokens;
        let before = self.entries.insert(place, (request, waker));
        debug_assert!(before.is_none(), "a place is given once");
        Ok(())
    }

    /// What waits first.
    pub(crate) fn first(&self) -> Option<&W> {
        self.entries.first_key_value().map(|(_, (_, waker))| waker)
    }

    /// Takes the first.
    pub(crate) fn pop(&mut self) -> Option<(Place, Request, W)> {
        let (place, (request, waker)) = self.entries.pop_first()?;
        self.forget(&request);
        Some((place, request, waker))
    }

    /// Takes a request out whose client left or whose time is up; `None` if it was released before.
    pub(crate) fn remove(&mut self, place: Place) -> Option<Request> {
        let (request, _) = self.entries.remove(&place)?;
        self.forget(&request);
        Some(request)
    }

    fn forget(&mut self, request: &Request) {
        self.bytes -= request.bytes;
        self.tokens -= request.tokens;
    }

    pub(crate) fn depth(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Since when the longest held has waited.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        // Within one priority the first came first; there are few priorities.
        self.entries.values().map(|(request, _)| request.since).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::time::Duration;

    fn request(bytes: u64) -> Request {
        let now = Instant::now();
        let deadline = now + Duration::from_secs(1);
        Request { tenant: "anonymous".into(), since: now, deadline, bytes, tokens: bytes / 4 }
    }

    #[test]
    fn is_bounded_in_requests_and_in_bytes() {
        let mut queue = Queue::bounded(2, 100);
        let places: Vec<_> = (0..4).map(|_| queue.arrive(0)).collect();
        assert_eq!(queue.push(places[0], request(60), (), false), Ok(()));
        assert_eq!(
            queue.push(places[1], request(60), (), false),
            Err(Full { requests: 1 }),
            "bytes"
        );
        assert_eq!(queue.push(places[2], request(40), (), false), Ok(()));
        assert_eq!(
            queue.push(places[3], request(0), (), false),
            Err(Full { requests: 2 }),
            "requests"
        );
        assert_eq!(queue.push(places[3], request(0), (), true), Ok(()), "accepted before");
        assert!(queue.remove(places[3]).is_some());
        assert!(queue.remove(places[0]).is_some());
        assert!(queue.remove(places[0]).is_none(), "leaves once");
        assert_eq!((queue.depth(), queue.bytes(), queue.tokens()), (1, 40, 10));
    }

    #[test]
    fn a_request_tried_again_is_first_in_line() {
        let mut queue = Queue::bounded(10, 100);
        let (first, second) = (queue.arrive(0), queue.arrive(0));
        queue.push(second, request(1), "second", false).expect("room");
        queue.push(first, request(1), "first, again", true).expect("room");
        assert_eq!(queue.pop().map(|(_, _, who)| who), Some("first, again"));
    }

    proptest! {
        #[test]
        fn leaves_by_priority_then_arrival(priorities in prop::collection::vec(-2..3i32, 0..50)) {
            let mut queue = Queue::bounded(100, u64::MAX);
            let mut places = Vec::new();
            for priority in priorities {
                let place = queue.arrive(priority);
                queue.push(place, request(1), (), false).expect("room");
                places.push(place);
            }
            places.sort_by_key(|place| (place.priority, place.seq));
            let left: Vec<_> = std::iter::from_fn(|| queue.pop().map(|(place, _, ())| place)).collect();
            prop_assert_eq!(left, places);
            prop_assert_eq!((queue.bytes(), queue.tokens()), (0, 0));
        }
    }
}
