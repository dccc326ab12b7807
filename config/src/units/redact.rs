//! Names and passwords within addresses, which are never shown.

use std::borrow::Cow;

/// `text` with `***` in place of the name and password before the `@` of each address in it. The
/// text is an address or a sentence about one.
///
/// ```
/// let shown = forebay_config::redacted("`http://me:secret@host:1` is not a server");
/// assert_eq!(shown, "`http://***@host:1` is not a server");
/// ```
#[must_use]
pub fn redacted(text: &str) -> Cow<'_, str> {
    if !text.contains('@') {
        return Cow::Borrowed(text);
    }
    let ends = |c: char| c.is_whitespace() || matches!(c, '`' | '"' | '\'' | '<' | '>');
    let words = text.split_inclusive(ends).map(|word| {
        // A password may hold any of `/`, `:` and `@`.
        let Some(at) = word.rfind('@') else { return Cow::Borrowed(word) };
        let before = match word.find("://") {
            Some(scheme) if scheme < at => &word[..scheme + 3],
            // Without a scheme only a name with a password counts as an address.
            _ if word[..at].contains(':') => "",
            _ => return Cow::Borrowed(word),
        };
        Cow::Owned(format!("{before}***{}", &word[at..]))
    });
    Cow::Owned(words.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_name_nor_password_is_left() {
        for (text, want) in [
            ("http://h:1", "http://h:1"),
            ("http://u:p@h:1/x", "http://***@h:1/x"),
            ("http://token@h", "http://***@h"),
            ("see `https://u:p/@:w@h` and http://a", "see `https://***@h` and http://a"),
            ("u:p@h:1", "***@h:1"),
            ("someone@example.org", "someone@example.org"),
            ("http://a:1,http://u:p@b:1", "http://***@b:1"),
            ("no @ address", "no @ address"),
        ] {
            assert_eq!(redacted(text), want);
        }
    }
}
