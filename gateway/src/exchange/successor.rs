//! A stream's next replica: whether there may be one, the search for it, and the pause that the client
//! sees.

use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::answer::failure::{Cause, Failure};
use crate::answer::not_continued::NotContinued;
use crate::answer::outcome::Pause;
use crate::answer::refusal::Refusal;
use crate::answer::stream::{AnswerStream, Rest};
use crate::answer::token_record::TokenRecord;
use crate::exchange::continuation::{
    Continuation, CutAnswer, NextReplica, NoReplica, Onward, Search,
};
use crate::exchange::move_rules::pause_before;
use crate::exchange::steps::RequestStep;
use crate::exchange::upstream::UpstreamBody;
use crate::pool::{Slot, UnderWay};

/// The state of a stream with regard to its next replica.
pub(crate) struct Successor {
    /// `None` during a search, and if no other replica can go on.
    continuation: Option<Box<Continuation>>,
    /// Why none can.
    why_not: NotContinued,
    search: Option<Search>,
    /// When the stream broke, and why, until it goes on.
    broke: Option<(Instant, Cause)>,
    /// The interval of heartbeats during a search; zero for none.
    heartbeat: Duration,
    /// When the last heartbeat, or the last part of the answer, went out.
    last_sent: Instant,
    /// Its move off a replica that drains.
    pub(crate) moving: Move,
    /// How often it tried in vain to leave its present replica.
    vain_moves: u32,
}

/// A stream's move to another replica.
#[derive(Default)]
pub(crate) enum Move {
    #[default]
    None,
    /// There is room elsewhere. The answer can't be cut at the last token, but behind a later one.
    Ready(UnderWay),
    /// The new replica has not shown yet that it goes on.
    UnderWay(Box<Standby>),
}

/// The old replica of a stream that moves, and the stream as it was.
pub(crate) struct Standby {
    pub(crate) upstream: UpstreamBody,
    pub(crate) slot: Box<Slot>,
    pub(crate) stream: Box<AnswerStream>,
    pub(crate) under_way: UnderWay,
}

impl Successor {
    pub(crate) fn new(
        continuation: Result<Box<Continuation>, NotContinued>,
        heartbeat: Duration,
        now: Instant,
    ) -> Self {
        let (continuation, why_not) = match continuation {
            Ok(continuation) => (Some(continuation), NotContinued::NoTokenIds),
            Err(why) => (None, why),
        };
        Self {
            continuation,
            why_not,
            search: None,
            broke: None,
            heartbeat,
            last_sent: now,
            moving: Move::None,
            vain_moves: 0,
        }
    }

    /// A stream that looks for its next replica.
    #[cfg(test)]
    pub(crate) fn searching(search: Search, now: Instant) -> Self {
        let stays = Self::new(Err(NotContinued::Off), Duration::ZERO, now);
        Self { search: Some(search), ..stays }
    }

    /// The rest of a stream that broke, for another replica. The stream is prepared for it.
    ///
    /// # Errors
    /// No other replica can go on.
    pub(crate) fn next(
        &self,
        stream: &mut AnswerStream,
        failure: &Failure,
    ) -> Result<Onward, NotContinued> {
        let continuation = self.continuation.as_ref().ok_or(self.why_not)?;
        if failure.cause == Cause::EventTooLong {
            return Err(NotContinued::EventTooLong);
        }
        if stream.cut()? == Rest::End {
            return Ok(Onward::End);
        }
        let token_record = stream.token_record().ok_or(NotContinued::NoTokenIds)?;
        let onward = continuation.onward(token_record)?;
        if let Onward::Tokens(_) = onward {
            stream.begin_seam();
        }
        Ok(onward)
    }

    /// Gives up the place at the replica that failed. `progress`: the tokens that it generated, if a
    /// part of the answer came from it.
    ///
    /// # Errors
    /// No other replica may be tried.
    pub(crate) fn leave(
        &mut self,
        slot: Box<Slot>,
        failure: Failure,
        progress: Option<u64>,
    ) -> Result<(), Refusal> {
        match &mut self.continuation {
            Some(continuation) => continuation.leave(slot, failure, progress),
            None => Ok(()),
        }
    }

