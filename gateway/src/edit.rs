//! Changes single places of a request's body and leaves every other byte as the client sent it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use crate::scan::{Layout, Scan, StreamOptions};

/// What is to be changed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edits<'a> {
    /// The name that the replicas know the model by.
    pub(crate) model: Option<&'a str>,
    /// Ask the server for exact usage; the chunk that the client did not ask for is taken out of
    /// the answer again.
    pub(crate) ask_usage: bool,
    /// Take out `priority`, which would let any client go first.
    pub(crate) drop_priority: bool,
}

/// A body after its edits.
#[derive(Debug)]
pub(crate) struct Edited {
    /// The very bytes that came in, where nothing had to be changed.
    pub(crate) body: Bytes,
    /// Usage is asked for by us alone.
    pub(crate) strip_usage: bool,
}

type Patch<'a> = (Range<usize>, Cow<'a, str>);

/// Applies `edits` to the body that `scan` was read from.
pub(crate) fn edit(body: &Bytes, scan: &Scan, edits: &Edits<'_>) -> Edited {
    let mut patches: Vec<Patch<'_>> = Vec::new();
    let mut left = match scan.layout {
        Layout::Json { members, .. } => members,
        Layout::Form => 0,
    };
    if let (Some(name), Some(model)) = (edits.model, &scan.model)
        && name != model.name
    {
        let value = match scan.layout {
            Layout::Json { .. } => serde_json::Value::from(name).to_string().into(),
            Layout::Form => name.into(),
        };
        patches.push((model.at.clone(), value));
    }
    if let (true, Some(at)) = (edits.drop_priority, &scan.priority) {
        patches.push((at.clone(), "".into()));
        left -= 1;
    }
    // Without `stream` vLLM answers options with a 400, and plain answers have usage anyway.
    let strip_usage = edits.ask_usage && scan.stream && ask_usage(scan, left, &mut patches);
    Edited { body: apply(body, patches), strip_usage }
}

/// Whether asking for usage took a change.
fn ask_usage(scan: &Scan, left: usize, patches: &mut Vec<Patch<'_>>) -> bool {
    const OPTIONS: &str = r#""stream_options":{"include_usage":true}"#;
    const USAGE: &str = r#""include_usage":true"#;
    let Layout::Json { open, .. } = scan.layout else { return false };
    let inserted = |text: &str, members: usize| match members {
        0 => text.to_owned().into(),
        _ => format!("{text},").into(),
    };
    match &scan.stream_options {
        StreamOptions::Absent => patches.push((open..open, inserted(OPTIONS, left))),
        StreamOptions::Null(at) => patches.push((at.clone(), format!("{{{USAGE}}}").into())),
        StreamOptions::Object { include_usage: Some(flag), .. } if flag.is_true() => return false,
        StreamOptions::Object { open, members, include_usage, continuous } => {
            match include_usage {
                Some(flag) => patches.push((flag.at.clone(), "true".into())),
                None => patches.push((*open..*open, inserted(USAGE, *members))),
            }
            // It has no effect without `include_usage`, and must not gain one by our asking.
            if let Some(flag) = continuous.as_ref().filter(|flag| flag.is_true()) {
                let value = if flag.at.is_empty() { "false,\"\":" } else { "false" };
                patches.push((flag.at.clone(), value.into()));
            }
        }
        StreamOptions::Other => return false,
    }
    true
}

fn apply(body: &Bytes, mut patches: Vec<Patch<'_>>) -> Bytes {
    if patches.is_empty() {
        return body.clone();
    }
    patches.sort_by_key(|(at, _)| at.start);
    let added: usize = patches.iter().map(|(_, text)| text.len()).sum();
    let mut out = BytesMut::with_capacity(body.len() + added);
    let mut from = 0;
    for (at, text) in patches {
        out.extend_from_slice(&body[from..at.start]);
        out.extend_from_slice(text.as_bytes());
        from = at.end;
    }
    out.extend_from_slice(&body[from..]);
    out.freeze()
}
