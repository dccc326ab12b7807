use super::*;
use proptest::prelude::*;
use serde_json::Value;

fn check(bytes: &[u8]) -> Result<(), JsonError> {
    let mut cursor = Cursor::new(bytes);
    cursor.skip()?;
    cursor.end()
}

#[test]
fn errors_have_pythons_position_and_words() {
    for (text, at, why) in [
        ("", 0, "Expecting value"),
        ("{\"a\" 1}", 5, "Expecting ':' delimiter"),
        ("{\"a\":1 \"b\":2}", 7, "Expecting ',' delimiter"),
        ("{\"a\":1,}", 7, "Expecting property name enclosed in double quotes"),
        ("{a:1}", 1, "Expecting property name enclosed in double quotes"),
        ("[1,]", 3, "Expecting value"),
        ("[1 2]", 3, "Expecting ',' delimiter"),
        ("[1}", 2, "Expecting ',' delimiter"),
        ("{\"a\":}", 5, "Expecting value"),
        ("\"abc", 0, "Unterminated string starting at"),
        ("\"a\nb\"", 2, "Invalid control character at"),
        ("\"0123456789\u{1}\"", 11, "Invalid control character at"),
        (r#""a\x""#, 2, "Invalid \\escape"),
        (r#""a\u12g4""#, 2, "Invalid \\uXXXX escape"),
        (r#""a\u12"#, 2, "Invalid \\uXXXX escape"),
        ("{} x", 3, "Extra data"),
        ("01", 1, "Extra data"),
        ("-", 0, "Expecting value"),
        ("-NaN", 0, "Expecting value"),
        ("1.", 2, "Expecting ',' delimiter"),
        ("1e", 2, "Expecting ',' delimiter"),
        ("nul", 0, "Expecting value"),
    ] {
        assert_eq!(check(text.as_bytes()), Err(JsonError { at, why }), "{text}");
    }
    for text in ["NaN", "-Infinity", "Infinity", r#""\ud800""#, "[]", " {} \r\n\t", "-0.5e+3"] {
        assert_eq!(check(text.as_bytes()), Ok(()), "{text}");
    }
}

#[test]
fn nesting_is_bounded_and_needs_no_stack() {
    let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
    assert_eq!(check(nested(MAX_DEPTH).as_bytes()), Ok(()));
    assert!(check(nested(MAX_DEPTH + 1).as_bytes()).is_err());
    assert!(check("{\"a\":".repeat(1 << 20).as_bytes()).is_err());
}

#[test]
fn half_a_surrogate_pair_is_not_text() {
    for (raw, want) in [
        (r#""\ud83d\ude00""#, Some("😀")),
        (r#""\ud83d""#, None),
        (r#""\ud83dx""#, None),
        (r#""\ud83d\u0041""#, None),
        (r#""\ude00""#, None),
        (r#""a\/\"\\\b\f\n\r\t\u00e9é""#, Some("a/\"\\\u{8}\u{c}\n\r\téé")),
    ] {
        let text = Cursor::new(raw.as_bytes()).text().expect("valid").expect("a string");
        assert_eq!(text.decode().as_deref(), want, "{raw}");
    }
}

#[test]
fn counts_are_read_as_pydantic_reads_them() {
    for (raw, want) in [
        ("16", Some(16)),
        ("16.0", Some(16)),
        ("\" 16 \"", Some(16)),
        ("1.5", None),
        ("-1", None),
        ("null", None),
        ("1e400", None),
        ("NaN", None),
        ("[1]", None),
    ] {
        assert_eq!(Cursor::new(raw.as_bytes()).count(), Ok(want), "{raw}");
    }
}

fn documents() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 64, 8, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            prop::collection::vec((any::<String>(), inner), 0..8)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn everything_that_serde_writes_is_accepted(value in documents(), pretty: bool) {
        let write = if pretty { serde_json::to_vec_pretty } else { serde_json::to_vec };
        prop_assert_eq!(check(&write(&value).expect("plain data")), Ok(()));
    }

    #[test]
    fn a_damaged_document_is_judged_as_serde_judges_it(
        value in documents(), at in any::<prop::sample::Index>(), byte in 0x20..0x7fu8,
    ) {
        let mut text = serde_json::to_vec(&value).expect("plain data");
        let at = at.index(text.len());
        text[at] = byte;
        if let Ok(text) = std::str::from_utf8(&text)
            && !text.contains("\\u")
            && !text.contains('I')
            && !text.contains('N')
        {
            let serde = serde_json::from_str::<serde::de::IgnoredAny>(text);
            prop_assert_eq!(check(text.as_bytes()).is_ok(), serde.is_ok(), "{}", text);
        }
    }

    #[test]
    fn a_plain_count_is_read_as_any_other_scalar(
        number in prop_oneof![any::<u64>().prop_map(|n| n.to_string()), "-?[0-9]{1,22}([.][0-9]|e[0-9]|x)?"],
        behind in "[ ,\\]}]{0,2}",
    ) {
        let text = format!(" {number}{behind}");
        let (mut short, mut long) = (Cursor::new(text.as_bytes()), Cursor::new(text.as_bytes()));
        let want = long.scalar().map(|scalar| scalar.count().value());
        prop_assert_eq!(short.count(), want);
        prop_assert_eq!(short.at(), long.at());
    }

    #[test]
    fn strings_decode_as_serde_decodes_them(text in any::<String>()) {
        let raw = serde_json::to_string(&text).expect("plain data");
        let mut cursor = Cursor::new(raw.as_bytes());
        let read = cursor.text().expect("valid").expect("a string").decode();
        prop_assert_eq!(read.as_deref(), Some(text.as_str()));
    }
}

#[test]
fn arrays_of_counts_are_checked_as_strictly_as_other_values() {
    for (text, sound) in [
        ("[1,2,3]", true),
        ("[0, 10, 200]", true),
        ("[ 1 , 2 ]", true),
        ("[1, 2.5, -3, \"a\", [4, 5], 6]", true),
        ("[1,]", false),
        ("[1, ]", false),
        ("[01,2]", false),
        ("[1 2]", false),
        ("[1,,2]", false),
        ("[1,2", false),
        ("[1,2}", false),
    ] {
        let mut cursor = Cursor::new(text.as_bytes());
        let read = cursor.skip().and_then(|()| cursor.end());
        assert_eq!(read.is_ok(), sound, "{text}");
    }
}
