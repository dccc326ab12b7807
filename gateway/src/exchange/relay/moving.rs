//! A stream that moves off an endpoint that drains, to free it.
//!
//! The old replica goes on until another one has a place for the stream. Then it waits, unread, until
//! the new one has shown that it goes on with this answer. If that fails, the old one goes on as if
//! nothing had been. So a move breaks no stream, and it counts neither as a failure nor as a try.

use std::mem::take;
use std::time::Duration;

use tokio::time::sleep;

use super::{AnswerForm, Relay};
use crate::answer::failure::{Cause, Failure};
use crate::answer::not_continued::NotContinued;
use crate::exchange::continuation::Onward;
use crate::exchange::cutoff::Cut;
use crate::exchange::move_rules::{longest_move, too_slow};
use crate::exchange::send::stalled;
use crate::exchange::successor::{Move, Standby};
use crate::net::clock;
use crate::pool::{End, UnderWay};

impl Relay {
    /// Has the stream move once the present replica has drained for long enough.
    pub(super) fn watch_drain(&mut self) {
        self.watch_drain_after(Duration::ZERO);
    }

    fn watch_drain_after(&mut self, pause: Duration) {
        if let (Some(slot), Some(after)) = (&self.slot, self.successor.move_after()) {
            let drained = slot.drained_for(after);
            self.cutoff.watch(async move {
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                drained.await;
                Cut::Drains
            });
        }
    }

    /// Has a stream that stays try later to leave its replica, unless it has tried often.
    fn move_later(&mut self) {
        if let Some(pause) = self.successor.pause_before_move() {
            self.watch_drain_after(pause);
        }
    }

    /// Waits for room elsewhere, if the stream can go on there.
    pub(super) fn ask_for_room(&mut self) {
        let (AnswerForm::Stream(stream), Some(slot)) = (&self.form, &self.slot) else { return };
        let mut copy = stream.clone();
        match self.successor.next(&mut copy, &moved()) {
            Ok(Onward::Tokens(_)) | Err(NotContinued::InsideCharacter) => {
                if let Some(room) = self.successor.room_elsewhere(slot) {
                    self.cutoff.watch(async move { Cut::Room(room.await.ok()) });
                }
            }
            Err(why) if why.may_pass() => self.move_later(),
            Err(why) => {
                let (endpoint, why) = (slot.address, why.name());
                tracing::debug!(%endpoint, why, "stream stays until its end");
            }
            Ok(Onward::End) => {}
        }
    }

    /// Takes that there is room elsewhere. `None`: the present replica no longer drains.
    pub(super) fn take_room(&mut self, room: Option<UnderWay>) {
        match room {
            Some(under_way) => {
                self.successor.moving = Move::Ready(under_way);
                self.begin_move();
            }
            None => self.watch_drain(),
        }
    }

    /// Moves the stream to a place elsewhere, if the answer can be cut now.
    pub(super) fn begin_move(&mut self) {
        let Move::Ready(_) = self.successor.moving else { return };
        // The tokens so far are the present replica's.
        self.merge();
        let AnswerForm::Stream(stream) = &mut self.form else { return };
        let mut next_stream = stream.clone();
        let cut = match self.successor.next(&mut next_stream, &moved()) {
            Ok(Onward::Tokens(cut)) => cut,
            Err(NotContinued::InsideCharacter) => return,
            Err(why) if why.may_pass() => {
                self.successor.moving = Move::None;
                return self.move_later();
            }
            // It ends where it is.
            Ok(Onward::End) | Err(_) => return self.successor.moving = Move::None,
        };
        let place = self.slot.as_ref().and_then(|slot| self.successor.place_elsewhere(slot));
        let Move::Ready(under_way) = take(&mut self.successor.moving) else { return };
        let Some(next_slot) = place else {
            // Another request was faster.
            drop(under_way);
            return self.ask_for_room();
        };
        let (Some(upstream), Some(slot)) = (self.upstream.take(), self.slot.take()) else { return };
        under_way.begun();
        let stream = std::mem::replace(stream, next_stream);
        self.successor.moving =
            Move::UnderWay(Box::new(Standby { upstream, slot, stream, under_way }));
        self.cutoff.leave_replica();
        self.moments.last = clock::now();
        self.successor.move_to(next_slot, cut, self.moments.last);
    }

    /// How long the present replica may be silent.
    pub(super) fn longest_silence(&self) -> Duration {
        match self.successor.moving {
            Move::UnderWay(_) => self.stall.min(longest_move(self.tokens())),
            Move::None | Move::Ready(_) => self.stall,
        }
    }

    /// The number of recorded tokens of prompt and answer.
    fn tokens(&self) -> usize {
        match &self.form {
            AnswerForm::Stream(stream) => {
                stream.token_record().map_or(0, |record| record.ids().all().len())
            }
            AnswerForm::Plain(_) => 0,
        }
    }

    /// The failure of the present replica that was silent for that long. In a move, it is none of its
    /// own before the stall limit.
    pub(super) fn silence(&self) -> Failure {
        match self.longest_silence() {
            silence if silence < self.stall => too_slow(silence),
            _ => stalled(self.stall),
        }
    }

    /// Gives up the old replica, since the new one has gone on, or the stream has ended.
    pub(super) fn end_move(&mut self) {
        if let Move::UnderWay(standby) = take(&mut self.successor.moving) {
            let Standby { upstream, slot, under_way, .. } = *standby;
            // It aborts what it still generates.
            drop((upstream, under_way));
            slot.ended(End::Moved);
        }
    }

    /// Has the old replica go on with a stream whose move failed; false if the stream was not moving.
    /// `again`: it may try to move again. `failure`: the new replica's, unless it has been counted
    /// already.
    pub(super) fn move_back(&mut self, again: bool, failure: Option<Failure>) -> bool {
        let standby = match take(&mut self.successor.moving) {
            Move::UnderWay(standby) => standby,
            Move::Ready(_) | Move::None => return false,
        };
        if let (Some(slot), Some(failure)) = (self.slot.take(), failure) {
            slot.failed(failure);
        }
        let Standby { upstream, slot, mut stream, .. } = *standby;
        stream.meter.paused();
        self.cutoff.next_replica(slot.lost());
        self.form = AnswerForm::Stream(stream);
        (self.upstream, self.slot) = (Some(upstream), Some(slot));
        self.moments.last = clock::now();
        self.successor.stayed();
        self.watch_hang();
        if again {
            self.move_later();
        }
        true
    }
}

/// The reason why a stream leaves its replica.
fn moved() -> Failure {
    Failure::new(Cause::Moved, "The stream moves off a replica that drains.")
}
