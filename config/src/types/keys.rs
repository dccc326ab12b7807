//! The file with the API keys' hashes: a list in YAML or JSON, or a folder as Kubernetes mounts a
//! Secret. Pure: the gateway reads the files.

use std::fmt;

use serde::{Deserialize, Deserializer, de};

use crate::yaml::problem::{Place, Problem, Problems};
use crate::yaml::{self, Tree};

/// One API key: its hash, and the tenant that it belongs to.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Key {
    /// The tenant that it belongs to: a name of `gateway.tenants`.
    pub tenant: String,
    /// SHA-256 of the key itself.
    #[serde(deserialize_with = "hash")]
    pub sha256: [u8; 32],
    /// A note for people; nothing depends on it.
    #[serde(default)]
    pub name: Option<String>,
}

/// The beginning of the hash, which is enough to find it again.
impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, ..] = self.sha256;
        write!(f, "Key({}: {a:02x}{b:02x}…)", self.tenant)
    }
}

/// A text is not the hash of a key. The error does not show the text, which may be a key itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a SHA-256 hash, which has 64 hexadecimal digits; `forebay hash-key` makes one from a key"
)]
pub struct NotAHash;

/// Reads a hash as `forebay hash-key` and `sha256sum` write it.
///
/// # Errors
/// [`NotAHash`].
pub fn parse_hash(text: &str) -> Result<[u8; 32], NotAHash> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text).as_bytes();
    if digits.len() != 64 {
        return Err(NotAHash);
    }
    let mut hash = [0; 32];
    for (byte, pair) in hash.iter_mut().zip(digits.chunks_exact(2)) {
        let digit = |at: usize| char::from(pair[at]).to_digit(16).ok_or(NotAHash);
        *byte = (digit(0)? * 16 + digit(1)?) as u8;
    }
    Ok(hash)
}

fn hash<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
    parse_hash(&String::deserialize(d)?).map_err(de::Error::custom)
}

/// Reads a list of keys; problems name it as `source_name`.
///
/// # Errors
/// All problems of the list. A file without any text is one too: it may be half written. An empty
/// list is not.
pub fn parse_keys(text: &str, source_name: &str) -> Result<Vec<Key>, Problems> {
    let problem = |place: Option<Place>, field: String, message: String| Problem {
        source: source_name.to_owned(),
        place,
        field,
        message,
    };
    if text.trim().is_empty() {
        let message = "empty; write [] for no keys at all".to_owned();
        return Err(Problems::sorted(vec![problem(None, String::new(), message)]));
    }
    let tree = Tree::parse(text).map_err(|broken| {
        let broken = broken.into_iter();
        let broken = broken.map(|(place, text)| problem(Some(place), String::new(), text));
        Problems::sorted(broken.collect())
    })?;
    yaml::read(&tree, &|_| None).map_err(|faults| {
        let faults = faults.into_iter().map(|fault| {
            let place = Some(tree.place(&fault.path));
            let shows_no_value =
                fault.message.starts_with("missing") || fault.message == NotAHash.to_string();
            if shows_no_value {
                return problem(place, fault.path.to_string(), fault.message);
            }
            // A value in the wrong place may be a key.
            let message = "not a list of items with `tenant`, `sha256` and, if wanted, `name`";
            problem(place, String::new(), message.to_owned())
        });
        Problems::sorted(faults.collect())
    })
}

