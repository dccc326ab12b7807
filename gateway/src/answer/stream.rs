//! One streamed answer on its way from a replica to a client: judged, metered, and passed on.
//!
//! Only whole events go out, so that an error event never lands in the middle of another one.
//! Nothing goes out before an event shows that the stream is an answer; a request that fails until
//! then can be retried elsewhere.
//!
//! Bytes are passed on unchanged, except for a usage chunk that only the gateway requested. Without
//! that chunk, the client gets exactly the bytes that the server sends when no usage is requested.
//! vLLM puts its `system_fingerprint` into the chunks that end a choice, or, if usage is requested,
//! into the usage chunk alone. So a choice's last chunk waits for the next event, which is nearly
//! always the usage chunk and comes at once, and gets the fingerprint from there. The relay bounds
//! this wait.
//!
//! Pure: bytes and times come in as arguments.

use bytes::{Buf, Bytes};
use tokio::time::Instant;

use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::fingerprint::{self, Fingerprint};
use crate::answer::judge::{TokenUsage, Verdict, judge_event};
use crate::answer::meter::Meter;
use crate::answer::not_continued::NotContinued;
use crate::answer::passing::Passing;
use crate::answer::template::{ChunkTemplate, Match};
use crate::answer::token_record::{TokenRecord, Treatment};
use crate::text::rope::Rope;
use crate::text::sse::{MAX_EVENT, Splitter, SseEvent};

/// The result of feeding bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing goes out yet, so a failure of the replica can still be hidden.
    Hold,
    /// Committed: these bytes go out. There may be none.
    Pass(Rope),
    /// Failed before the commit: the request can be retried elsewhere.
    Retry(Failure),
    /// Failed after the commit: these bytes go out, then an error event. The failing event is not
    /// among them, and nothing after it is read.
    Failed(Rope, Failure),
}

/// How a stream ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum StreamEnd {
    /// With its API's end mark.
    Complete,
    /// With its end mark, after an error of the client's own with this status.
    Client(u16),
    /// Without its end mark, or with the failure that `feed` returned.
    Failed(Failure),
}

/// One streamed answer with status 200.
#[derive(Clone, Debug)]
pub(crate) struct AnswerStream {
    api: Api,
    splitter: Splitter,
    pub(crate) meter: Meter,
    /// The form of the last chunk of output.
    template: Option<ChunkTemplate>,
    stripped_usage: StrippedUsage,
    preamble: Preamble,
    end_seen: bool,
    client_error: Option<u16>,
    failure: Option<Failure>,
    /// The number of events with data: `/v1/responses` numbers these.
    events: u64,
    /// The last bytes had a part of the answer in them.
    progressed: bool,
    token_ids: IdField,
}

/// The part that is left of an answer whose replica is gone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Nothing but its end, which the gateway writes.
    End,
    /// More tokens, from another replica.
    Tokens,
}

/// The removal of a usage chunk that only the gateway requested, whose fingerprint moves to the
/// chunk before.
#[derive(Clone, Debug)]
struct StrippedUsage {
    enabled: bool,
    /// The server's fingerprint, once it is known.
    fingerprint: Option<Fingerprint>,
    /// The last chunk of a choice, which waits for its fingerprint.
    waiting: Option<Bytes>,
}

/// The events before the commit, which are kept back.
#[derive(Clone, Debug, Default)]
struct Preamble {
    /// The commit has come: nothing is kept back any more.
    committed: bool,
    pieces: Vec<Bytes>,
    length: usize,
}

/// The field for token ids.
#[derive(Clone, Debug, Default)]
struct IdField {
    /// The ids, if the gateway asked for them.
    record: Option<Box<TokenRecord>>,
    /// Chunks without text, which wait for the next one with text.
    held: Vec<Bytes>,
    /// That chunk has come.
    due: bool,
}

/// The treatment of one event.
enum Next {
    Keep,
    /// It waits for the next event.
    Wait,
    Drop,
    Stop,
}

impl AnswerStream {
    /// `strip_usage`: the usage chunk was requested by the gateway only. `fingerprint` is the
    /// server's, if earlier answers had it.
    pub(crate) fn new(api: Api, strip_usage: bool, fingerprint: Option<Fingerprint>) -> Self {
        Self {
            api,
            splitter: Splitter::default(),
            meter: Meter::default(),
            template: None,
            stripped_usage: StrippedUsage { enabled: strip_usage, fingerprint, waiting: None },
            preamble: Preamble::default(),
            end_seen: false,
            client_error: None,
            failure: None,
            events: 0,
            progressed: false,
            token_ids: IdField::default(),
        }
    }

