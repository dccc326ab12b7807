use super::*;
use proptest::prelude::*;
use serde_json::{Value, json};

mod verdicts;

fn text<'a>(body: &'a str, range: &Option<Range<usize>>) -> Option<&'a str> {
    range.clone().map(|range| &body[range])
}

#[test]
fn only_top_level_fields_are_read_with_their_places() {
    let body = r#" {"x":{"model":"no","stream":true},"y":["model"],
        "mod\u0065l" : "a\u0062\n" ,"stream":true,"max_tokens":7,"n":2,
        "priority" : 3 , "messages":[{"role":"user","content":"}\"]"}]}"#;
    let scan = scan(body.as_bytes()).expect("valid");
    let model = scan.model.clone().expect("a model");
    assert_eq!((model.name.as_str(), &body[model.at]), ("ab\n", r#""a\u0062\n""#));
    assert!(scan.stream);
    assert_eq!((scan.max_tokens, scan.n), (Some(7), Some(2)));
    assert_eq!(text(body, &scan.priority), Some(r#""priority" : 3 ,"#));
    assert_eq!(text(body, &scan.prompt), Some(r#"[{"role":"user","content":"}\"]"}]"#));
    assert_eq!(scan.layout, Layout::Json { open: 2, members: 8 });
    assert_eq!(scan.lead(body.as_bytes(), 8), br#"[{"role""#);
    assert_eq!(scan.prompt_tokens(body.len()), 8);
}

#[test]
fn null_counts_as_absent() {
    let body = r#"{"model":null,"stream":null,"max_tokens":null,"stream_options":null}"#;
    let read = scan(body.as_bytes()).expect("valid");
    assert_eq!((read.model, read.stream, read.max_tokens), (None, false, None));
    assert!(matches!(read.stream_options, StreamOptions::Null(at) if &body[at.clone()] == "null"));
}

#[test]
fn a_request_for_bytes_is_known_by_its_encoding_format() {
    for (body, want) in [
        (r#"{"encoding_format":"bytes"}"#, true),
        (r#"{"encoding_format":"bytes_only"}"#, true),
        (r#"{"encoding_\u0066ormat":"byt\u0065s"}"#, true),
        (r#"{"encoding_format":"base64"}"#, false),
        (r#"{"encoding_format":null}"#, false),
        (r#"{"encoding_format":["bytes"]}"#, false),
        (r#"{"x":{"encoding_format":"bytes"}}"#, false),
        ("{}", false),
    ] {
        assert_eq!(scan(body.as_bytes()).expect(body).wants_bytes, want, "{body}");
    }
    let twice = br#"{"encoding_format":"float","encoding_format":"bytes"}"#;
    assert_eq!(scan(twice), Err(ScanError::Duplicate("encoding_format")));
}

#[test]
fn a_request_for_usage_is_read_as_vllm_reads_it() {
    for (options, want) in [
        (r#"{"include_usage":true}"#, true),
        (r#"{"include_\u0075sage" : true}"#, true),
        (r#"{"include_usage":false}"#, false),
        (r#"{"include_usage":null}"#, false),
        (r#"{"include_usage":1}"#, true),
        (r#"{"continuous_usage_stats":true}"#, false),
        ("{}", false),
        ("null", false),
        ("7", true),
    ] {
        let body = format!(r#"{{"stream":true,"stream_options":{options}}}"#);
        let asked = match scan(body.as_bytes()).expect(options).stream_options {
            StreamOptions::Object { include_usage: Some(flag), .. } => flag.is_true(),
            // vLLM refuses these, so the body is left as it is.
            StreamOptions::Other => true,
            _ => false,
        };
        assert_eq!(asked, want, "{options}");
    }
}

#[test]
fn the_newer_name_for_the_token_limit_wins() {
    for (body, want) in [
        (r#"{"max_tokens":5,"max_completion_tokens":9}"#, Some(9)),
        (r#"{"max_tokens":5,"max_completion_tokens":null}"#, Some(5)),
        (r#"{"max_output_tokens":3.0}"#, Some(3)),
        (r#"{"max_tokens":"many"}"#, None),
    ] {
        assert_eq!(scan(body.as_bytes()).expect(body).max_tokens, want, "{body}");
    }
}

#[test]
fn bodies_that_two_readers_could_read_differently_are_refused() {
    let duplicate = ScanError::Duplicate;
    let wrong = |field, want| ScanError::WrongType { field, want };
    let broken = |at, why| ScanError::Broken(JsonError { at, why });
    for (body, want) in [
        (r#"{"model":"a","model":"b"}"#, duplicate("model")),
        (r#"{"model":null,"mod\u0065l":"b"}"#, duplicate("model")),
        (r#"{"stream":true,"stream":true}"#, duplicate("stream")),
        (r#"{"messages":[],"messages":[]}"#, duplicate("messages")),
        (r#"{"priority":1,"priority":1}"#, duplicate("priority")),
        (r#"{"n":"x","n":1}"#, duplicate("n")),
        (
            r#"{"stream_options":{"include_usage":true,"include_usage":true}}"#,
            duplicate("stream_options.include_usage"),
        ),
        (r#"{"model":1}"#, wrong("model", "a string")),
        (r#"{"model":"\ud800"}"#, wrong("model", "a string")),
        ("[1]", ScanError::NotAnObject),
        ("7", ScanError::NotAnObject),
        ("", ScanError::Empty),
        (" \n", ScanError::Empty),
        (r#"{"model":"#, broken(9, "Expecting value")),
        (r#"{"model":"a"} x"#, broken(14, "Extra data")),
        (r#"{"model":"a",}"#, broken(13, "Expecting property name enclosed in double quotes")),
        ("[1", broken(2, "Expecting ',' delimiter")),
    ] {
        assert_eq!(scan(body.as_bytes()), Err(want), "{body}");
    }
    assert_eq!(scan(b"{\"a\":\"\xff\"}"), Err(ScanError::NotUtf8(6)));
    let message = scan(br#"{"model":"#).expect_err("broken").to_string();
    assert_eq!(message, "The request body is not valid JSON: Expecting value at byte 9.");
}

#[test]
fn bodies_that_python_accepts_are_accepted() {
    for body in ["\u{feff}{\"model\":\"a\"}", r#"{"model":"a","t":NaN,"u":-Infinity,"\ud800":1}"#] {
        let model = scan(body.as_bytes()).expect(body).model.expect("a model");
        assert_eq!((model.name.as_str(), &body[model.at]), ("a", "\"a\""));
    }
}

#[test]
fn priority_is_cut_out_with_the_right_comma() {
    for (body, want) in [
        (r#"{"priority":1}"#, r#""priority":1"#),
        (r#"{"priority":1,"a":2}"#, r#""priority":1,"#),
        (r#"{"a":2,"priority":1}"#, r#","priority":1"#),
        (r#"{"a":2 , "priority":1 }"#, r#", "priority":1"#),
    ] {
        assert_eq!(text(body, &scan(body.as_bytes()).expect(body).priority), Some(want), "{body}");
    }
}

/// Objects with the known fields among others, each at most once.
fn requests() -> impl Strategy<Value = Value> {
    let key = prop_oneof![
        Just("model".to_owned()),
        Just("stream".to_owned()),
        Just("max_tokens".to_owned()),
        Just("n".to_owned()),
        Just("messages".to_owned()),
        any::<String>(),
    ];
    let value = prop_oneof![
        any::<String>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<u32>().prop_map(Value::from),
        Just(Value::Null),
        prop::collection::vec(any::<String>(), 0..4).prop_map(Value::from),
        any::<String>().prop_map(|text| json!({"model": text, "stream": true, text: [{}]})),
    ];
    prop::collection::vec((key, value), 0..8)
        .prop_map(|members| Value::Object(members.into_iter().collect()))
}

proptest! {
    #[test]
    fn the_scan_reads_the_same_as_serde(request in requests(), pretty: bool) {
        let write = if pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
        let body = write(&request).expect("plain data");
        let sound = matches!(request["model"], Value::Null | Value::String(_));
        match scan(&body) {
            Ok(read) => {
                prop_assert!(sound);
                let model = read.model.map(|model| model.name);
                prop_assert_eq!(model.as_deref(), request["model"].as_str());
                if let Value::Null | Value::Bool(_) = request["stream"] {
                    prop_assert_eq!(read.stream, request["stream"].as_bool().unwrap_or(false));
                }
                if request["n"].is_u64() {
                    prop_assert_eq!(read.n, request["n"].as_u64());
                }
                if let (Some(prompt), Some(want)) = (read.prompt, request.get("messages")) {
                    let prompt: Value = serde_json::from_slice(&body[prompt]).expect("valid");
                    prop_assert_eq!(&prompt, want);
                }
            }
            Err(ScanError::WrongType { .. }) => prop_assert!(!sound),
            Err(other) => prop_assert!(false, "{other}"),
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(body in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(read) = scan(&body) {
            let tree: Value = serde_json::from_slice(&body).expect("an accepted body is JSON");
            let model = read.model.map(|model| model.name);
            prop_assert_eq!(model.as_deref(), tree["model"].as_str());
        }
    }

    #[test]
    fn a_cut_body_is_refused(request in requests(), at in any::<prop::sample::Index>()) {
        let body = serde_json::to_vec(&request).expect("plain data");
        prop_assert!(scan(&body[..at.index(body.len())]).is_err());
    }
}

proptest! {
    #[test]
    fn reading_the_contents_changes_no_other_field_and_no_error(
        body in prop_oneof![
            "\\{(\"(model|messages|tools|prompt|cache_salt)\":(\"[a-z]{0,3}\"|\\[1, ?2,?\\]|[0-9]|\\{\"role\":null\\}),?){0,3}\\}",
            "[\\{\\}\\[\\]\",:a0-9 .\\\\-]{0,12}".prop_map(|part| format!(r#"{{"messages":[{{"content":{part}"#)),
            "[\\[\\],0-9 .-]{0,12}".prop_map(|part| format!(r#"{{"prompt":[{part}]}}"#)),
        ],
    ) {
        let with = scan_contents(body.as_bytes());
        prop_assert_eq!(with.map(|scan| Scan { contents: None, ..scan }), scan(body.as_bytes()));
    }
}
