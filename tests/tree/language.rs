//! Phrases that a reader has to read twice, in comments and texts.
//!
//! The list holds the worst of what this code once had. It is no judge of style: it keeps these
//! from coming back.

use std::collections::BTreeSet;

use super::imports::Sources;

/// A phrase in lower case, whole words of it, and how to write it.
const PHRASES: &[(&str, &str)] = &[
    ("it is no", "\"it is not a …\""),
    ("which is no", "\"which is not a …\""),
    ("what is no", "\"a … that is not a …\""),
    ("so long as it", "\"while\" or \"as long as\""),
    ("is told", "\"hears\", \"receives\" or \"is reported\""),
    ("are told", "\"hear\", \"receive\" or \"are reported\""),
    ("was told", "\"heard\", \"received\" or \"was reported\""),
    ("were told", "\"heard\", \"received\" or \"were reported\""),
    ("none any more", "\"no longer\" or \"stop …ing\""),
    ("all the same", "\"still\" or \"nevertheless\""),
];

/// Words behind a phrase with which it is plain English.
const FINE: &[&str] = &["longer", "later", "earlier", "more", "less"];

/// One comment or string literal.
struct Text {
    line: usize,
    /// It begins a doc comment.
    begins_doc: bool,
    text: String,
}

/// Phrases of the list in these files.
pub(crate) fn phrases(files: &Sources) -> Vec<String> {
    let mut found = BTreeSet::new();
    for (name, source) in files {
        for text in texts(source) {
            if text.begins_doc && text.text.starts_with("What ") {
                found.insert((
                    name.clone(),
                    text.line,
                    "a doc comment begins with \"What\": begin with a noun or a verb".to_owned(),
                ));
            }
            for (phrase, better) in PHRASES {
                if contains(&text.text, phrase) {
                    let problem = format!("\"{phrase}\": write {better}");
                    found.insert((name.clone(), text.line, problem));
                }
            }
        }
    }
    found.into_iter().map(|(name, line, problem)| format!("{name}:{line}: {problem}")).collect()
}

/// Whether `phrase` is in `text`, as whole words, and not followed by a word that makes it fine.
fn contains(text: &str, phrase: &str) -> bool {
    let text = text.to_lowercase();
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(phrase).any(|(at, _)| {
        let (before, behind) = (&text[..at], &text[at + phrase.len()..]);
        let next = behind.trim_start().split(|c| !is_word(c)).next().unwrap_or_default();
        let is_whole = !before.ends_with(is_word) && !behind.starts_with(is_word);
        let is_fine = phrase.ends_with(" no") && FINE.contains(&next);
        is_whole && !is_fine
    })
}

/// The comments and string literals of a source. Comments on consecutive lines are one text each
/// with its successor's first words, so that a phrase over a line's end is found too.
fn texts(source: &str) -> Vec<Text> {
    let mut texts: Vec<Text> = Vec::new();
    let mut rest = source;
    let mut line = 1;
    // The line of the last comment, and whether it was a doc comment.
    let mut last = (0, false);
    while let Some(c) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            let end = rest.find('\n').unwrap_or(rest.len());
            let is_doc =
                rest.starts_with("//!") || (rest.starts_with("///") && !rest.starts_with("////"));
            let text = rest[..end].trim_start_matches(['/', '!']).trim();
            let goes_on = last == (line - 1, is_doc);
            match texts.last_mut().filter(|_| goes_on) {
                // One paragraph: the line is where it ends.
                Some(before) if !text.is_empty() && !before.text.is_empty() => {
                    let words = before.text.split(' ').rev().take(3).collect::<Vec<_>>();
                    let words: Vec<_> = words.into_iter().rev().collect();
                    let text = format!("{} {text}", words.join(" "));
                    texts.push(Text { line, begins_doc: false, text });
                }
                _ => {
                    let begins_doc = is_doc && !goes_on;
                    texts.push(Text { line, begins_doc, text: text.to_owned() });
                }
            }
            last = (line, is_doc);
            end
        } else if let Some(length) = string(rest) {
            // A line's end within a literal is a space to its reader.
            let words: Vec<_> =
                rest[..length].split_whitespace().filter(|word| *word != "\\").collect();
            texts.push(Text { line, begins_doc: false, text: words.join(" ") });
            length
        } else if c == '\'' {
            character(rest)
        } else if c.is_alphanumeric() || c == '_' {
            // A whole name, so that the `r` at its end does not begin a raw string.
            rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len())
        } else {
            c.len_utf8()
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    texts
}

/// The length of the string literal that `rest` begins with.
fn string(rest: &str) -> Option<usize> {
    let prefix = rest.find(|c: char| !matches!(c, 'b' | 'c' | 'r')).unwrap_or(0);
    let (prefix, body) = rest.split_at(prefix);
    let raw = prefix.ends_with('r');
    let hashes = body.len() - body.trim_start_matches('#').len();
    if !body[hashes..].starts_with('"') || (hashes > 0 && !raw) || prefix.len() > 2 {
        return None;
    }
    let start = prefix.len() + hashes + 1;
    if raw {
        let end = format!("\"{}", "#".repeat(hashes));
        return Some(start + rest[start..].find(&end)? + end.len());
    }
    let mut escaped = false;
    for (at, c) in rest[start..].char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(start + at + 1),
            _ => {}
        }
    }
    None
}

/// The length of the character that `rest` begins with; 1 for a lifetime.
fn character(rest: &str) -> usize {
    let inner = &rest[1..];
    if let Some(escape) = inner.strip_prefix('\\') {
        // Past the escaped character, which may be a quote.
        let first = escape.chars().next().map_or(0, char::len_utf8);
        return escape[first..].find('\'').map_or(1, |end| 2 + first + end + 1);
    }
    let first = inner.chars().next().map_or(0, char::len_utf8);
    if inner[first..].starts_with('\'') { 1 + first + 1 } else { 1 }
}
