//! A pull reader over JSON bytes: no tree, no recursion, nothing copied but decoded escapes.
//!
//! It takes what Python's `json` takes, which is what vLLM reads requests with: `NaN`, `Infinity`
//! and lone surrogates pass, control characters in strings and anything after the value do not.
//! UTF-8 is not checked here; where it matters, the caller has done it for the whole body.

use std::borrow::Cow;

/// Deeper nesting is refused, and vLLM refuses less: Python gives up at a thousand.
const MAX_DEPTH: usize = 1024;

/// Where the reading stopped, in the words of Python's `json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Broken {
    /// Offset in bytes.
    pub(crate) at: usize,
    pub(crate) why: &'static str,
}

/// What a value is, by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    String,
    Number,
    True,
    False,
    Null,
}

/// A string as it stands between its quotes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Text<'a> {
    raw: &'a [u8],
    escaped: bool,
}

/// A member's key, with its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key<'a> {
    pub(crate) text: Text<'a>,
    /// Offset of the key's opening quote.
    pub(crate) at: usize,
    /// Offset of the comma before it; `None` for an object's first member.
    pub(crate) comma: Option<usize>,
}

/// A place in JSON bytes.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Text<'a> {
    /// The bytes between the quotes, escapes as they stand.
    pub(crate) fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// The text; `None` if it is none: broken UTF-8, or half a surrogate pair.
    pub(crate) fn decode(&self) -> Option<Cow<'a, str>> {
        let raw = std::str::from_utf8(self.raw).ok()?;
        if self.escaped { unescape(raw).map(Cow::Owned) } else { Some(Cow::Borrowed(raw)) }
    }
}

