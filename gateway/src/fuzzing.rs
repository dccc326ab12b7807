//! The entry points of the fuzz targets in `gateway/fuzz`. Other builds don't have this module.

#![allow(missing_docs, clippy::missing_panics_doc, reason = "for fuzz targets alone")]

use bytes::Bytes;
use forebay_scheduling::prompt::{BLOCK_BYTES, MAX_BLOCKS};
use http::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;

use crate::answer::abridged::is_cut;
use crate::answer::api::Api;
use crate::answer::meter::Tokens;
use crate::answer::plain::{AnswerHead, PlainAnswer, PlainEnd};
use crate::answer::stream::{AnswerStream, Step, StreamEnd};
use crate::edge::http1::echo::{Course, ours};
use crate::read::edit::{Edits, edit};
use crate::read::prompt::Owner;
use crate::read::scan::{Scan, scan, scan_contents};
use crate::wire::head::HeadReader;
use crate::wire::request::HeadLimits;

const APIS: [Api; 6] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Responses,
    Api::Messages,
    Api::AudioTranscriptions,
    Api::Embeddings,
];

/// The scan reads the same values as another JSON reader, and an edit changes nothing but its own
/// fields.
pub fn request(body: &[u8]) {
    let Ok(read) = scan(body) else { return };
    let hashed = scan_contents(body).expect("reading the contents refuses nothing more");
    let contents = hashed.contents.as_ref().expect("as asked for");
    let prompt = contents.prompt(Owner { tenant: "a", model: "b", user_is_session: true }, None);
    let full = prompt.bytes as usize / BLOCK_BYTES;
    // Each of the three parts may end in a part of a block.
    let least = full.saturating_sub(2).min(MAX_BLOCKS);
    assert!((least..=full).contains(&prompt.blocks.len()), "each full block has a hash");
    assert_eq!(Scan { contents: None, ..hashed }, read, "the other fields are the same");
    // Python also accepts `NaN` and lone surrogates, which serde refuses.
    let Ok(Value::Object(known)) = serde_json::from_slice::<Value>(body) else { return };
    let model = read.model.as_ref().map(|model| model.name.as_str());
    assert_eq!(model, known.get("model").and_then(Value::as_str), "the model's name");
    if let None | Some(Value::Null | Value::Bool(_)) = known.get("stream") {
        assert_eq!(read.stream, known.get("stream") == Some(&Value::Bool(true)), "stream");
    }
    let body = Bytes::copy_from_slice(body);
    let edits = Edits {
        model: Some("an \"other\""),
        ask_usage: true,
        drop_priority: true,
        ask_token_ids: true,
    };
    let edited: Vec<u8> =
        edit(&body, &read, &edits).body.into_iter().flat_map(|piece| piece.to_vec()).collect();
    let changed: Value = serde_json::from_slice(&edited).expect("still JSON");
    let again = scan(&edited).expect("still a request");
    assert!(again.priority.is_none(), "priority is out");
    for (name, value) in &known {
        match name.as_str() {
            "model" if model.is_some() => assert_eq!(changed[name], "an \"other\""),
            "priority" => assert!(changed.get(name).is_none()),
            "stream_options" | "return_token_ids" => {}
            _ => assert_eq!(&changed[name], value, "{name} is as it was"),
        }
    }
}

/// Two bytes choose the API and the size of the pieces. The rest is the stream, or a plain answer.
pub fn answer(input: &[u8]) {
    let [kind, cut, stream @ ..] = input else { return };
    let api = APIS[usize::from(kind & 0x7f) % APIS.len()];
    let strip = kind & 0x80 != 0;
    let whole = relay(api, strip, [stream].into_iter());
    let size = usize::from(*cut).max(1);
    let pieces = relay(api, strip, stream.chunks(size));
    assert_eq!(whole, pieces, "in pieces of {size}");
    assert_eq!(plain(api, stream.chunks(usize::MAX)), plain(api, stream.chunks(size)), "plain");
    let object = serde_json::from_slice::<Value>(stream).is_ok_and(|value| value.is_object());
    assert!(!(object && is_cut(stream)), "it is not cut");
}

/// The end of a plain answer that is passed on in these pieces.
fn plain<'a>(api: Api, pieces: impl Iterator<Item = &'a [u8]>) -> PlainEnd {
    let head = AnswerHead { status: StatusCode::OK, json: true, framed: true };
    let mut answer = PlainAnswer::new(api, head, 0);
    answer.commit();
    for piece in pieces {
        answer.feed(Bytes::copy_from_slice(piece));
    }
    answer.end()
}

