//! One answer on its way from a replica to a client: judged, metered, and passed on.
//!
//! Only whole events go out, so that an error event never lands in the middle of another one.
//! Nothing goes out before an event has shown that the answer is one; a failure until then can be
//! tried elsewhere. Bytes are passed on as they came, but for a usage chunk that nobody but us
//! asked for. What goes out is what an unasked server sends, to the byte: vLLM puts its
//! `system_fingerprint` into the chunks that end a choice, or into that of the usage where there is
//! one. So a choice's last chunk waits for the next event, which nearly always is the usage and
//! comes at once, and is given the fingerprint from there; the relay sees that it waits briefly.
//!
//! Pure: bytes and times come in as arguments.

use bytes::Bytes;
use tokio::time::Instant;

use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::fingerprint::{self, Fingerprint};
use crate::answer::judge::{Verdict, judge_event};
use crate::answer::meter::Meter;
use crate::text::rope::Pieces;
use crate::text::sse::{Event, MAX_EVENT, Splitter};

/// What came of the bytes fed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing goes out yet; before commit, the failure of the replica can still be hidden.
    Hold,
    /// Committed: these go out. They may be empty.
    Pass(Pieces),
    /// Not committed and failed: can be tried elsewhere.
    Retry(Failure),
    /// Committed and failed: these go out, then an error event. The failing event is not among
    /// them, and nothing after it is read.
    Failed(Pieces, Failure),
}

/// How a stream that reached its end ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// With its API's end mark.
    Complete,
    /// With its end mark, after an error of the client's own with this status.
    Client(u16),
    /// Without its end mark, or as `feed` said before.
    Failed(Failure),
}

/// One streamed answer with status 200.
#[derive(Debug)]
pub(crate) struct AnswerStream {
    api: Api,
    splitter: Splitter,
    pub(crate) meter: Meter,
    strip_usage: bool,
    /// The server's own word for what it is, where it is known.
    fingerprint: Option<Fingerprint>,
    /// The last chunk of a choice, which waits for its fingerprint.
    last: Option<Bytes>,
    held: Vec<Bytes>,
    held_len: usize,
    committed: bool,
    end_seen: bool,
    client_error: Option<u16>,
    failure: Option<Failure>,
    /// Events with data, which is what `/v1/responses` numbers.
    events: u64,
    /// What was fed last had something of the answer in it.
    progressed: bool,
}

/// What to do about one event.
enum Next {
    Keep,
    /// Wait with it for the next one.
    Wait,
    Drop,
    Stop,
}

impl AnswerStream {
    /// `strip_usage`: take out the usage chunk that only we asked for. `fingerprint` is what the
    /// server was last known by.
    pub(crate) fn new(api: Api, strip_usage: bool, fingerprint: Option<Fingerprint>) -> Self {
        Self {
            api,
            splitter: Splitter::default(),
            meter: Meter::default(),
            strip_usage,
            fingerprint,
            last: None,
            held: Vec::new(),
            held_len: 0,
            committed: false,
            end_seen: false,
            client_error: None,
            failure: None,
            events: 0,
            progressed: false,
        }
    }

    /// Whether anything went out.
    #[cfg(test)]
    pub(crate) fn committed(&self) -> bool {
        self.committed
    }

    /// Why it can't go on, once it can't.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// What the server is known by, where a usage chunk told.
    pub(crate) fn fingerprint(&self) -> Option<&Fingerprint> {
        self.fingerprint.as_ref()
    }

    /// Whether a choice's last chunk waits for the next event.
    pub(crate) fn waits(&self) -> bool {
        self.last.is_some()
    }

    /// The chunk that waits, to go out now.
    pub(crate) fn take_last(&mut self, out: &mut Pieces) {
        let Some(last) = self.last.take() else { return };
        match &self.fingerprint {
            Some(fingerprint) => fingerprint.stamp(last, out),
            None => out.push(last),
        }
    }

    /// Whether what was fed last had more in it than comments and announcements, which a server
    /// sends also while its engine hangs.
    pub(crate) fn progressed(&self) -> bool {
        self.progressed
    }

