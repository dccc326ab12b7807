//! The readers of foreign bytes, for benchmarks and fuzzing: not an interface.

use bytes::Bytes;
use http::StatusCode;
use tokio::time::Instant;

use crate::answer::api::Api;
use crate::answer::plain::{Head, Plain, PlainAnswer};
use crate::answer::stream::{AnswerStream, Step};
use crate::read::edit::{Edits, edit};
use crate::read::multipart::scan_form;
use crate::read::scan::scan;

/// Reads a JSON body as a request and edits all that can be edited. The length of what goes on to a
/// replica; `None` where the body is refused.
#[must_use]
pub fn request(body: &Bytes) -> Option<usize> {
    let scan = scan(body).ok()?;
    let edits = Edits { model: Some("another"), ask_usage: true, drop_priority: true };
    Some(edit(body, &scan, &edits).body.len())
}

/// Reads a form with the boundary `X`.
#[must_use]
pub fn form(body: &[u8]) -> bool {
    scan_form(body, "multipart/form-data; boundary=X").is_ok()
}

/// Passes a plain answer of the API at `path` on, cut as it comes, and counts its tokens: prompt and
/// generated. `None` where there is no such API, or no answer in it.
#[must_use]
pub fn plain(path: &str, pieces: impl IntoIterator<Item = Bytes>) -> Option<(Option<u64>, u64)> {
    let head = Head { status: StatusCode::OK, json: true, framed: true };
    let mut answer = PlainAnswer::new(Api::of(path)?, head, 0);
    answer.commit();
    for piece in pieces {
        answer.feed(piece);
    }
    match answer.end() {
        Plain::Answered(_, tokens) => Some((tokens.prompt, tokens.generated)),
        Plain::Client(_) | Plain::Retry(_) => None,
    }
}

/// Relays a stream of the API at `path`, cut as it comes. What went out, and the generated tokens;
/// `None` where there is no such API.
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
