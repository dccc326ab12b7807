//! Reads the few fields that routing needs out of a JSON body, without building a tree of it.

use std::fmt;

use serde::de::{Deserializer, Error, IgnoredAny, MapAccess, Visitor};

/// What the gateway reads of a request's body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    pub(crate) model: Option<String>,
    pub(crate) stream: bool,
    /// `max_tokens`, `max_completion_tokens` or `max_output_tokens`.
    pub(crate) max_tokens: Option<u64>,
}

impl Fields {
    /// Estimated tokens of prompt and answer: four bytes a token, and what the client allows or
    /// 256 tokens of answer where it does not say.
    pub(crate) fn estimated_tokens(&self, body_len: usize) -> u64 {
        body_len as u64 / 4 + self.max_tokens.unwrap_or(256).min(1 << 20)
    }
}

/// Reads top-level fields only; keys' escapes are decoded, everything else is skipped in place.
///
/// # Errors
/// In words, with the position: broken JSON, no object, a field of the wrong type, or one of ours
/// that occurs twice (two readers could then see two different requests).
pub(crate) fn scan(body: &[u8]) -> Result<Fields, String> {
    let mut json = serde_json::Deserializer::from_slice(body);
    let fields = json.deserialize_map(FieldsVisitor).map_err(|error| error.to_string())?;
    json.end().map_err(|error| error.to_string())?;
    Ok(fields)
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut fields = Fields::default();
        let (mut model, mut stream, mut limits) = (false, false, [false; 3]);
        while let Some(key) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            let once = |seen: &mut bool| {
                if std::mem::replace(seen, true) {
                    return Err(A::Error::custom(format!("the field `{key}` occurs twice")));
                }
                Ok(())
            };
            match key.as_ref() {
                "model" => {
                    once(&mut model)?;
                    fields.model = map.next_value()?;
                }
                "stream" => {
                    once(&mut stream)?;
                    fields.stream = map.next_value::<Option<bool>>()?.unwrap_or(false);
                }
                "max_tokens" | "max_completion_tokens" | "max_output_tokens" => {
                    let which = ["max_tokens", "max_completion_tokens", "max_output_tokens"]
                        .iter()
                        .position(|name| *name == key)
                        .unwrap_or(0);
                    once(&mut limits[which])?;
                    // What is not a plain number is the server's to refuse.
                    if let Some(limit) = map.next_value::<serde_json::Value>()?.as_u64() {
                        fields.max_tokens = Some(limit);
                    }
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_top_level_fields_only() {
        let model = |text: &str| Some(text.to_owned());
        for (case, body, want) in [
            (
                "plain",
                r#"{"model":"a","stream":true}"#,
                Fields { model: model("a"), stream: true, max_tokens: None },
            ),
            (
                "escaped key",
                r#"{"mod\u0065l":"a\n"}"#,
                Fields { model: model("a\n"), ..Fields::default() },
            ),
            (
                "nested",
                r#"{"x":{"model":"no"},"y":["model"],"model":"yes"}"#,
                Fields { model: model("yes"), ..Fields::default() },
            ),
            (
                "null",
                r#"{"model":null,"stream":null,"max_tokens":7}"#,
                Fields { max_tokens: Some(7), ..Fields::default() },
            ),
            ("none", "{}", Fields::default()),
        ] {
            assert_eq!(scan(body.as_bytes()), Ok(want), "{case}");
        }
    }

    #[test]
    fn refuses_what_two_readers_could_read_differently() {
        for (case, body, want) in [
            ("twice", r#"{"model":"a","model":"b"}"#, "the field `model` occurs twice"),
            (
                "twice, escaped",
                r#"{"model":"a","mod\u0065l":"b"}"#,
                "the field `model` occurs twice",
            ),
            ("broken", r#"{"model":"#, "EOF while parsing"),
            ("no object", "[1]", "expected a JSON object"),
            ("trailing", "{} x", "trailing characters"),
            ("wrong type", r#"{"model":1}"#, "invalid type: integer `1`, expected a string"),
            ("empty", "", "EOF while parsing"),
        ] {
            let error = scan(body.as_bytes()).expect_err(case);
            assert!(error.contains(want), "{case}: {error}");
        }
    }
}