impl<'a> Cursor<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Starts at `at` instead of the first byte.
    pub(crate) fn starting(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// The next byte that is no white space.
    pub(crate) fn peek(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                next => return next.copied(),
            }
        }
    }

    /// What comes next, which must be a value.
    pub(crate) fn kind(&mut self) -> Result<Kind, Broken> {
        Ok(match self.peek() {
            Some(b'{') => Kind::Object,
            Some(b'[') => Kind::Array,
            Some(b'"') => Kind::String,
            Some(b'-' | b'0'..=b'9' | b'N' | b'I') => Kind::Number,
            Some(b't') => Kind::True,
            Some(b'f') => Kind::False,
            Some(b'n') => Kind::Null,
            _ => return self.broken("Expecting value"),
        })
    }

    /// Steps into an object, to read it with `next_key`; skips any other value and says `false`.
    pub(crate) fn enter_object(&mut self) -> Result<bool, Broken> {
        self.enter(Kind::Object)
    }

    /// Steps into an array, to read it with `next_element`; skips any other value.
    pub(crate) fn enter_array(&mut self) -> Result<bool, Broken> {
        self.enter(Kind::Array)
    }

    fn enter(&mut self, kind: Kind) -> Result<bool, Broken> {
        if self.kind()? == kind {
            self.at += 1;
            return Ok(true);
        }
        self.skip()?;
        Ok(false)
    }

    /// The next member's key, its colon taken; `None` when the object ended. `first` is true
    /// before the first call and kept by it.
    pub(crate) fn next_key(&mut self, first: &mut bool) -> Result<Option<Key<'a>>, Broken> {
        let mut comma = None;
        match (self.peek(), *first) {
            (Some(b'}'), _) => {
                self.at += 1;
                return Ok(None);
            }
            (Some(b','), false) => {
                comma = Some(self.at);
                self.at += 1;
            }
            (_, false) => return self.broken("Expecting ',' delimiter"),
            (_, true) => *first = false,
        }
        let (text, at) = self.key()?;
        Ok(Some(Key { text, at, comma }))
    }

    /// Whether the array has another element, which is then next.
    pub(crate) fn next_element(&mut self, first: &mut bool) -> Result<bool, Broken> {
        match (self.peek(), std::mem::replace(first, false)) {
            (Some(b']'), _) => {
                self.at += 1;
                Ok(false)
            }
            (Some(b','), false) => {
                self.at += 1;
                match self.peek() {
                    Some(b']') => self.broken("Expecting value"),
                    _ => Ok(true),
                }
            }
            (_, false) => self.broken("Expecting ',' delimiter"),
            (_, true) => Ok(true),
        }
    }

    /// The next value as a string; skips any other and says `None`.
    pub(crate) fn text(&mut self) -> Result<Option<Text<'a>>, Broken> {
        if self.kind()? == Kind::String {
            return self.string().map(Some);
        }
        self.skip()?;
        Ok(None)
    }

    /// The next value as a count, as a request's field is read; `None` if it is not one.
    pub(crate) fn count(&mut self) -> Result<Option<u64>, Broken> {
        Ok(self.simple()?.count().value())
    }

    /// Passes over one value of any kind, checking it.
    pub(crate) fn skip(&mut self) -> Result<(), Broken> {
        match self.kind()? {
            Kind::Object | Kind::Array => self.skip_nested(),
            Kind::String => self.string().map(|_| ()),
            Kind::Number => self.number(),
            Kind::True => self.word(b"true"),
            Kind::False => self.word(b"false"),
            Kind::Null => self.word(b"null"),
        }
    }

    fn skip_nested(&mut self) -> Result<(), Broken> {
        let mut open = Nesting::default();
        loop {
            match self.kind()? {
                Kind::Object => {
                    self.push(&mut open, true)?;
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        open.pop();
                    } else {
                        self.key()?;
                        continue;
                    }
                }
                Kind::Array => {
                    self.push(&mut open, false)?;
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        open.pop();
                    } else {
                        self.counts();
                        continue;
                    }
                }
                Kind::String => {
                    self.string()?;
                }
                Kind::Number => self.number()?,
                Kind::True => self.word(b"true")?,
                Kind::False => self.word(b"false")?,
                Kind::Null => self.word(b"null")?,
            }
            loop {
                let Some(object) = open.top() else { return Ok(()) };
                match self.peek() {
                    Some(b',') => {
                        self.at += 1;
                        if object {
                            self.key()?;
                        } else {
                            self.counts();
                        }
                        break;
                    }
                    Some(b'}') if object => {
                        self.at += 1;
                        open.pop();
                    }
                    Some(b']') if !object => {
                        self.at += 1;
                        open.pop();
                    }
                    _ => return self.broken("Expecting ',' delimiter"),
                }
            }
        }
    }

    /// Passes over whole numbers with their commas in an array, of which a prompt of token ids has
    /// very many. Stops before whatever is not that.
    fn counts(&mut self) {
        loop {
            let mut at = self.at;
            match self.bytes.get(at) {
                Some(b'0') => at += 1,
                Some(b'1'..=b'9') => {
                    at += 1;
                    while self.bytes.get(at).is_some_and(u8::is_ascii_digit) {
                        at += 1;
                    }
                }
                _ => return,
            }
            if self.bytes.get(at) != Some(&b',') {
                return;
            }
            at += 1;
            // Python writes a space after a comma.
            at += usize::from(self.bytes.get(at) == Some(&b' '));
            self.at = at;
        }
    }

    /// Nothing but white space may be left.
    pub(crate) fn end(&mut self) -> Result<(), Broken> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.broken("Extra data"),
        }
    }

    fn push(&mut self, open: &mut Nesting, object: bool) -> Result<(), Broken> {
        if open.depth == MAX_DEPTH {
            return self.broken("Nested too deeply");
        }
        open.push(object);
        self.at += 1;
        Ok(())
    }

    fn key(&mut self) -> Result<(Text<'a>, usize), Broken> {
        if self.peek() != Some(b'"') {
            return self.broken("Expecting property name enclosed in double quotes");
        }
        let at = self.at;
        let text = self.string()?;
        if self.peek() != Some(b':') {
            return self.broken("Expecting ':' delimiter");
        }
        self.at += 1;
        Ok((text, at))
    }

    /// Reads on from an opening quote.
    fn string(&mut self) -> Result<Text<'a>, Broken> {
        let quote = self.at;
        let mut escaped = false;
        self.at += 1;
        loop {
            self.at = plain_until(self.bytes, self.at);
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let raw = &self.bytes[quote + 1..self.at];
                    self.at += 1;
                    return Ok(Text { raw, escaped });
                }
                Some(b'\\') => {
                    escaped = true;
                    self.escape()?;
                }
                Some(_) => return self.broken("Invalid control character at"),
                None => return Err(Broken { at: quote, why: "Unterminated string starting at" }),
            }
        }
    }

    fn escape(&mut self) -> Result<(), Broken> {
        match self.bytes.get(self.at + 1) {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 2,
            Some(b'u') => {
                let hex = self.bytes.get(self.at + 2..self.at + 6);
                if !hex.is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
                    return self.broken("Invalid \\uXXXX escape");
                }
                self.at += 6;
            }
            _ => return self.broken("Invalid \\escape"),
        }
        Ok(())
    }

    fn number(&mut self) -> Result<(), Broken> {
        let start = self.at;
        let expecting = Broken { at: start, why: "Expecting value" };
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => {
                self.digits();
            }
            Some(b'I') => return self.word(b"Infinity").map_err(|_| expecting),
            Some(b'N') if self.at == start => return self.word(b"NaN"),
            _ => return Err(expecting),
        }
        if self.bytes.get(self.at) == Some(&b'.') {
            self.at += 1;
            if !self.digits() {
                return self.broken("Expecting ',' delimiter");
            }
        }
        if let Some(b'e' | b'E') = self.bytes.get(self.at) {
            self.at += 1;
            if let Some(b'+' | b'-') = self.bytes.get(self.at) {
                self.at += 1;
            }
            if !self.digits() {
                return self.broken("Expecting ',' delimiter");
            }
        }
        Ok(())
    }

    /// Whether there was a digit at all.
    fn digits(&mut self) -> bool {
        let rest = &self.bytes[self.at..];
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += count;
        count > 0
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Broken> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.broken("Expecting value");
        }
        self.at += word.len();
        Ok(())
    }

    fn broken<T>(&self, why: &'static str) -> Result<T, Broken> {
        Err(Broken { at: self.at, why })
    }
}

