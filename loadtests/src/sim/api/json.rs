//! The reading of JSON bodies with vLLM's validation errors, which are pydantic's.

use crate::sim::api::fault::Fault;
use serde_json::{Map, Value};

/// Parses a request's body as the real server does, with its errors.
pub(crate) fn object(body: &[u8]) -> Result<Map<String, Value>, Fault> {
    if body.is_empty() {
        let mut check = Check::new();
        check.problem("missing", "body", "Field required", "None".into());
        return Err(check.fault());
    }
    let Ok(text) = std::str::from_utf8(body) else {
        return Err(Fault::unreadable());
    };
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => {
            let mut check = Check::new();
            let message = "Input should be a valid dictionary or object to extract fields from";
            check.problem("model_attributes_type", "body", message, shown(&other));
            Err(check.fault())
        }
        Err(error) => Err(decode_error(text, &error)),
    }
}

/// Python's message for a JSON error, with its place.
fn decode_error(text: &str, error: &serde_json::Error) -> Fault {
    let lines: usize =
        text.split_inclusive('\n').take(error.line().saturating_sub(1)).map(str::len).sum();
    let message = error.to_string();
    let (why, back) = if message.starts_with("EOF while parsing an object") {
        ("Expecting property name enclosed in double quotes", 0)
    } else if message.starts_with("EOF while parsing a string") {
        ("Unterminated string starting at", 0)
    } else if message.starts_with("expected `,`") {
        ("Expecting ',' delimiter", 1)
    } else if message.starts_with("expected `:`") {
        ("Expecting ':' delimiter", 1)
    } else if message.starts_with("trailing characters") {
        ("Extra data", 1)
    } else if message.starts_with("key must be a string") {
        ("Expecting property name enclosed in double quotes", 1)
    } else if message.starts_with("EOF") {
        ("Expecting value", 0)
    } else {
        ("Expecting value", 1)
    };
    let at = (lines + error.column()).saturating_sub(back);
    let mut check = Check::new();
    check.problems.push(format!(
        "{{'type': 'json_invalid', 'loc': 'body.{at}', 'msg': 'JSON decode error', \
         'input': '<dict of 0 items>', 'ctx': {{'error': {}}}}}",
        python_quoted(why)
    ));
    check.first = Some(format!("body.{at}"));
    check.fault()
}

/// Collects the errors in a request's fields.
#[derive(Debug)]
pub(crate) struct Check {
    problems: Vec<String>,
    first: Option<String>,
}

impl Check {
    pub(crate) fn new() -> Self {
        Self { problems: Vec::new(), first: None }
    }

    pub(crate) fn ok(&self) -> Result<(), Fault> {
        if self.problems.is_empty() { Ok(()) } else { Err(self.fault()) }
    }

    fn fault(&self) -> Fault {
        let count = self.problems.len();
        let s = if count == 1 { "" } else { "s" };
        let message = format!("{count} validation error{s}:\n  {}", self.problems.join("\n  "));
        Fault::validation(message, self.first.clone())
    }

    fn problem(&mut self, kind: &str, loc: &str, message: &str, input: String) {
        self.first.get_or_insert_with(|| loc.to_owned());
        let input = python_quoted(&input.chars().take(200).collect::<String>());
        self.problems.push(format!(
            "{{'type': '{kind}', 'loc': '{loc}', 'msg': '{message}', 'input': {input}}}"
        ));
    }

    pub(crate) fn missing(&mut self, body: &Map<String, Value>, field: &str) {
        let input = format!("<dict of {} items>", body.len());
        self.problem("missing", &format!("body.{field}"), "Field required", input);
    }

    pub(crate) fn wrong(&mut self, field: &str, kind: &str, message: &str, value: &Value) {
        self.problem(kind, &format!("body.{field}"), message, shown(value));
    }

    /// pydantic's last try for a list of anything.
    pub(crate) fn not_a_sequence(&mut self, field: &str, value: &Value) {
        let input = python_quoted(&shown(value));
        self.problems.push(format!(
            "{{'type': 'is_instance_of', 'loc': 'body.{field}', 'msg': 'Input should be an \
             instance of Sequence', 'input': {input}, 'ctx': {{'class': 'Sequence'}}}}"
        ));
    }

    pub(crate) fn int(&mut self, body: &Map<String, Value>, field: &str) -> Option<i64> {
        let value = body.get(field).filter(|value| !value.is_null())?;
        let whole = value
            .as_i64()
            .or_else(|| value.as_f64().filter(|f| f.fract() == 0.0).map(|f| f as i64))
            .or_else(|| value.as_bool().map(i64::from));
        let parsed = value.as_str().map(|text| text.trim().parse::<i64>().ok());
        match (whole, parsed) {
            (Some(number), _) | (None, Some(Some(number))) => return Some(number),
            (None, Some(None)) => {
                let message =
                    "Input should be a valid integer, unable to parse string as an integer";
                self.wrong(field, "int_parsing", message, value);
            }
            (None, None) if value.is_number() => {
                let message =
                    "Input should be a valid integer, got a number with a fractional part";
                self.wrong(field, "int_from_float", message, value);
            }
            (None, None) => {
                self.wrong(field, "int_type", "Input should be a valid integer", value);
            }
        }
        None
    }