    /// Records the token ids, which the gateway asked for. `strip`: the client did not.
    pub(crate) fn record_token_ids(&mut self, strip: bool) {
        self.token_ids.record = Some(Box::new(TokenRecord::new(strip)));
    }

    /// The record of its token ids, if there is one.
    pub(crate) fn token_record(&self) -> Option<&TokenRecord> {
        self.token_ids.record.as_deref()
    }

    /// Cuts the answer where another replica may go on, and returns what is left of it.
    ///
    /// # Errors
    /// It can't be cut here, or its ids are not known.
    pub(crate) fn cut(&mut self) -> Result<Rest, NotContinued> {
        let usage = !self.strips_usage();
        let token_record = self.token_ids.record.as_mut().ok_or(NotContinued::NoTokenIds)?;
        if token_record.is_finished(usage) {
            return Ok(Rest::End);
        }
        token_record.cut()?;
        Ok(Rest::Tokens)
    }

    /// Prepares for another replica, which goes on where the answer was cut.
    pub(crate) fn begin_seam(&mut self) {
        if let Some(token_record) = &mut self.token_ids.record {
            token_record.begin_seam();
            self.meter.goes_on_behind(token_record.carried());
        }
        self.splitter = Splitter::default();
        self.template = None;
        self.failure = None;
        self.token_ids.held.clear();
    }

    /// Begins the seam earlier by `tokens`, of whose text the client has nothing. The `rest` of the text
    /// before it, which the lost replica kept back, goes out once the new one goes on.
    pub(crate) fn move_seam(&mut self, tokens: usize, rest: &str) {
        let chat = self.api == Api::ChatCompletions;
        let Some(token_record) = &mut self.token_ids.record else { return };
        token_record.go_back(tokens);
        self.meter.goes_on_behind(token_record.carried());
        if !rest.is_empty() {
            self.token_ids.held.push(token_record.kept_back(rest, chat));
        }
    }

    /// Ends the answer in place of a replica that is gone, and returns the bytes that go out.
    pub(crate) fn conclude(&mut self) -> Rope {
        let mut out = Rope::default();
        self.take_last_chunk(&mut out);
        let usage = !self.strips_usage();
        let chat = self.api == Api::ChatCompletions;
        if let Some(token_record) = &self.token_ids.record {
            let ids = token_record.ids();
            if !ids.are_lost() {
                let (prompt, generated) = (ids.prompt_tokens() as u64, ids.answer_tokens() as u64);
                self.meter.concluded(TokenUsage { prompt, generated, cached: None });
            }
            token_record.end((chat, usage), self.fingerprint(), &mut out);
        }
        (self.end_seen, self.failure) = (true, None);
        out
    }

    /// Whether anything has gone out.
    #[cfg(test)]
    pub(crate) fn committed(&self) -> bool {
        self.preamble.committed
    }

    /// The failure after which it can't go on, if there was one.
    pub(crate) fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// The server's fingerprint, if a usage chunk has shown it.
    pub(crate) fn fingerprint(&self) -> Option<&Fingerprint> {
        self.stripped_usage.fingerprint.as_ref()
    }

    /// Whether a choice's last chunk waits for the next event.
    pub(crate) fn keeps_last_chunk(&self) -> bool {
        self.stripped_usage.waiting.is_some()
    }

    /// Puts the waiting chunk into `out`, with the fingerprint if it is known.
    pub(crate) fn take_last_chunk(&mut self, out: &mut Rope) {
        let Some(last) = self.stripped_usage.waiting.take() else { return };
        match &self.stripped_usage.fingerprint {
            Some(fingerprint) => fingerprint.stamp(last, out),
            None => out.push(last),
        }
    }

    /// Whether the last bytes had more in them than comments and announcements, which a server also
    /// sends while its engine hangs.
    pub(crate) fn progressed(&self) -> bool {
        self.progressed
    }

    /// Whether its end mark has come.
    pub(crate) fn is_complete(&self) -> bool {
        self.end_seen && self.failure.is_none()
    }