#[derive(Debug, PartialEq)]
struct RelayResult {
    out: Vec<u8>,
    tokens: Tokens,
    /// As text, since `feed` or the end may report a failure.
    end: String,
}

fn relay<'a>(api: Api, strip: bool, pieces: impl Iterator<Item = &'a [u8]>) -> RelayResult {
    let (mut answer, now) = (AnswerStream::new(api, strip, None), Instant::now());
    if strip {
        answer.record_token_ids(true);
    }
    let mut out = Vec::new();
    let mut end = None;
    for piece in pieces {
        let (step, failure) = match answer.feed(Bytes::copy_from_slice(piece), now) {
            Step::Hold => continue,
            Step::Pass(pieces) => (Some(pieces), None),
            Step::Retry(failure) => (None, Some(failure)),
            Step::Failed(pieces, failure) => (Some(pieces), Some(failure)),
        };
        step.into_iter().flatten().for_each(|piece| out.extend_from_slice(&piece));
        if let Some(failure) = failure {
            end = Some(format!("{:?}", failure.cause));
            break;
        }
    }
    let (rest, ended) = answer.end(now);
    rest.into_iter().for_each(|piece| out.extend_from_slice(&piece));
    let end = end.unwrap_or_else(|| match ended {
        StreamEnd::Complete => "complete".to_owned(),
        StreamEnd::Client(status) => status.to_string(),
        StreamEnd::Failed(failure) => format!("{:?}", failure.cause),
    });
    RelayResult { out, tokens: answer.meter.tokens(), end }
}

/// One byte chooses the method and the size of the pieces. The rest is a replica's response.
pub fn response(input: &[u8]) {
    let [kind, response @ ..] = input else { return };
    let method = if kind & 0x80 == 0 { Method::POST } else { Method::HEAD };
    let size = usize::from(kind & 0x7f).max(1);
    // A head in pieces is read at the end of a line.
    let response = [response, b"\n"].concat();
    let whole = read_response(&method, response.chunks(usize::MAX));
    assert_eq!(whole, read_response(&method, response.chunks(size)), "in pieces of {size}");
}

/// The head of a response, its body, and its end.
fn read_response<'a>(
    method: &Method,
    mut pieces: impl Iterator<Item = &'a [u8]>,
) -> (String, Vec<u8>, String) {
    let mut reader = HeadReader::default();
    let mut start = loop {
        let Some(piece) = pieces.next() else { return Default::default() };
        match reader.feed(piece, method) {
            Ok(None) => {}
            Ok(Some(start)) => break start,
            Err(error) => return (format!("{error:?}"), Vec::new(), String::new()),
        }
    };
    let head = format!("{:?} {:?} {}", start.head.status, start.head.headers, start.keep_alive);
    let mut data = Vec::new();
    loop {
        data.extend(start.body.take().unwrap_or_default());
        if let Some(error) = start.body.take_error() {
            return (head, data, format!("{error:?}"));
        }
        let Some(piece) = pieces.next() else { break };
        start.body.feed(piece);
    }
    let end = format!("complete: {}, excess: {}", start.body.is_over(), start.body.has_excess());
    (head, data, end)
}

/// One byte chooses the size of the pieces. The rest is what a client sends on one connection.
pub fn connection(input: &[u8]) {
    let [kind, sent @ ..] = input else { return };
    let size = usize::from(kind & 0x7f).max(1);
    // A head in pieces is looked at where it may end.
    let sent = [sent, b"\r\n\r\n"].concat();
    let limits = HeadLimits { bytes: 8 << 10, headers: 50 };
    let course = |size| ours(&sent.chunks(size).collect::<Vec<_>>(), true, limits, false);
    let (whole, pieces) = (course(usize::MAX), course(size));
    // How much of an unwanted body is there to be passed over depends on the cuts, and so does the
    // part of a body that is read before the server finds that it is not valid.
    let depends = |course: &Course| {
        course.seen.iter().any(|seen| seen.path == "/unread" || seen.body.is_none())
    };
    if !depends(&whole) && !depends(&pieces) {
        assert_eq!(whole.seen, pieces.seen, "in pieces of {size}");
        assert_eq!(dateless(&whole.out), dateless(&pieces.out), "in pieces of {size}");
    }
}

/// Answers without the second in which they were written.
fn dateless(out: &[u8]) -> Vec<&[u8]> {
    out.split(|byte| *byte == b'\n').filter(|line| !line.starts_with(b"date: ")).collect()
}
