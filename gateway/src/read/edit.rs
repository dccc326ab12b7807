//! Changes single places of a request's body and leaves every other byte as the client sent it.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use crate::read::scan::{Flag, Layout, Scan, StreamOptions};
use crate::text::json::Lax;
use crate::text::rope::Rope;

/// The changes to make.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Edits<'a> {
    /// The name by which the replicas know the model.
    pub(crate) model: Option<&'a str>,
    /// Ask vLLM for exact usage. If the client does not ask for it, the usage chunk is taken out of
    /// the answer again.
    pub(crate) ask_usage: bool,
    /// Take out `priority`, by which any client could jump the queue.
    pub(crate) drop_priority: bool,
    /// Ask vLLM for the ids of all tokens of a stream. If the client does not ask for them, they are
    /// taken out of the answer again.
    pub(crate) ask_token_ids: bool,
}

/// A body after its edits.
#[derive(Debug)]
pub(crate) struct EditedBody {
    /// Slices of the body as it came, with the changes between them.
    pub(crate) body: Rope,
    /// The gateway alone asked for usage.
    pub(crate) strip_usage: bool,
    /// Who asked for the ids of the tokens.
    pub(crate) token_ids: Asked,
}

/// Who asks a replica for something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Asked {
    #[default]
    No,
    /// The client, and so it sees the answer.
    Client,
    /// The gateway alone.
    Gateway,
}

type Patch<'a> = (Range<usize>, Cow<'a, str>);

/// Applies `edits` to the body that `scan` was read from.
pub(crate) fn edit(body: &Bytes, scan: &Scan, edits: &Edits<'_>) -> EditedBody {
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
    // Without `stream`, vLLM answers `stream_options` with a 400; plain answers have usage anyway.
    let strip_usage = edits.ask_usage && scan.stream && ask_usage(scan, left, &mut patches);
    let token_ids = match edits.ask_token_ids && scan.stream {
        true => ask_token_ids(scan, left, &mut patches),
        false => Asked::No,
    };
    EditedBody { body: apply(body, patches), strip_usage, token_ids }
}

/// Asks for the ids of all tokens.
fn ask_token_ids(scan: &Scan, left: usize, patches: &mut Vec<Patch<'_>>) -> Asked {
    const IDS: &str = r#""return_token_ids":true"#;
    let Layout::Json { open, .. } = scan.layout else { return Asked::No };
    match &scan.return_token_ids {
        Some(Flag { value: Lax::Value(true), .. }) => return Asked::Client,
        // vLLM refuses it.
        Some(Flag { value: Lax::Invalid, .. }) => return Asked::No,
        Some(flag) => patches.push((flag.at.clone(), "true".into())),
        None => patches.push((open..open, inserted(IDS, left))),
    }
    Asked::Gateway
}

/// The text of a member that is put before `members` others.
fn inserted(text: &str, members: usize) -> Cow<'static, str> {
    match members {
        0 => text.to_owned().into(),
        _ => format!("{text},").into(),
    }
}

/// Asks for usage. Returns whether that took a change.
fn ask_usage(scan: &Scan, left: usize, patches: &mut Vec<Patch<'_>>) -> bool {
    const OPTIONS: &str = r#""stream_options":{"include_usage":true}"#;
    const USAGE: &str = r#""include_usage":true"#;
    let Layout::Json { open, .. } = scan.layout else { return false };
    match &scan.stream_options {
        StreamOptions::Absent => patches.push((open..open, inserted(OPTIONS, left))),
        StreamOptions::Null(at) => patches.push((at.clone(), format!("{{{USAGE}}}").into())),
        // The client asks for it, or the value is left for vLLM to refuse.
        StreamOptions::Object { include_usage: Some(flag), .. }
            if matches!(flag.value, Lax::Value(true) | Lax::Invalid) =>
        {
            return false;
        }
        StreamOptions::Object { open, members, include_usage, continuous } => {
            match include_usage {
                Some(flag) => patches.push((flag.at.clone(), "true".into())),
                None => patches.push((*open..*open, inserted(USAGE, *members))),
            }
            // Without `include_usage` this flag has no effect, and the edit must not give it one.
            if let Some(flag) = continuous.as_ref().filter(|flag| flag.is_true()) {
                patches.push((flag.at.clone(), "false".into()));
            }
        }
        StreamOptions::Other => return false,
    }
    true
}