    /// Takes the next bytes, which may be cut anywhere.
    pub(crate) fn feed(&mut self, bytes: Bytes, now: Instant) -> Step {
        self.progressed = false;
        if self.failure.is_some() {
            return Step::Hold;
        }
        let frame = bytes.clone();
        let length = frame.len();
        let mut rest = bytes;
        let mut passing = Passing::of(frame);
        loop {
            let before = length - rest.len();
            if let Some(found) = self.like_the_last(&rest, now) {
                match (&self.token_ids.record, found.ids) {
                    (Some(token_record), Some(ids)) if token_record.rewrites() => {
                        let event = &rest[..found.length];
                        passing.copy(|out| token_record.write_chunk(event, ids, out));
                    }
                    _ => passing.keep(before..before + found.length),
                }
                rest.advance(found.length);
                continue;
            }
            let joined = self.splitter.joining();
            let next = self.splitter.next(&mut rest);
            let after = length - rest.len();
            let event = match next {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => {
                    let message =
                        format!("The replica sent an event of more than {MAX_EVENT} bytes.");
                    self.failure = Some(Failure::new(Cause::EventTooLong, &message));
                    self.take_last_chunk(passing.flush());
                    break;
                }
            };
            let waiting = self.stripped_usage.waiting.take();
            let (next, replaced) = self.event(&event, now);
            if waiting.is_some() {
                self.stripped_usage.waiting = waiting;
                self.take_last_chunk(passing.flush());
            }
            if std::mem::take(&mut self.token_ids.due) {
                self.token_ids.held.drain(..).for_each(|held| passing.push(held));
            }
            match (next, replaced) {
                (Next::Wait, replaced) => {
                    // It ends the run: the events behind it go out after it.
                    passing.flush();
                    self.stripped_usage.waiting = Some(replaced.unwrap_or(event));
                }
                (Next::Keep, Some(replaced)) => passing.push(replaced),
                (Next::Keep, None) if joined => passing.push(event),
                (Next::Keep, None) => passing.keep(before..after),
                (Next::Drop, _) => {}
                (Next::Stop, _) => break,
            }
        }
        self.step(passing.end())
    }

    /// Takes a whole event at the beginning of `bytes` that is a chunk of output like the last one.
    fn like_the_last(&mut self, bytes: &[u8], now: Instant) -> Option<Match> {
        let template = self.template.as_ref()?;
        if !self.token_ids.held.is_empty() {
            return None;
        }
        if !template.has_ids() && self.token_ids.record.as_ref().is_some_and(|ids| ids.has_seam()) {
            return None;
        }
        if !self.splitter.is_between_events() || self.stripped_usage.waiting.is_some() {
            return None;
        }
        let found = template.matches(bytes)?;
        self.events += 1;
        self.progressed = true;
        self.meter.record(template.facts(), now);
        if let (Some(token_record), Some(ids)) = (&mut self.token_ids.record, &found.ids) {
            token_record.chunk(&bytes[found.text.clone()], &bytes[ids.clone()]);
        }
        Some(found)
    }

    /// Takes an event. The bytes that go out in its place, if there are any, come with the result.
    fn event(&mut self, raw: &[u8], now: Instant) -> (Next, Option<Bytes>) {
        let event = SseEvent::read(raw);
        let mut facts = judge_event(self.api, &event);
        let mut replaced = None;
        if let Some(token_record) = &mut self.token_ids.record {
            let treatment = token_record.event(raw, &facts);
            facts.usage = facts.usage.map(|usage| token_record.whole_usage(usage));
            match treatment {
                Treatment::Keep => {}
                Treatment::Drop => {
                    self.progressed |= facts.verdict != Verdict::Preamble;
                    self.preamble.committed |= facts.verdict == Verdict::Output;
                    self.meter.record(&facts, now);
                    return (Next::Drop, None);
                }
                Treatment::Replace(bytes) => replaced = Some(bytes),
                Treatment::Hold(bytes) => {
                    self.progressed = true;
                    self.preamble.committed = true;
                    self.meter.record(&facts, now);
                    let event = bytes.unwrap_or_else(|| Bytes::copy_from_slice(raw));
                    self.token_ids.held.push(event);
                    return (Next::Drop, None);
                }
                Treatment::Fail(failure) => {
                    self.failure = Some(failure);
                    return (Next::Stop, None);
                }
            }
        }
        self.events += u64::from(event.data.is_some());
        self.meter.record(&facts, now);
        self.progressed |= facts.verdict != Verdict::Preamble;
        self.token_ids.due = facts.places.choices.is_some() || facts.verdict == Verdict::End;
        match facts.verdict {
            Verdict::Preamble => {}
            Verdict::Output => {
                self.preamble.committed = true;
                self.template = ChunkTemplate::of(raw, &facts);
                if self.strips_usage() && fingerprint::is_missing(raw, &facts) {
                    return (Next::Wait, replaced);
                }
            }
            Verdict::UsageOnly => {
                if self.strips_usage() {
                    self.stripped_usage.fingerprint = Fingerprint::read(raw);
                    return (Next::Drop, None);
                }
            }
            Verdict::End => {
                self.preamble.committed = true;
                self.end_seen = true;
            }
            Verdict::Client(status) => {
                self.preamble.committed = true;
                self.client_error = Some(status);
            }
            // A failure after the end mark changes nothing.
            Verdict::Failed(_) if self.end_seen => {}
            Verdict::Failed(failure) => {
                self.failure = Some(failure);
                self.token_ids.due = false;
                return (Next::Stop, None);
            }
        }
        (Next::Keep, replaced)
    }

