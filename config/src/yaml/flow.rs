//! Texts and lists as YAML reads them: for messages that say what to write, and for files that we write.

/// The placeholders of a command. Unquoted, YAML reads their braces as a mapping.
const PLACEHOLDERS: [&str; 2] = ["{port}", "{gpu}"];

/// Words that YAML reads as something else than text.
const RESERVED: [&str; 11] =
    ["true", "false", "null", "yes", "no", "on", "off", "y", "n", ".inf", ".nan"];

/// A text as a scalar of YAML, quoted where YAML would read something else.
#[must_use]
pub fn scalar(text: &str) -> String {
    let plain =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-' | '=' | ':');
    // What begins with a digit, even behind a sign or a point, can be a number.
    let begins = text.trim_start_matches('-').trim_start_matches('.');
    let is_plain = begins.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '_'))
        && !RESERVED.contains(&text.trim_start_matches('-').to_ascii_lowercase().as_str())
        && !text.ends_with(':')
        && text.chars().all(plain);
    if is_plain { text.to_owned() } else { serde_json::Value::from(text).to_string() }
}

/// Words as a list of YAML on one line.
pub(crate) fn flow_list(words: &[&str]) -> String {
    format!("[{}]", words.iter().map(|word| scalar(word)).collect::<Vec<_>>().join(", "))
}

/// The remedy for a word with a placeholder without quotes in a line that YAML can't read.
pub(super) fn unquoted(line: &str) -> Option<String> {
    let line = line.split(" #").next().unwrap_or_default();
    let words = line.split(|c: char| c.is_whitespace() || matches!(c, ',' | '[' | ']'));
    let word = words.into_iter().find(|word| {
        PLACEHOLDERS.iter().any(|name| word.contains(name)) && !word.contains(['"', '\''])
    })?;
    Some(format!("write \"{word}\" in quotes"))
}

/// The placeholder that YAML has read as a mapping with this one key.
pub(super) fn placeholder(key: &str) -> Option<&'static str> {
    PLACEHOLDERS.into_iter().find(|name| name.trim_matches(['{', '}']) == key)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    #[test]
    fn a_scalar_is_read_as_the_same_text_and_quoted_only_if_it_must_be() {
        for (text, quoted) in [
            ("vllm", false),
            ("--max-num-seqs=8", false),
            ("/models/a.b_c", false),
            ("../run", false),
            ("http://a:8000/v1", false),
            ("-", true),
            ("---", true),
            ("-.Inf", true),
            ("8000", true),
            ("-5", true),
            (".5", true),
            ("1:30", true),
            ("True", true),
            ("off", true),
            ("~", true),
            ("key:", true),
            ("a: b", true),
            ("a #b", true),
            ("{port}", true),
            ("", true),
            ("größer", true),
            ("a\"b\n", true),
        ] {
            let scalar = scalar(text);
            assert_eq!(scalar.starts_with('"'), quoted, "{scalar}");
            for document in [format!("- {scalar}"), format!("[{scalar}]")] {
                let read: Vec<Value> = serde_saphyr::from_str(&document).expect(&document);
                assert_eq!(read, [text], "{document}");
            }
        }
    }
}