/// Puts the new text between slices of the body: nothing of the body is copied.
fn apply(body: &Bytes, mut patches: Vec<Patch<'_>>) -> Rope {
    patches.sort_by_key(|(at, _)| (at.start, at.end));
    let (mut out, mut from) = (Rope::default(), 0);
    for (at, text) in patches {
        out.push(body.slice(from..at.start));
        out.push(Bytes::from(text.into_owned()));
        from = at.end;
    }
    out.push(body.slice(from..));
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read::multipart::scan_form;
    use crate::read::scan::scan;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn edited(body: &str, edits: Edits<'_>) -> (String, bool) {
        let bytes = Bytes::copy_from_slice(body.as_bytes());
        let edited = edit(&bytes, &scan(&bytes).expect(body), &edits);
        (String::from_utf8(edited.body.flatten().collect()).expect("text"), edited.strip_usage)
    }

    #[test]
    fn usage_is_asked_for_by_the_smallest_change() {
        for (body, want, strip) in [
            (
                r#"{ "stream":true }"#,
                r#"{"stream_options":{"include_usage":true}, "stream":true }"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true}}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options": null}"#,
                r#"{"stream":true,"stream_options": {"include_usage":true}}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{"x":1,"include_usage" : false}}"#,
                r#"{"stream":true,"stream_options":{"x":1,"include_usage" : true}}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":true}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":false}}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":1,"include_usage":null}}"#,
                r#"{"stream":true,"stream_options":{"continuous_usage_stats":false,"include_usage":true}}"#,
                true,
            ),
            (
                r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#,
                r#"{"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}"#,
                false,
            ),
            (
                r#"{"stream":true,"stream_options":7}"#,
                r#"{"stream":true,"stream_options":7}"#,
                false,
            ),
            (r#"{"stream":false}"#, r#"{"stream":false}"#, false),
        ] {
            let edits = Edits { ask_usage: true, ..Edits::default() };
            assert_eq!(edited(body, edits), (want.to_owned(), strip), "{body}");
        }
    }

    #[test]
    fn token_ids_are_asked_for_by_the_smallest_change() {
        let ids = Edits { ask_token_ids: true, ..Edits::default() };
        for (body, want, asked) in [
            (r#"{ "stream":true}"#, r#"{"return_token_ids":true, "stream":true}"#, Asked::Gateway),
            (
                r#"{"stream":true,"return_token_ids": false}"#,
                r#"{"stream":true,"return_token_ids": true}"#,
                Asked::Gateway,
            ),
            (
                r#"{"return_token_ids":null,"stream":true}"#,
                r#"{"return_token_ids":true,"stream":true}"#,
                Asked::Gateway,
            ),
            (
                r#"{"return_token_ids":true,"stream":true}"#,
                r#"{"return_token_ids":true,"stream":true}"#,
                Asked::Client,
            ),
            (
                r#"{"return_token_ids":7,"stream":true}"#,
                r#"{"return_token_ids":7,"stream":true}"#,
                Asked::No,
            ),
            (r#"{"stream":false}"#, r#"{"stream":false}"#, Asked::No),
        ] {
            let bytes = Bytes::copy_from_slice(body.as_bytes());
            let edited = edit(&bytes, &scan(&bytes).expect(body), &ids);
            assert_eq!(edited.body.flatten().collect::<Vec<u8>>(), want.as_bytes(), "{body}");
            assert_eq!(edited.token_ids, asked, "{body}");
        }
        let both = Edits { ask_usage: true, ask_token_ids: true, ..Edits::default() };
        let want =
            r#"{"stream_options":{"include_usage":true},"return_token_ids":true,"stream":true}"#;
        assert_eq!(edited(r#"{"stream":true}"#, both), (want.to_owned(), true));
    }

    #[test]
    fn edits_combine_and_leave_the_rest_as_it_was() {
        let edits = Edits {
            model: Some("b\"ä"),
            ask_usage: true,
            drop_priority: true,
            ask_token_ids: false,
        };
        for (body, want) in [
            (
                "{\"model\" : \"a\" ,\n \"x\":[1.0,1e2,\"\\u00e4\"], \"stream\":true,\"priority\":-3}",
                "{\"stream_options\":{\"include_usage\":true},\"model\" : \"b\\\"ä\" ,\n \"x\":[1.0,1e2,\"\\u00e4\"], \"stream\":true}",
            ),
            (
                r#"{"priority":1,"stream":true,"model":"a"}"#,
                r#"{"stream_options":{"include_usage":true},"stream":true,"model":"b\"ä"}"#,
            ),
            (r#"{"priority":1}"#, "{}"),
            (r#"{"a":1,"priority":1}"#, r#"{"a":1}"#),
        ] {
            assert_eq!(edited(body, edits).0, want, "{body}");
        }
    }

    #[test]
    fn a_body_without_edits_is_not_copied() {
        let body = Bytes::from_static(br#"{"model":"a","stream":true}"#);
        let scan = scan(&body).expect("valid");
        let edits = Edits { model: Some("a"), drop_priority: true, ..Edits::default() };
        let same = edit(&body, &scan, &edits);
        let pieces: Vec<_> = same.body.collect();
        assert_eq!((pieces.len(), pieces[0].as_ptr()), (1, body.as_ptr()));
        assert_eq!(pieces[0].len(), body.len());
        assert!(!same.strip_usage);
    }

    #[test]
    fn a_forms_model_is_replaced_without_quotes() {
        let form =
            "--X\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nalias\r\n--X--\r\n";
        let body = Bytes::from_static(form.as_bytes());
        let scan = scan_form(&body, "multipart/form-data; boundary=X").expect("valid");
        let edits = Edits {
            model: Some("whisper"),
            ask_usage: true,
            drop_priority: true,
            ask_token_ids: true,
        };
        let edited = edit(&body, &scan, &edits).body.flatten().collect::<Vec<u8>>();
        assert_eq!(edited, form.replace("alias", "whisper").as_bytes());
    }

    proptest! {
        #[test]
        fn an_edited_body_differs_only_by_the_edits(
            others in prop::collection::btree_map("[a-f]{1,3}", any::<String>(), 0..5),
            options in prop_oneof![
                Just(None),
                Just(Some(json!({}))),
                Just(Some(json!({"x": 1, "include_usage": false}))),
            ],
            priority: Option<i32>,
            at in any::<prop::sample::Index>(),
            pretty: bool,
        ) {
            let mut members: Vec<(String, Value)> =
                others.into_iter().map(|(key, value)| (key, value.into())).collect();
            members.push(("model".into(), "a".into()));
            members.push(("stream".into(), true.into()));
            members.extend(options.map(|options| ("stream_options".into(), options)));
            members.extend(priority.map(|priority| ("priority".into(), priority.into())));
            let mid = at.index(members.len());
            members.rotate_left(mid);
            let space = if pretty { "\n  " } else { "" };
            let texts: Vec<String> =
                members.iter().map(|(key, value)| format!("{space}\"{key}\":{space}{value}{space}")).collect();
            let body = format!("{{{}}}", texts.join(","));

            let edits = Edits {
                model: Some("b"),
                ask_usage: true,
                drop_priority: true,
                ask_token_ids: true,
            };
            let (out, strip) = edited(&body, edits);
            let mut want: Value = serde_json::from_str(&body).expect("valid");
            want["model"] = "b".into();
            want["stream_options"]["include_usage"] = true.into();
            want["return_token_ids"] = true.into();
            want.as_object_mut().expect("an object").remove("priority");
            let got: Value = serde_json::from_str(&out).expect("an edited body is valid");
            prop_assert_eq!(got, want);
            prop_assert!(strip);
        }
    }
}
