//! A plain answer: kept back until it is complete, so that a failure can be tried elsewhere, or
//! passed on as it comes where it is longer than is worth keeping.
//!
//! Pure: bytes come in as arguments.

use bytes::Bytes;
use http::{StatusCode, header, response};

use crate::answer::abridged::{Abridged, is_cut};
use crate::answer::api::Api;
use crate::answer::failure::{Cause, Failure};
use crate::answer::judge::{Verdict, is_failure, judge_plain};
use crate::answer::meter::Tokens;
use crate::text::rope::Pieces;

/// What an answer's head says of its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: StatusCode,
    /// It is JSON, or does not say what it is.
    pub(crate) json: bool,
    /// Its end is told by a length or by chunks, not by the connection's end alone.
    pub(crate) framed: bool,
}

/// A plain answer on its way.
#[derive(Debug)]
pub(crate) struct PlainAnswer {
    api: Api,
    head: Head,
    bound: usize,
    held: Vec<Bytes>,
    held_len: usize,
    /// What counts of an answer that is passed on.
    passed: Option<Abridged>,
}

/// How a plain answer ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plain {
    /// Answered: the body, or nothing where it has gone out.
    Answered(Bytes, Tokens),
    /// The client's own error with its body.
    Client(Bytes),
    /// Not answered at all: can be tried elsewhere where nothing has gone out.
    Retry(Failure),
}

impl Head {
    /// Before the headers that speak of the connection are taken out.
    pub(crate) fn of(head: &response::Parts) -> Self {
        let headers = &head.headers;
        let json = headers.get(header::CONTENT_TYPE).is_none_or(|kind| {
            let kind = kind.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default();
            let kind = kind.trim_ascii().to_ascii_lowercase();
            kind == b"application/json" || kind.ends_with(b"+json")
        });
        let empty = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        let framed = empty
            || headers.contains_key(header::CONTENT_LENGTH)
            || headers.contains_key(header::TRANSFER_ENCODING);
        Self { status: head.status, json, framed }
    }
}

impl PlainAnswer {
    /// Keeps back about `bound` bytes.
    pub(crate) fn new(api: Api, head: Head, bound: usize) -> Self {
        Self { api, head, bound, held: Vec::new(), held_len: 0, passed: None }
    }

    /// The next bytes; what comes back goes out, which is nothing before `commit`.
    pub(crate) fn feed(&mut self, bytes: Bytes) -> Pieces {
        if self.passed.is_some() {
            return self.pass([bytes]);
        }
        self.held_len += bytes.len();
        self.held.push(bytes);
        Pieces::default()
    }

    /// Whether more has come than is worth keeping.
    pub(crate) fn is_long(&self) -> bool {
        self.held_len > self.bound
    }

    /// Whether it can't be an answer, whatever else comes of it.
    pub(crate) fn is_failure(&self) -> bool {
        is_failure(self.head.status.as_u16())
    }

    /// Gives up keeping it back: what has come goes out.
    pub(crate) fn commit(&mut self) -> Pieces {
        let held = std::mem::take(&mut self.held);
        self.pass(held)
    }

    fn pass(&mut self, pieces: impl IntoIterator<Item = Bytes>) -> Pieces {
        let abridged = self.passed.get_or_insert_default();
        let mut out = Pieces::default();
        for piece in pieces {
            if self.head.json {
                abridged.feed(&piece);
            }
            out.push(piece);
        }
        out
    }

    /// The body is complete, as its framing says.
    pub(crate) fn end(self) -> Plain {
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
            Verdict::Failed(failure) => Plain::Retry(failure),
            // Nothing that could be read: either no JSON, or half of one.
            Verdict::Client(_) | Verdict::Hold if head.json && cut() => {
                Plain::Retry(cut_off(head.framed))
            }
            Verdict::Client(_) => Plain::Client(body),
            _ => Plain::Answered(body, Tokens::of_plain(&facts)),
        }
    }
}

/// JSON that ends in its middle. Where its framing says that this is all, the connection is sound:
/// the replica, or what is in front of it, has lost the rest.
fn cut_off(framed: bool) -> Failure {
    let cause = if framed { Cause::Server } else { Cause::Truncated };
    Failure::new(cause, "The replica's answer ends in the middle of its JSON.")
}

#[cfg(test)]
mod tests;
