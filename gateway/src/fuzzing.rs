//! What the fuzz targets of `gateway/fuzz` call; there is no such module in other builds.

#![allow(missing_docs, clippy::missing_panics_doc, reason = "for fuzz targets alone")]

use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use crate::answer::abridged::is_cut;
use crate::answer::api::Api;
use crate::answer::meter::Tokens;
use crate::answer::plain::{Head, Plain, PlainAnswer};
use crate::answer::stream::{AnswerStream, End, Step};
use crate::read::edit::{Edits, edit};
use crate::read::scan::scan;

const APIS: [Api; 6] = [
    Api::ChatCompletions,
    Api::Completions,
    Api::Responses,
    Api::Messages,
    Api::AudioTranscriptions,
    Api::Embeddings,
];

/// What is read is what another reader reads; an edit changes what it is meant to, and no more.
pub fn request(body: &[u8]) {
    let Ok(read) = scan(body) else { return };
    // Python takes what serde does not, `NaN` and lone surrogates among it.
    let Ok(Value::Object(known)) = serde_json::from_slice::<Value>(body) else { return };
    let model = read.model.as_ref().map(|model| model.name.as_str());
    assert_eq!(model, known.get("model").and_then(Value::as_str), "the model's name");
    if let None | Some(Value::Null | Value::Bool(_)) = known.get("stream") {
        assert_eq!(read.stream, known.get("stream") == Some(&Value::Bool(true)), "stream");
    }
    let body = Bytes::copy_from_slice(body);
    let edits = Edits { model: Some("an \"other\""), ask_usage: true, drop_priority: true };
    let edited: Vec<u8> =
        edit(&body, &read, &edits).body.into_iter().flat_map(|piece| piece.to_vec()).collect();
    let changed: Value = serde_json::from_slice(&edited).expect("still JSON");
    let again = scan(&edited).expect("still a request");
    assert!(again.priority.is_none(), "priority is out");
    for (name, value) in &known {
        match name.as_str() {
            "model" if model.is_some() => assert_eq!(changed[name], "an \"other\""),
            "priority" => assert!(changed.get(name).is_none()),
            "stream_options" => {}
            _ => assert_eq!(&changed[name], value, "{name} is as it was"),
        }
    }
}

/// Two bytes say which API and how it is cut; the rest is the stream, or a plain answer.
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
    assert!(!(object && is_cut(stream)), "it is whole");
}

/// The same as a plain answer that is passed on as it comes.
fn plain<'a>(api: Api, pieces: impl Iterator<Item = &'a [u8]>) -> Plain {
    let head = Head { status: StatusCode::OK, json: true, framed: true };
    let mut answer = PlainAnswer::new(api, head, 0);
    answer.commit();
    for piece in pieces {
        answer.feed(Bytes::copy_from_slice(piece));
    }
    answer.end()
}

#[derive(Debug, PartialEq)]
struct Went {
    out: Vec<u8>,
    tokens: Tokens,
    /// In words, since a failure may be told by `feed` or by the end.
    end: String,
}

fn relay<'a>(api: Api, strip: bool, pieces: impl Iterator<Item = &'a [u8]>) -> Went {
    let (mut answer, now) = (AnswerStream::new(api, strip, None), Instant::now());
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
        End::Complete => "complete".to_owned(),
        End::Client(status) => status.to_string(),
        End::Failed(failure) => format!("{:?}", failure.cause),
    });
    Went { out, tokens: answer.meter.tokens(), end }
}
