//! The streams that may move off endpoints that drain.
//!
//! Few streams of one endpoint move at the same time: each move has another replica compute the prompt
//! and the answer so far.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Weak};
use std::time::Duration;

use forebay_scheduling::pick::{EndpointId, Requirements};
use tokio::sync::oneshot;
use tokio::time::Instant;

/// The most streams of one endpoint that move at the same time.
const AT_ONCE: usize = 4;
/// How long a stream that has room elsewhere counts as one that moves before it does. It waits if its client
/// does not read, and must not keep the others waiting for that.
const COUNTS_FOR: Duration = Duration::from_secs(10);

/// The streams that may move, by the endpoint that they are at.
#[derive(Default)]
pub(super) struct Moves(BTreeMap<EndpointId, Leaving>);

/// The streams that may leave one endpoint.
#[derive(Default)]
struct Leaving {
    waiting: VecDeque<Mover>,
    /// The streams that move now, and since when. True: the move has begun.
    under_way: Vec<(Instant, Weak<AtomicBool>)>,
}

/// A stream that waits for room elsewhere.
pub(super) struct Mover {
    pub(super) requirements: Requirements,
    pub(super) room: oneshot::Sender<UnderWay>,
}

/// A move under way: the stream counts among those that move now as long as it has this. Drop it before
/// the place at the old endpoint is given back: that lets the next stream move.
pub(crate) struct UnderWay(Arc<AtomicBool>);

impl UnderWay {
    /// Notes that the new replica is asked to go on from now on.
    pub(crate) fn begun(&self) {
        self.0.store(true, Relaxed);
    }
}

impl Leaving {
    /// Begins a move, unless enough of them are under way.
    fn begin(&mut self, now: Instant) -> Option<UnderWay> {
        let counts = |since: Instant| now.saturating_duration_since(since) < COUNTS_FOR;
        self.under_way.retain(|(since, one)| {
            one.upgrade().is_some_and(|begun| begun.load(Relaxed) || counts(*since))
        });
        (self.under_way.len() < AT_ONCE).then(|| {
            let one = Arc::new(AtomicBool::new(false));
            self.under_way.push((now, Arc::downgrade(&one)));
            UnderWay(one)
        })
    }
}

impl Moves {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds a stream at this endpoint.
    pub(super) fn push(&mut self, from: EndpointId, mover: Mover) {
        self.0.entry(from).or_default().waiting.push_back(mover);
    }

    /// Forgets the streams of endpoints for which `drains` is false, and returns the endpoints of the
    /// others.
    pub(super) fn retain(&mut self, drains: impl Fn(EndpointId) -> bool) -> Vec<EndpointId> {
        self.0.retain(|from, _| drains(*from));
        self.0.keys().copied().collect()
    }

    /// Takes the first stream at this endpoint that has room elsewhere, unless enough of its streams move
    /// already.
    pub(super) fn pop(
        &mut self,
        from: EndpointId,
        now: Instant,
        mut has_room: impl FnMut(&Requirements) -> bool,
    ) -> Option<(Mover, UnderWay)> {
        let leaving = self.0.get_mut(&from)?;
        while leaving.waiting.front().is_some_and(|mover| mover.room.is_closed()) {
            leaving.waiting.pop_front();
        }
        if leaving.waiting.is_empty() {
            return None;
        }
        let under_way = leaving.begin(now)?;
        // Neighbours mostly have the same requirements.
        let mut unplaced = None;
        let at = leaving.waiting.iter().position(|mover| {
            let requirements = &mover.requirements;
            let kind = Some(requirements.kind());
            let found = unplaced != kind && has_room(requirements);
            if !found {
                unplaced = kind;
            }
            found
        })?;
        Some((leaving.waiting.remove(at)?, under_way))
    }
}