/// Reads one file of a folder: hashes of the keys of `tenant`, one a line. What follows a hash on
/// its line is a note, and so is a line that begins with `#`.
///
/// # Errors
/// The lines that hold no hash.
pub fn parse_key_lines(text: &str, tenant: &str, source_name: &str) -> Result<Vec<Key>, Problems> {
    let (mut keys, mut problems) = (Vec::new(), Vec::new());
    for (at, line) in text.lines().enumerate() {
        let mut words = line.split_whitespace();
        let Some(first) = words.next().filter(|word| !word.starts_with('#')) else { continue };
        match parse_hash(first) {
            Ok(sha256) => {
                let note: Vec<_> = words.collect();
                let name = (!note.is_empty()).then(|| note.join(" "));
                keys.push(Key { tenant: tenant.to_owned(), sha256, name });
            }
            Err(error) => problems.push(Problem {
                source: source_name.to_owned(),
                place: Some(Place { line: at + 1, column: 1 }),
                field: String::new(),
                message: error.to_string(),
            }),
        }
    }
    if problems.is_empty() { Ok(keys) } else { Err(Problems::sorted(problems)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The hash of `hello`.
    const HELLO: &str = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn hashes_are_read_as_tools_write_them() {
        let hash = parse_hash(HELLO).expect("a hash");
        assert_eq!((hash[0], hash[31]), (0x2c, 0x24));
        assert_eq!(parse_hash(&format!("sha256:{}", HELLO.to_uppercase())), Ok(hash));
        for wrong in ["", "sk-secret", &HELLO[1..], &HELLO.replace('2', "x"), &"ä".repeat(32)] {
            assert_eq!(parse_hash(wrong), Err(NotAHash), "{wrong}");
        }
    }

    #[test]
    fn a_list_is_read_from_yaml_and_from_json() {
        let yaml =
            format!("- tenant: a\n  sha256: {HELLO}\n- {{tenant: b, sha256: {HELLO}, name: x y}}");
        let json = format!(
            r#"[{{"tenant":"a","sha256":"{HELLO}"}},{{"tenant":"b","sha256":"sha256:{HELLO}","name":"x y"}}]"#
        );
        let keys = parse_keys(&yaml, "keys").unwrap();
        assert_eq!(keys, parse_keys(&json, "keys").unwrap());
        assert_eq!((keys[0].tenant.as_str(), &keys[0].name), ("a", &None));
        assert_eq!((keys[1].tenant.as_str(), keys[1].name.as_deref()), ("b", Some("x y")));
        assert_eq!(format!("{:?}", keys[0]), "Key(a: 2cf2…)");
        assert_eq!(parse_keys("[]", "keys"), Ok(Vec::new()));
    }

    #[test]
    fn problems_are_reported_without_showing_a_key() {
        let shown = |text: &str| parse_keys(text, "keys").expect_err(text).to_string();
        assert_eq!(shown(" \n"), "keys: empty; write [] for no keys at all");
        assert_eq!(
            shown("- tenant: a\n  sha256: sk-secret\n"),
            "keys:2: [0].sha256: not a SHA-256 hash, which has 64 hexadecimal digits; `forebay \
             hash-key` makes one from a key"
        );
        assert_eq!(shown("- tenant: a\n"), "keys:1: [0].sha256: missing; it must be given");
        for text in [
            "- sk-secret\n",
            "sk-secret",
            "sk-secret: a\n",
            "- tenant: a\n  sk-secret: x\n",
            "- tenant: [sk-secret]\n",
            "- {tenant: a, sha256: {sk-secret: x}}",
            "- tenant: a\n  sha256: sk-secret\n",
            "- tenant: a\n - sk-secret: [\n",
        ] {
            let shown = shown(text);
            assert!(shown.starts_with("keys:") && !shown.contains("secret"), "{text}: {shown}");
        }
    }

    #[test]
    fn a_folders_file_has_a_hash_a_line() {
        let text = format!("# laptops\n{HELLO}  -\n\nsha256:{HELLO} alice's laptop\n");
        let keys = parse_key_lines(&text, "a", "f").unwrap();
        let names: Vec<_> = keys.iter().map(|key| key.name.as_deref()).collect();
        assert_eq!(names, [Some("-"), Some("alice's laptop")]);
        assert!(keys.iter().all(|key| key.tenant == "a"));
        assert_eq!(parse_key_lines("", "a", "f"), Ok(Vec::new()));
        let shown = parse_key_lines("\nsk-secret\n", "a", "f").unwrap_err().to_string();
        assert!(
            shown.starts_with("f:2: not a SHA-256 hash") && !shown.contains("secret"),
            "{shown}"
        );
    }
}
