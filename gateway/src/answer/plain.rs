//! A plain answer. It is kept back until it is complete, so that a failed request can be retried
//! elsewhere. An answer that is too long to keep is passed on as it comes.
//!
//! Pure: bytes come in as arguments.

use bytes::Bytes;
use http::StatusCode;

use crate::answer::abridged::{Abridged, is_cut};
use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::judge::{Verdict, is_failure, judge_plain};
use crate::answer::meter::Tokens;
use crate::text::rope::Rope;
use crate::wire::head::ResponseHead;

/// The facts about an answer's body that its head gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AnswerHead {
    pub(crate) status: StatusCode,
    /// The body is JSON, or has no content type.
    pub(crate) json: bool,
    /// A length or chunks mark the body's end, not only the end of the connection.
    pub(crate) framed: bool,
}

/// A plain answer while it arrives.
#[derive(Debug)]
pub(crate) struct PlainAnswer {
    api: Api,
    head: AnswerHead,
    bound: usize,
    held: Vec<Bytes>,
    held_len: usize,
    /// The short copy of an answer that is passed on.
    passed: Option<Abridged>,
}

/// How a plain answer ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PlainEnd {
    /// Answered. The body is empty if it has gone out already.
    Answered(Bytes, Tokens),
    /// The client's own error with its body.
    Client(Bytes),
    /// Not answered: the request can be retried elsewhere if nothing has gone out.
    Retry(Failure),
}

/// Whether this is the content type of an event stream.
pub(crate) fn is_event_stream(kind: Option<&[u8]>) -> bool {
    kind.is_some_and(|kind| kind.starts_with(b"text/event-stream"))
}

impl AnswerHead {
    /// The facts that a head with this content type gives.
    pub(crate) fn new(head: &ResponseHead, kind: Option<&[u8]>) -> Self {
        let json = kind.is_none_or(|kind| {
            let kind = kind.split(|byte| *byte == b';').next().unwrap_or_default();
            let kind = kind.trim_ascii();
            let end = kind.last_chunk::<5>().unwrap_or(b"     ");
            kind.eq_ignore_ascii_case(b"application/json") || end.eq_ignore_ascii_case(b"+json")
        });
        Self { status: head.status, json, framed: head.framed }
    }
}

impl PlainAnswer {
    /// Keeps back about `bound` bytes.
    pub(crate) fn new(api: Api, head: AnswerHead, bound: usize) -> Self {
        Self { api, head, bound, held: Vec::new(), held_len: 0, passed: None }
    }

    /// Takes the next bytes, and returns those that go out: none before `commit`.
    pub(crate) fn feed(&mut self, bytes: Bytes) -> Rope {
        if self.passed.is_some() {
            return self.pass([bytes]);
        }
        self.held_len += bytes.len();
        self.held.push(bytes);
        Rope::default()
    }

    /// Whether more is kept back than the bound allows.
    pub(crate) fn is_long(&self) -> bool {
        self.held_len > self.bound
    }

    /// Whether its status alone shows that it is a failure.
    pub(crate) fn is_failure(&self) -> bool {
        is_failure(self.head.status.as_u16())
    }

    /// Whether its status shows that the replica refuses the client's request.
    pub(crate) fn is_refusal(&self) -> bool {
        self.head.status.as_u16() >= 400 && !self.is_failure()
    }

    /// Stops keeping it back: everything that has come goes out.
    pub(crate) fn commit(&mut self) -> Rope {
        let held = std::mem::take(&mut self.held);
        self.pass(held)
    }

    fn pass(&mut self, pieces: impl IntoIterator<Item = Bytes>) -> Rope {
        let abridged = self.passed.get_or_insert_default();
        let mut out = Rope::default();
        for piece in pieces {
            if self.head.json {
                abridged.feed(&piece);
            }
            out.push(piece);
        }
        out
    }

    /// Judges the body, which is complete according to its framing.
    pub(crate) fn end(self) -> PlainEnd {
        let Self { api, head, held, passed, .. } = self;
        let body = match <[Bytes; 1]>::try_from(held) {
            Ok([only]) => only,
            Err(pieces) => Bytes::from(pieces.concat()),
        };
        let seen = passed.as_ref().map_or(&*body, Abridged::kept);
        let cut = || match &passed {
            Some(abridged) => abridged.is_open(),
            None if body.trim_ascii().is_empty() => !head.framed,
            None => is_cut(&body),
        };
        let facts = judge_plain(api, head.status.as_u16(), seen);
        match facts.verdict {
            Verdict::Failed(failure) => PlainEnd::Retry(failure),
            // Nothing could be read: it is not JSON, or half of it is missing.
            Verdict::Client(_) | Verdict::Preamble if head.json && cut() => {
                PlainEnd::Retry(cut_off(head.framed))
            }
            Verdict::Client(_) => PlainEnd::Client(body),
            _ => PlainEnd::Answered(body, Tokens::of_plain(&facts)),
        }
    }
}

/// The failure of JSON that is cut off. If the framing says that this is all, the connection is
/// sound: the replica, or a proxy before it, has lost the rest.
fn cut_off(framed: bool) -> Failure {
    let cause = if framed { Cause::Server } else { Cause::Truncated };
    Failure::new(cause, "The replica's answer ends in the middle of its JSON.")
}

#[cfg(test)]
mod tests;
