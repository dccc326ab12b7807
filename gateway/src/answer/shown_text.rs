//! The text of an answer's last tokens as the client has it, and its comparison with the text of the
//! tokens themselves, which `/detokenize` reports.
//!
//! An answer may be cut behind a token only if the client has the token's whole text, and nothing of
//! the next one. A chunk does not show that: vLLM keeps text back that may be the beginning of a stop
//! string, its parsers keep back what may be a mark or trailing white space, and a chunk of several
//! tokens may end within a character (vLLM 0.32, `v1/engine/detokenizer.py` and `parser/engine`).
//!
//! Pure.

use crate::answer::judge::TextKey;

/// The bytes of text after which a new window begins. The last two are kept.
const WINDOW: usize = 512;
/// The most tokens that an answer goes back if the text of the last ones was kept back: the bytes of
/// one character are at most four tokens.
pub(crate) const MOST_BACK: usize = 4;

/// The text that the client has of an answer's last tokens.
#[derive(Clone, Debug, Default)]
pub(crate) struct ShownText {
    key: TextKey,
    older: Window,
    newer: Window,
    /// The older window is the beginning of the answer.
    from_start: bool,
    /// The number of tokens up to the last text that was passed on, or up to a mark without text.
    base: usize,
}

/// A part of the text, as it stands in JSON.
#[derive(Clone, Debug, Default)]
struct Window {
    /// The number of tokens before it.
    start: usize,
    text: Vec<u8>,
}

/// Text that is to be compared with that of the answer's tokens from `start` on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ShownTail {
    /// The number of tokens before it, the prompt's included.
    pub(crate) start: usize,
    text: String,
    from_start: bool,
}

/// The result of a comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compared {
    /// The client has the text of all tokens, but for this end.
    AllBut(String),
    /// The last tokens have more text than the client has.
    More,
    /// The texts differ.
    Other,
}

impl ShownText {
    /// Begins behind the prompt's tokens.
    pub(crate) fn begin(&mut self, tokens: usize) {
        (self.base, self.from_start) = (tokens, true);
        self.older.start = tokens;
    }

    /// Takes a text that was passed on, as it stands in JSON, and the number of tokens before and
    /// after its chunk.
    pub(crate) fn push(&mut self, key: TextKey, text: &[u8], before: usize, after: usize) {
        if key == self.key {
            self.newer.text.extend_from_slice(text);
            if self.newer.text.len() >= WINDOW {
                self.older = std::mem::take(&mut self.newer);
                self.newer.start = after;
                self.from_start = false;
            }
        } else {
            // Several tokens may have the mark between the two fields among them.
            let is_first = self.key == TextKey::None && self.older.start == self.base;
            let whole = key != TextKey::Several && (is_first || after == before + 1);
            self.from_start &= is_first;
            self.key = if key == TextKey::Several { TextKey::Content } else { key };
            let start = if whole { self.base } else { after };
            let text = if whole { text.to_vec() } else { Vec::new() };
            self.older = Window { start, text };
            self.newer = Window { start: after, text: Vec::new() };
        }
        self.base = after;
    }

    /// Takes tokens that have no text, such as a mark.
    pub(crate) fn skip(&mut self, after: usize) {
        self.base = after;
    }

    /// Notes that the tokens behind the first `tokens` are left out.
    pub(crate) fn cut(&mut self, tokens: usize) {
        self.base = tokens;
        self.newer.start = self.newer.start.min(tokens);
    }

    /// The field that the last text stands in.
    pub(crate) fn key(&self) -> TextKey {
        self.key
    }

    /// The text for a comparison; `None` if there is none, or if it can't be read.
    pub(crate) fn shown(&self) -> Option<ShownTail> {
        let json = [b"\"", &self.older.text[..], &self.newer.text, b"\""].concat();
        let text: String = serde_json::from_slice(&json).ok()?;
        let Self { older, from_start, .. } = self;
        (!text.is_empty()).then_some(ShownTail {
            start: older.start,
            text,
            from_start: *from_start,
        })
    }
}

impl ShownTail {
    /// Compares it with the text of the tokens. `lag`: the number of characters by which the text of
    /// chunks lags behind their tokens.
    pub(crate) fn compare(&self, of_tokens: &str, lag: usize) -> Compared {
        if lag > 0 {
            // The text before the first of these tokens lagged as well.
            let lagged = if self.from_start { 0 } else { lag };
            let from = self.text.char_indices().nth(lagged).map_or(self.text.len(), |(at, _)| at);
            return match of_tokens.strip_prefix(&self.text[from..]) {
                Some(rest) if rest.ends_with('\u{fffd}') => Compared::More,
                Some(rest) if rest.chars().count() <= lag => Compared::AllBut(rest.to_owned()),
                _ => Compared::Other,
            };
        }
        let (shown, whole) = (normal(&self.text), normal(of_tokens));
        if shown == whole {
            return Compared::AllBut(String::new());
        }
        let rest = whole.trim_end_matches('\u{fffd}');
        if whole.starts_with(&shown) || rest == shown { Compared::More } else { Compared::Other }
    }

