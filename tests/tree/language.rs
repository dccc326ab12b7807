//! The worst turns of phrase in comments, each with a better one.

/// A phrase, in lower case, with advice. Looked for at word boundaries in every comment.
const PHRASES: &[(&str, &str)] = &[
    ("it is no", "write \"it is not a …\""),
    ("so long as it", "write \"while it\", or name the duration"),
    ("is told", "say who reports what to whom"),
    ("are told", "say who reports what to whom"),
];

/// The problems of one file's comments.
pub fn problems(name: &str, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut in_doc = false;
    for (number, line) in (1..).zip(text.lines()) {
        let Some(comment) = comment(line) else {
            in_doc = false;
            continue;
        };
        let doc = comment.starts_with(['/', '!']);
        let words = comment.trim_start_matches(['/', '!']).trim_start();
        if doc && !in_doc && words.starts_with("What ") {
            let advice = "begin a doc comment with a noun or a verb, not with \"What\"";
            problems.push(format!("{name}:{number}: {advice}"));
        }
        in_doc = doc;
        let lower = words.to_lowercase();
        for (phrase, advice) in PHRASES {
            if contains_words(&lower, phrase) {
                problems.push(format!("{name}:{number}: \"{phrase}\": {advice}"));
            }
        }
    }
    problems
}

/// The text behind `//` of a line that is a comment alone.
fn comment(line: &str) -> Option<&str> {
    line.trim_start().strip_prefix("//")
}

fn contains_words(text: &str, phrase: &str) -> bool {
    text.match_indices(phrase).any(|(at, _)| {
        let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
        let end = at + phrase.len();
        !letter(text[..at].chars().next_back()) && !letter(text[end..].chars().next())
    })
}