/// Which of the open brackets are objects': one bit each, so that skipping needs no memory.
#[derive(Default)]
struct Nesting {
    objects: [u64; MAX_DEPTH / 64],
    depth: usize,
}

impl Nesting {
    fn push(&mut self, object: bool) {
        let bit = 1 << (self.depth % 64);
        let word = &mut self.objects[self.depth / 64];
        *word = if object { *word | bit } else { *word & !bit };
        self.depth += 1;
    }

    fn pop(&mut self) {
        self.depth -= 1;
    }

    /// Whether the innermost is an object; `None` outside of all.
    fn top(&self) -> Option<bool> {
        let depth = self.depth.checked_sub(1)?;
        Some(self.objects[depth / 64] >> (depth % 64) & 1 == 1)
    }
}

/// The first quote, backslash or control character from `at` on, eight bytes at a time.
fn plain_until(bytes: &[u8], mut at: usize) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    // A borrow can only mark bytes after a true hit, so the first mark is exact.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    while let Some(eight) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*eight);
        let quotes = zeros(word ^ (ONES * u64::from(b'"')));
        let backslashes = zeros(word ^ (ONES * u64::from(b'\\')));
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let hits = (quotes | backslashes | controls) & TOPS;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20);
    bytes[at..].iter().position(special).map_or(bytes.len(), |i| at + i)
}

/// Decodes escapes that were checked before; `None` for half a surrogate pair.
fn unescape(raw: &str) -> Option<String> {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let code = *rest.as_bytes().get(at + 1)?;
        rest = &rest[at + 2..];
        text.push(match code {
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let unit = |rest: &str| u32::from_str_radix(rest.get(..4)?, 16).ok();
                let mut code = unit(rest)?;
                rest = &rest[4..];
                if (0xd800..0xdc00).contains(&code) {
                    let low = unit(rest.strip_prefix("\\u")?)?;
                    if !(0xdc00..0xe000).contains(&low) {
                        return None;
                    }
                    code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                    rest = &rest[6..];
                }
                char::from_u32(code)?
            }
            other => char::from(other),
        });
    }
    text.push_str(rest);
    Some(text)
}

mod lax;

pub(crate) use lax::{Lax, boolean, count};

#[cfg(test)]
mod tests;