    /// Begins the search for a replica that goes on behind this cut.
    pub(crate) fn search(&mut self, cut: CutAnswer, cause: Cause, now: Instant) {
        self.broke.get_or_insert((now, cause));
        self.last_sent = now;
        self.search = self.continuation.take().map(|continuation| continuation.search(cut));
    }

    /// Whether another replica may go on, as far as the request decides it.
    pub(crate) fn may_go_on(&self) -> bool {
        self.continuation.is_some()
    }

    /// How long a replica drains before the stream leaves it; `None` if it stays.
    pub(crate) fn move_after(&self) -> Option<Duration> {
        self.continuation.as_ref()?.move_after()
    }

    /// Waits for room elsewhere for a stream that should leave the replica in `slot`.
    pub(crate) fn room_elsewhere(&self, slot: &Slot) -> Option<oneshot::Receiver<UnderWay>> {
        Some(self.continuation.as_ref()?.room_elsewhere(slot))
    }

    /// Takes a place elsewhere for a stream that leaves the replica in `slot`; `None` if there is no room
    /// any more.
    pub(crate) fn place_elsewhere(&self, slot: &Slot) -> Option<Box<Slot>> {
        self.continuation.as_ref()?.place_elsewhere(slot)
    }

    /// Has the replica in `slot` go on behind this cut, and no other one.
    pub(crate) fn move_to(&mut self, slot: Box<Slot>, cut: CutAnswer, now: Instant) {
        self.broke = Some((now, Cause::Moved));
        self.last_sent = now;
        self.search = self.continuation.take().map(|continuation| continuation.move_to(slot, cut));
    }

    /// How long the stream waits before it tries again to leave its replica; `None` if it stays.
    pub(crate) fn pause_before_move(&mut self) -> Option<Duration> {
        let pause = pause_before(self.vain_moves);
        self.vain_moves += 1;
        pause
    }

    /// Notes that the stream stays at its replica.
    pub(crate) fn stayed(&mut self) {
        self.broke = None;
    }

    pub(crate) fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<NextReplica, NoReplica>> {
        let Some(search) = &mut self.search else { return Poll::Pending };
        let (continuation, found) = ready!(search.as_mut().poll(cx));
        (self.continuation, self.search) = (Some(continuation), None);
        Poll::Ready(found)
    }

    /// Takes the holds and tries of the last search.
    pub(crate) fn take_steps(&mut self) -> Vec<RequestStep> {
        let continuation = self.continuation.as_mut();
        continuation.map(|continuation| continuation.take_steps()).unwrap_or_default()
    }

    /// When the next heartbeat of a pause is due, if the client gets any.
    pub(crate) fn next_heartbeat(&self) -> Option<Instant> {
        let pauses = self.broke.is_some() && !self.heartbeat.is_zero();
        pauses.then(|| self.last_sent + self.heartbeat)
    }

    /// Notes that a heartbeat goes out.
    pub(crate) fn heartbeat_sent(&mut self, now: Instant) {
        self.last_sent = now;
    }

    /// Ends a search without a result.
    pub(crate) fn stop(&mut self) {
        self.search = None;
    }

    /// Why the stream broke, if it has not gone on since.
    pub(crate) fn broke_by(&self) -> Option<Cause> {
        self.broke.map(|(_, cause)| cause)
    }

    /// The pause after a break, once the stream has gone on.
    pub(crate) fn went_on(
        &mut self,
        token_record: Option<&TokenRecord>,
        now: Instant,
    ) -> Option<Pause> {
        let (at, cause) = self.broke?;
        if !token_record?.is_resumed() {
            return None;
        }
        self.broke = None;
        self.vain_moves = 0;
        let all = now.saturating_duration_since(at);
        let held = match (cause, &self.continuation) {
            // The old replica went on meanwhile.
            (Cause::Moved, _) | (_, None) => Duration::ZERO,
            (_, Some(continuation)) => continuation.held(),
        };
        Some(Pause { cause, all, held })
    }
}
