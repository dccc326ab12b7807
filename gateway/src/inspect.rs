//! The readers of foreign bytes, for benchmarks. This is not a public interface.

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use crate::answer::api::Api;
use crate::answer::plain::{AnswerHead, PlainAnswer, PlainEnd};
use crate::answer::stream::{AnswerStream, Step};
use crate::read::edit::{Edits, edit};
use crate::read::multipart::scan_form;
use crate::read::prompt::Owner;
use crate::read::scan::{Scan, scan, scan_contents};

/// Reads a JSON body as a request and makes every edit. Returns the length of the body for the
/// replica; `None` if the body is refused.
#[must_use]
pub fn request(body: &Bytes) -> Option<usize> {
    Some(edited_length(body, &scan(body).ok()?))
}

/// The same, with the hashes of the prompt's blocks. Returns their number too.
#[must_use]
pub fn hashed_request(body: &Bytes) -> Option<(usize, usize)> {
    let scan = scan_contents(body).ok()?;
    let owner = Owner { tenant: "anonymous", model: "another", user_is_session: false };
    let prompt = scan.contents.as_ref()?.prompt(owner, None);
    Some((edited_length(body, &scan), prompt.blocks.len()))
}

fn edited_length(body: &Bytes, scan: &Scan) -> usize {
    let edits =
        Edits { model: Some("another"), ask_usage: true, drop_priority: true, ask_token_ids: true };
    edit(body, scan, &edits).body.len()
}

/// Reads a form with the boundary `X`. False if it is refused.
#[must_use]
pub fn form(body: &[u8]) -> bool {
    scan_form(body, "multipart/form-data; boundary=X").is_ok()
}

/// Passes a plain answer of the API at `path` on, in these pieces, and returns its tokens: prompt
/// and generated. `None` if there is no such API, or the pieces are not an answer.
#[must_use]
pub fn plain(path: &str, pieces: impl IntoIterator<Item = Bytes>) -> Option<(Option<u64>, u64)> {
    let head = AnswerHead { status: StatusCode::OK, json: true, framed: true };
    let mut answer = PlainAnswer::new(Api::of(path)?, head, 0);
    answer.commit();
    for piece in pieces {
        answer.feed(piece);
    }
    match answer.end() {
        PlainEnd::Answered(_, tokens) => Some((tokens.prompt, tokens.generated)),
        PlainEnd::Client(_) | PlainEnd::Retry(_) => None,
    }
}

/// Relays a stream of the API at `path`, in these pieces. Returns the bytes for the client and the
/// generated tokens; `None` if there is no such API.
#[must_use]
pub fn stream(path: &str, pieces: impl IntoIterator<Item = Bytes>) -> Option<(usize, u64)> {
    let mut answer = AnswerStream::new(Api::of(path)?, true, None);
    let (mut out, now) = (0, Instant::now());
    for piece in pieces {
        match answer.feed(piece, now) {
            Step::Pass(pieces) => out += pieces.len(),
            Step::Failed(pieces, _) => {
                out += pieces.len();
                break;
            }
            Step::Hold => {}
            Step::Retry(_) => break,
        }
    }
    let (rest, _) = answer.end(now);
    Some((out + rest.len(), answer.meter.tokens().generated))
}