    /// The whole text, with its end.
    pub(crate) fn with(&self, end: &str) -> String {
        format!("{}{end}", self.text)
    }
}

/// A text without the differences between a tokenizer's `decode` and its stream of single tokens: the
/// first space, and the spaces that `clean_up_tokenization_spaces` of Hugging Face takes out.
fn normal(text: &str) -> String {
    let mut text = text.strip_prefix(' ').unwrap_or(text).to_owned();
    for close in [".", "?", "!", ",", "n't", "'m", "'s", "'ve", "'re"] {
        text = text.replace(&format!(" {close}"), close);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: &str = "";

    fn all_but(rest: &str) -> Compared {
        Compared::AllBut(rest.to_owned())
    }

    /// The text that is compared after chunks of one field, each with its number of tokens.
    fn shown(chunks: &[(&str, usize)]) -> ShownTail {
        let (mut shown, mut tokens) = (ShownText::default(), 10);
        shown.begin(tokens);
        for (text, more) in chunks {
            shown.push(TextKey::Content, text.as_bytes(), tokens, tokens + more);
            tokens += more;
        }
        shown.shown().expect("some text")
    }

    #[test]
    fn all_text_of_the_tokens_must_have_been_passed_on() {
        let shown = shown(&[(" a \\u00e9", 2), ("\\n<b", 3)]);
        assert_eq!(shown.start, 10);
        for (of_tokens, want) in [
            (" a é\n<b", all_but(ALL)),
            ("a é\n<b", all_but(ALL)),
            (" a é\n<b\n", Compared::More),
            (" a é\n<b\u{fffd}", Compared::More),
            (" a é\n<", Compared::Other),
            (" b é\n<b", Compared::Other),
            ("<|assistant|> a é\n<b", Compared::Other),
        ] {
            assert_eq!(shown.compare(of_tokens, 0), want, "{of_tokens:?}");
        }
    }

    #[test]
    fn a_tokenizer_may_take_out_spaces() {
        let shown = shown(&[(" it 's so , do n't", 9)]);
        assert_eq!(shown.compare("it's so, don't", 0), all_but(ALL));
        assert_eq!(shown.compare("it's so, don't ", 0), Compared::More);
    }

    #[test]
    fn stop_strings_keep_their_length_less_one_back() {
        let begun = shown(&[("abc", 3)]);
        assert_eq!(begun.compare("abcde", 2), all_but("de"));
        assert_eq!(begun.compare("abc", 2), all_but(""));
        assert_eq!(begun.compare("abcdef", 2), Compared::Other);
        assert_eq!(begun.compare("abcd\u{fffd}", 2), Compared::More);
        assert_eq!(begun.compare("abde", 2), Compared::Other);
        assert_eq!(begun.with("de"), "abcde");
        // Behind the beginning, the first text belongs to tokens before the window.
        let long = "x".repeat(WINDOW);
        let later = shown(&[(&long, 9), ("a", 1), (&long, 9), ("bc", 1)]);
        assert_eq!(later.start, 10 + 9);
        let of_tokens = format!("{}bcde", &long[1..]);
        assert_eq!(later.compare(&of_tokens, 2), all_but("de"));
    }

    #[test]
    fn the_last_windows_are_kept() {
        let long = "x".repeat(WINDOW - 1);
        let shown = shown(&[("a", 1), (&long, 5), ("b", 1), (&long, 6), ("cd", 1), ("e", 1)]);
        assert_eq!(shown.start, 10 + 7);
        assert_eq!(shown.with(""), format!("{long}cde"));
    }

    #[test]
    fn another_field_begins_anew() {
        let mut text = ShownText::default();
        text.begin(10);
        assert_eq!(text.shown(), None);
        text.skip(11);
        text.push(TextKey::Reasoning, b"a", 11, 12);
        assert_eq!(text.shown().map(|shown| shown.start), Some(11), "not at the mark");
        text.skip(13);
        text.push(TextKey::Content, b"b", 13, 14);
        text.push(TextKey::Content, b"c", 14, 16);
        let shown = text.shown().expect("a text");
        assert_eq!((shown.start, shown.with("")), (13, "bc".into()));
        assert_eq!(text.key(), TextKey::Content);
        // Of several tokens, one may be the mark.
        text.push(TextKey::Reasoning, b"d", 16, 18);
        assert_eq!(text.shown(), None);
        text.push(TextKey::Reasoning, b"e", 18, 19);
        assert_eq!(text.shown().map(|shown| shown.start), Some(18));
        text.push(TextKey::Several, b"f", 19, 22);
        assert_eq!((text.shown(), text.key()), (None, TextKey::Content));
    }
}