    /// Whether its end mark has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.end_seen && self.failure.is_none()
    }

    /// The next bytes, cut anywhere.
    pub(crate) fn feed(&mut self, bytes: Bytes, now: Instant) -> Step {
        self.progressed = false;
        if self.failure.is_some() {
            return Step::Hold;
        }
        let frame = bytes.clone();
        let mut rest = bytes;
        let mut out = Pieces::default();
        // Events that lie side by side in the frame go out as one slice of it.
        let mut run = 0..0;
        loop {
            let before = frame.len() - rest.len();
            let joined = self.splitter.joining();
            let next = self.splitter.next(&mut rest);
            let after = frame.len() - rest.len();
            let event = match next {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => {
                    let message =
                        format!("The replica sent an event of more than {MAX_EVENT} bytes.");
                    self.failure = Some(Failure::new(Cause::EventTooLong, &message));
                    out.push(frame.slice(std::mem::take(&mut run)));
                    self.take_last(&mut out);
                    break;
                }
            };
            let waited = self.last.take();
            let next = self.event(&event, now);
            if waited.is_some() {
                out.push(frame.slice(std::mem::take(&mut run)));
                self.last = waited;
                self.take_last(&mut out);
            }
            match next {
                Next::Wait => {
                    // Not to go out with the next one's neighbours.
                    out.push(frame.slice(std::mem::take(&mut run)));
                    self.last = Some(event);
                }
                Next::Keep if joined => out.push(event),
                Next::Keep if run.end == before && !run.is_empty() => run.end = after,
                Next::Keep => {
                    out.push(frame.slice(std::mem::replace(&mut run, before..after)));
                }
                Next::Drop => {}
                Next::Stop => break,
            }
        }
        let last = if run.len() == frame.len() { frame } else { frame.slice(run) };
        out.push(last);
        self.step(out)
    }

    fn event(&mut self, raw: &[u8], now: Instant) -> Next {
        let event = Event::read(raw);
        let facts = judge_event(self.api, &event);
        self.events += u64::from(event.data.is_some());
        self.meter.record(&facts, now);
        self.progressed |= facts.verdict != Verdict::Hold;
        match facts.verdict {
            Verdict::Hold => {}
            Verdict::Output => {
                self.committed = true;
                if self.strips() && fingerprint::belongs(raw, &facts) {
                    return Next::Wait;
                }
            }
            Verdict::UsageOnly => {
                if self.strips() {
                    self.fingerprint = Fingerprint::read(raw);
                    return Next::Drop;
                }
            }
            Verdict::End => {
                self.committed = true;
                self.end_seen = true;
            }
            Verdict::Client(status) => {
                self.committed = true;
                self.client_error = Some(status);
            }
            // A server may fail after its end mark all it likes.
            Verdict::Failed(_) if self.end_seen => {}
            Verdict::Failed(failure) => {
                self.failure = Some(failure);
                return Next::Stop;
            }
        }
        Next::Keep
    }

    /// Whether the usage is ours to take out: a server that reports it all along does so for all.
    fn strips(&self) -> bool {
        self.strip_usage && !self.meter.continuous()
    }

    fn step(&mut self, out: Pieces) -> Step {
        if !self.committed {
            if let Some(failure) = &self.failure {
                return Step::Retry(failure.clone());
            }
            for piece in out {
                self.held_len += piece.len();
                self.held.push(piece);
            }
            if self.held_len > MAX_EVENT {
                let failure = Failure::new(Cause::EventTooLong, "The replica only announces.");
                self.failure = Some(failure.clone());
                return Step::Retry(failure);
            }
            return Step::Hold;
        }
        let mut pieces = out;
        if !self.held.is_empty() {
            let mut all = Pieces::default();
            std::mem::take(&mut self.held).into_iter().chain(pieces).for_each(|p| all.push(p));
            pieces = all;
        }
        match &self.failure {
            Some(failure) => Step::Failed(pieces, failure.clone()),
            None => Step::Pass(pieces),
        }
    }

    /// The stream ended, in whatever way. What is to go out still comes with it; before commit,
    /// a failed end can be tried elsewhere.
    pub(crate) fn end(&mut self, now: Instant) -> (Pieces, End) {
        let mut out = Pieces::default();
        self.take_last(&mut out);
        // An end mark counts also without the blank line; half an event is thrown away.
        let rest = self.splitter.rest();
        let last = Event::read(&rest);
        if self.failure.is_none() && last.data.is_some() {
            let facts = judge_event(self.api, &last);
            if facts.verdict == Verdict::End {
                self.meter.record(&facts, now);
                (self.end_seen, self.committed) = (true, true);
            }
        }
        if self.end_seen && self.failure.is_none() {
            std::mem::take(&mut self.held).into_iter().for_each(|piece| out.push(piece));
            out.push(rest);
        }
        let end = match (&self.failure, self.end_seen, self.client_error) {
            (Some(failure), ..) => End::Failed(failure.clone()),
            (None, _, Some(status)) => End::Client(status),
            (None, true, None) => End::Complete,
            (None, false, None) => {
                let message = "The replica's answer broke off.";
                End::Failed(Failure::new(Cause::Truncated, message))
            }
        };
        (out, end)
    }

    /// The event that tells the client of `failure`, with the end its API's clients wait for.
    pub(crate) fn error_event(&self, status: u16, kind: &str, message: &str) -> Bytes {
        self.api.error_event(status, kind, message, self.events)
    }
}

#[cfg(test)]
mod tests;
