//! A stream that broke: another replica goes on with it, or it ends with an error event.

use std::task::{Context, Poll, ready};

use tokio::time::Instant;

use super::{AnswerForm, BrokenOff, Relay};
use crate::answer::failure::{Cause, Failure};
use crate::answer::not_continued::NotContinued;
use crate::answer::outcome::Outcome;
use crate::answer::token_record::TokenRecord;
use crate::exchange::continuation::{NextReplica, NoReplica, Onward};
use crate::exchange::cutoff::Cut;
use crate::exchange::move_rules::may_move_after;
use crate::exchange::send::stalled;
use crate::exchange::successor::Move;
use crate::net::clock;
use crate::pool::End;

impl Relay {
    /// Waits for a replica that goes on with the stream.
    pub(super) fn poll_search(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokenOff>> {
        self.pace.waits();
        if let Poll::Ready(found) = self.successor.poll(cx) {
            let steps = self.successor.take_steps();
            if let Some(record) = &mut self.record {
                record.searched(steps, matches!(self.successor.moving, Move::UnderWay(_)));
            }
            match found {
                Ok(NextReplica { slot, upstream, start }) => {
                    self.cutoff.next_replica(slot.lost());
                    if let AnswerForm::Stream(stream) = &mut self.form {
                        stream.move_seam(start.back, &start.rest);
                    }
                    (self.slot, self.upstream) = (Some(slot), Some(upstream));
                    self.moments.last = clock::now();
                    self.watch_hang();
                    // A stream that moves leaves the new replica only once it has gone on there.
                    if matches!(self.successor.moving, Move::None) {
                        self.watch_drain();
                    }
                }
                Err(none) => self.not_found(&none),
            }
            return Poll::Ready(Ok(()));
        }
        match self.cutoff.poll(cx) {
            // It is lost already.
            Poll::Ready(Cut::ReplicaLost) => return Poll::Ready(Ok(())),
            Poll::Ready(cut) => return Poll::Ready(self.cut(cut)),
            Poll::Pending => {}
        }
        let heartbeat = self.successor.next_heartbeat();
        let due = heartbeat.map_or(self.deadline, |heartbeat| heartbeat.min(self.deadline));
        if due != self.alarm.due() {
            self.alarm.set(due);
        }
        let now = clock::now();
        ready!(self.alarm.poll(cx, now));
        if now >= self.deadline {
            return Poll::Ready(self.too_late());
        }
        self.send_heartbeat(now);
        Poll::Ready(Ok(()))
    }

    /// Sends a heartbeat if the stream is in a pause and one is due; false otherwise.
    pub(super) fn send_heartbeat(&mut self, now: Instant) -> bool {
        let due = self.successor.next_heartbeat().is_some_and(|due| due <= now);
        if let (true, AnswerForm::Stream(stream)) = (due, &self.form) {
            self.out.push(stream.heartbeat());
            self.successor.heartbeat_sent(now);
        }
        due
    }

    /// Has the stream leave the present replica if that hangs, where another one may go on.
    pub(super) fn watch_hang(&mut self) {
        if let (Some(slot), true) = (&self.slot, self.successor.may_go_on()) {
            let hung = slot.hung();
            self.cutoff.watch(async move {
                hung.cancelled_owned().await;
                Cut::ReplicaHangs
            });
        }
    }

    /// Leaves a replica that hangs, if another one may go on with the stream. Otherwise the stream stays:
    /// the replica may wake.
    pub(super) fn leave_hung(&mut self) -> Result<(), BrokenOff> {
        let AnswerForm::Stream(stream) = &self.form else { return Ok(()) };
        let silence = clock::now().saturating_duration_since(self.moments.last);
        let failure = stalled(silence);
        match self.successor.next(&mut stream.clone(), &failure) {
            Ok(_) => self.end(Some(failure)),
            Err(why) => {
                tracing::debug!(why = why.name(), "stream stays at a replica that hangs");
                Ok(())
            }
        }
    }

    /// Ends the stream, since no replica goes on with it.
    fn not_found(&mut self, NoReplica { refusal, why, again }: &NoReplica) {
        if self.move_back(*again, None) {
            return;
        }
        let cause = self.successor.broke_by().unwrap_or(Cause::Connection);
        if let Some(record) = &self.record {
            record.not_continued(cause, *why);
        }
        if let AnswerForm::Stream(stream) = &self.form {
            let (status, kind) = refusal.status();
            self.out.push(stream.error_event(status.as_u16(), kind, &refusal.to_string()));
        }
        self.finish(End::Dropped, Outcome::Failed, Some(cause.name()));
    }

    /// Goes on with a stream that broke on another replica, or ends it with an error event.
    pub(super) fn broke(&mut self, failure: Failure) {
        if let Some(record) = &mut self.record {
            record.try_failed(failure.cause);
        }
        let begins_anew = self.begins_anew();
        // Others take the rest for something else than it is, too: then the stream stays.
        let misread = failure.cause == Cause::NotContinued && !begins_anew;
        if self.move_back(!misread && may_move_after(failure.cause), Some(failure.clone())) {
            return;
        }
        if let Err(why) = self.go_on(&failure) {
            let cause = self.successor.broke_by().unwrap_or(failure.cause);
            if let Some(record) = &self.record {
                record.not_continued(cause, why);
            }
            self.fail_with_event(failure);
        }
    }

    /// Notes, and returns, whether the present replica began anew where it should have gone on.
    fn begins_anew(&self) -> bool {
        let AnswerForm::Stream(stream) = &self.form else { return false };
        let begins_anew = stream.token_record().is_some_and(TokenRecord::began_anew);
        if let (true, Some(slot)) = (begins_anew, &self.slot) {
            slot.begins_anew();
        }
        begins_anew
    }

    fn go_on(&mut self, failure: &Failure) -> Result<(), NotContinued> {
        // The tokens until now are this replica's.
        self.merge();
        let AnswerForm::Stream(stream) = &mut self.form else { return Err(NotContinued::Api) };
        let record = stream.token_record();
        let progress = record.filter(|record| record.is_resumed()).map(TokenRecord::own_tokens);
        match self.successor.next(stream, failure)? {
            Onward::End => {
                stream.conclude().for_each(|piece| self.out.push(piece));
                self.finish(End::of(failure.clone()), Outcome::Completed, None);
            }
            Onward::Tokens(cut) => {
                // The replica aborts what it still generates.
                self.upstream = None;
                if let Some(slot) = self.slot.take() {
                    let left = self.successor.leave(slot, failure.clone(), progress);
                    left.map_err(|refusal| NoReplica::from(refusal).why)?;
                }
                self.successor.search(cut, failure.cause, clock::now());
            }
        }
        Ok(())
    }

    /// Notes that another replica has gone on with the stream.
    pub(super) fn note_continuation(&mut self, now: Instant) {
        let AnswerForm::Stream(stream) = &self.form else { return };
        if let Some(pause) = self.successor.went_on(stream.token_record(), now)
            && let (Some(slot), Some(record)) = (&mut self.slot, &mut self.record)
        {
            slot.first_token(now);
            let carried = stream.token_record().map_or(0, TokenRecord::carried);
            let prompt =
                stream.token_record().map_or(0, |record| record.ids().prompt_tokens() as u64);
            record.continued(slot, pause, prompt, carried);
            if matches!(self.successor.moving, Move::UnderWay(_)) {
                self.end_move();
                self.watch_drain();
            }
        }
    }
}