    /// Whether the present replica has shown that it goes on with the answer.
    fn is_resumed(&self) -> bool {
        self.token_ids.record.as_ref().is_none_or(|token_record| token_record.is_resumed())
    }

    /// Whether the usage chunk is removed. A server that reports usage with each part sends it to
    /// every client, so it stays.
    fn strips_usage(&self) -> bool {
        self.stripped_usage.enabled && !self.meter.continuous()
    }

    fn step(&mut self, out: Rope) -> Step {
        if !self.preamble.committed {
            if let Some(failure) = &self.failure {
                return Step::Retry(failure.clone());
            }
            for piece in out {
                self.preamble.length += piece.len();
                self.preamble.pieces.push(piece);
            }
            if self.preamble.length > MAX_EVENT {
                let failure =
                    Failure::new(Cause::EventTooLong, "The replica sends events, but no answer.");
                self.failure = Some(failure.clone());
                return Step::Retry(failure);
            }
            return Step::Hold;
        }
        let mut pieces = out;
        if !self.preamble.pieces.is_empty() {
            let mut all = Rope::default();
            std::mem::take(&mut self.preamble.pieces)
                .into_iter()
                .chain(pieces)
                .for_each(|p| all.push(p));
            pieces = all;
        }
        match &self.failure {
            Some(failure) => Step::Failed(pieces, failure.clone()),
            None => Step::Pass(pieces),
        }
    }

    /// Ends the stream and returns how it ended, with the bytes that still go out. If it fails
    /// before the commit, the request can be retried elsewhere.
    pub(crate) fn end(&mut self, now: Instant) -> (Rope, StreamEnd) {
        let mut out = Rope::default();
        self.take_last_chunk(&mut out);
        // An end mark counts even without its blank line; half an event is dropped.
        let rest = self.splitter.rest();
        let last = SseEvent::read(&rest);
        if self.failure.is_none() && last.data.is_some() {
            let facts = judge_event(self.api, &last);
            if facts.verdict == Verdict::End && self.is_resumed() {
                self.meter.record(&facts, now);
                (self.end_seen, self.preamble.committed) = (true, true);
            }
        }
        if self.end_seen && self.failure.is_none() {
            std::mem::take(&mut self.preamble.pieces).into_iter().for_each(|piece| out.push(piece));
            out.push(rest);
        }
        let end = match (&self.failure, self.end_seen, self.client_error) {
            (Some(failure), ..) => StreamEnd::Failed(failure.clone()),
            (None, _, Some(status)) => StreamEnd::Client(status),
            (None, true, None) => StreamEnd::Complete,
            (None, false, None) => {
                let message = "The replica's answer broke off.";
                StreamEnd::Failed(Failure::new(Cause::Truncated, message))
            }
        };
        (out, end)
    }

    /// A comment that keeps the client's connection alive.
    pub(crate) fn heartbeat(&self) -> Bytes {
        self.api.heartbeat(None)
    }

    /// The event that reports a failure to the client, with the end mark of its API.
    pub(crate) fn error_event(&self, status: u16, kind: &str, message: &str) -> Bytes {
        self.api.error_event(status, kind, message, self.events)
    }
}

#[cfg(test)]
mod end_tests;
#[cfg(test)]
mod hostile_seams;
#[cfg(test)]
mod seam_tests;
#[cfg(test)]
mod tests;