    pub(crate) fn float(&mut self, body: &Map<String, Value>, field: &str) -> Option<f64> {
        let value = body.get(field).filter(|value| !value.is_null())?;
        match (value.as_f64(), value.as_str().map(|text| text.trim().parse::<f64>().ok())) {
            (Some(number), _) | (None, Some(Some(number))) => return Some(number),
            (None, Some(None)) => {
                let message = "Input should be a valid number, unable to parse string as a number";
                self.wrong(field, "float_parsing", message, value);
            }
            (None, None) => {
                self.wrong(field, "float_type", "Input should be a valid number", value);
            }
        }
        None
    }

    pub(crate) fn flag(&mut self, body: &Map<String, Value>, field: &str) -> bool {
        let Some(value) = body.get(field).filter(|value| !value.is_null()) else { return false };
        let read = match value {
            Value::Bool(flag) => Some(*flag),
            Value::String(text) => match text.to_ascii_lowercase().as_str() {
                "1" | "true" | "t" | "yes" | "y" | "on" => Some(true),
                "0" | "false" | "f" | "no" | "n" | "off" => Some(false),
                _ => None,
            },
            Value::Number(number) => match number.as_f64() {
                Some(1.0) => Some(true),
                Some(0.0) => Some(false),
                _ => None,
            },
            _ => None,
        };
        read.unwrap_or_else(|| {
            let whole = value.as_f64().is_some_and(|number| number.fract() == 0.0);
            if whole || value.is_string() {
                let message = "Input should be a valid boolean, unable to interpret input";
                self.wrong(field, "bool_parsing", message, value);
            } else {
                self.wrong(field, "bool_type", "Input should be a valid boolean", value);
            }
            false
        })
    }

    pub(crate) fn text(&mut self, body: &Map<String, Value>, field: &str) -> Option<String> {
        match body.get(field)? {
            Value::Null => None,
            Value::String(text) => Some(text.clone()),
            value => {
                self.wrong(field, "string_type", "Input should be a valid string", value);
                None
            }
        }
    }
}

/// A value as the real server shows it in an error.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(map) => format!("<dict of {} items>", map.len()),
        Value::Array(list) => format!("<list of {} items>", list.len()),
        Value::Null => "None".into(),
        Value::Bool(true) => "True".into(),
        Value::Bool(false) => "False".into(),
        Value::Number(number) => number.to_string(),
    }
}

/// A string as Python's `repr` writes it.
fn python_quoted(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in text.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_strings_are_taken_and_words_are_not() {
        let body =
            object(br#"{"a": "8", "b": 1.5, "c": true, "d": "x", "e": 3.0}"#).expect("valid");
        let mut check = Check::new();
        assert_eq!(check.int(&body, "a"), Some(8));
        assert_eq!(check.int(&body, "e"), Some(3));
        assert_eq!(check.float(&body, "b"), Some(1.5));
        assert!(check.flag(&body, "c") && check.ok().is_ok());
        assert_eq!((check.int(&body, "d"), check.int(&body, "b")), (None, None));
        let fault = check.ok().expect_err("two problems");
        assert!(fault.message.starts_with("2 validation errors:\n  {'type': 'int_parsing'"));
        assert_eq!(fault.param.as_deref(), Some("body.d"));
    }

    #[test]
    fn flags_are_read_in_every_spelling() {
        let body = object(
            br#"{"a": "YES", "b": 1, "c": 1.0, "d": "off", "e": 0, "f": null, "g": "maybe", "h": 2,
                "i": [true]}"#,
        );
        let (body, mut check) = (body.expect("valid"), Check::new());
        let read: Vec<_> =
            ["a", "b", "c", "d", "e", "f"].iter().map(|field| check.flag(&body, field)).collect();
        assert_eq!(read, [true, true, true, false, false, false]);
        for (field, kind) in [("g", "bool_parsing"), ("h", "bool_parsing"), ("i", "bool_type")] {
            let mut check = Check::new();
            assert!(!check.flag(&body, field));
            assert!(check.ok().expect_err(field).message.contains(kind), "{field}");
        }
    }

    #[test]
    fn an_error_in_a_document_names_its_place() {
        for (text, at, why) in [
            (r#"{"model": "tiny", "messages": ["#, 31, "Expecting value"),
            (r#"{"a": 1} x"#, 9, "Extra data"),
            (r#"{"a" 1}"#, 5, "Expecting ':' delimiter"),
        ] {
            let fault = object(text.as_bytes()).expect_err(text);
            assert!(fault.message.contains(why), "{}", fault.message);
            assert_eq!(fault.param, Some(format!("body.{at}")), "{text}");
        }
    }
}
