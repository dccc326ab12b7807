//! A stream that moves off an endpoint that drains, to free it.
//!
//! The old replica goes on until another one has a place for the stream. Then it waits, unread, until
//! the new one has shown that it goes on with this answer. If that fails, the old one goes on as if
//! nothing had been. So a move breaks no stream, and it counts neither as a failure nor as a try.

use std::mem::take;
use std::time::Duration;

use super::{AnswerForm, Relay};
use crate::answer::failure::{Cause, Failure};
use crate::answer::not_continued::NotContinued;
use crate::exchange::continuation::{LONGEST_MOVE, Onward};
use crate::exchange::cutoff::Cut;
use crate::exchange::successor::{Move, Standby};
use crate::net::clock;
use crate::pool::{End, Room};

impl Relay {
    /// Has the stream move once the present replica has drained for long enough.
    pub(super) fn watch_drain(&mut self) {
        if let (Some(slot), Some(after)) = (&self.slot, self.successor.move_after()) {
            let drained = slot.drained_for(after);
            self.cutoff.watch(async move {
                drained.await;
                Cut::Drains
            });
        }
    }

    /// Waits for a place elsewhere, if the stream can go on there.
    pub(super) fn ask_for_room(&mut self) {
        let (AnswerForm::Stream(stream), Some(slot)) = (&self.form, &self.slot) else { return };
        let mut copy = stream.clone();
        let next = self.successor.next(&mut copy, &moved());
        if matches!(next, Ok(Onward::Tokens(_)) | Err(NotContinued::InsideCharacter))
            && let Some(room) = self.successor.room_elsewhere(slot)
        {
            self.cutoff.watch(async move { Cut::Room(room.await.ok().map(Box::new)) });
        }
    }

    /// Takes a place elsewhere. `None`: the present replica no longer drains.
    pub(super) fn take_room(&mut self, room: Option<Box<Room>>) {
        match room {
            Some(room) => {
                self.successor.moving = Move::Ready(room);
                self.begin_move();
            }
            None => self.watch_drain(),
        }
    }

    /// Moves the stream to the place that it got elsewhere, if the answer can be cut now.
    pub(super) fn begin_move(&mut self) {
        let Move::Ready(_) = self.successor.moving else { return };
        // The tokens so far are the present replica's.
        self.merge();
        let AnswerForm::Stream(stream) = &mut self.form else { return };
        let mut next_stream = stream.clone();
        let cut = match self.successor.next(&mut next_stream, &moved()) {
            Ok(Onward::Tokens(cut)) => cut,
            Err(NotContinued::InsideCharacter) => return,
            // It ends where it is.
            Ok(Onward::End) | Err(_) => return self.successor.moving = Move::None,
        };
        let (Some(upstream), Some(slot)) = (self.upstream.take(), self.slot.take()) else { return };
        let Move::Ready(room) = take(&mut self.successor.moving) else { return };
        let Room { slot: next_slot, under_way } = *room;
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
            Move::UnderWay(_) => self.stall.min(LONGEST_MOVE),
            Move::None | Move::Ready(_) => self.stall,
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
    /// `failure`: the new replica's, unless it has been counted already.
    pub(super) fn move_back(&mut self, cause: Cause, failure: Option<Failure>) -> bool {
        let standby = match take(&mut self.successor.moving) {
            Move::UnderWay(standby) => standby,
            Move::Ready(_) | Move::None => return false,
        };
        if let (Some(slot), Some(failure)) = (self.slot.take(), failure) {
            slot.failed(failure);
        }
        let Standby { upstream, slot, stream, .. } = *standby;
        self.cutoff.next_replica(slot.lost());
        self.form = AnswerForm::Stream(stream);
        (self.upstream, self.slot) = (Some(upstream), Some(slot));
        self.moments.last = clock::now();
        self.successor.stayed();
        // Others may go on where this one would have begun anew. After another failure it stays.
        if cause == Cause::NotContinued {
            self.watch_drain();
        }
        true
    }
}

/// The reason why a stream leaves its replica.
fn moved() -> Failure {
    Failure::new(Cause::Moved, "The stream moves off a replica that drains.")
}
