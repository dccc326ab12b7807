//! A pull reader over JSON bytes: no tree, no recursion, no copies except of strings with escapes.
//!
//! It accepts what Python's `json` accepts, with which vLLM reads requests: `NaN`, `Infinity` and
//! lone surrogates pass; control characters in strings, and anything after the value, do not. UTF-8
//! is not checked here: where it matters, the caller has checked the whole body.
//!
//! By hand: `serde_json` refuses some of what Python accepts, and does not report the place of a
//! member in the body, which edits in place need.

pub(crate) use plain::plain_until;
use string::Escapes;
pub(crate) use string::JsonString;

/// Deeper nesting is refused. vLLM itself gives up earlier: at Python's limit of a thousand.
const MAX_DEPTH: usize = 1024;

/// The error at which reading stopped, in the words of Python's `json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct JsonError {
    /// Offset in bytes.
    pub(crate) at: usize,
    pub(crate) why: &'static str,
}

/// The kind of a value, known by its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JsonKind {
    Object,
    Array,
    String,
    Number,
    True,
    False,
    Null,
}

/// The kind of the value that begins with each byte.
static KINDS: [Option<JsonKind>; 256] = {
    let mut kinds = [None; 256];
    let mut first = 0;
    while first < kinds.len() {
        kinds[first] = match first as u8 {
            b'{' => Some(JsonKind::Object),
            b'[' => Some(JsonKind::Array),
            b'"' => Some(JsonKind::String),
            b'-' | b'0'..=b'9' | b'N' | b'I' => Some(JsonKind::Number),
            b't' => Some(JsonKind::True),
            b'f' => Some(JsonKind::False),
            b'n' => Some(JsonKind::Null),
            _ => None,
        };
        first += 1;
    }
    kinds
};

/// The key of an object's member, with its position.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MemberKey<'a> {
    pub(crate) text: JsonString<'a>,
    /// Offset of the key's opening quote.
    pub(crate) at: usize,
    /// Offset of the comma before it; `None` for an object's first member.
    pub(crate) comma: Option<usize>,
}

/// A position in JSON bytes.
#[derive(Clone, Debug)]
pub(crate) struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
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

    /// The next byte that is not white space.
    #[inline]
    pub(crate) fn peek(&mut self) -> Option<u8> {
        match self.bytes.get(self.at) {
            Some(byte) if *byte > b' ' => Some(*byte),
            _ => self.peek_behind_space(),
        }
    }

    #[inline(never)]
    fn peek_behind_space(&mut self) -> Option<u8> {
        loop {
            match self.bytes.get(self.at) {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                next => return next.copied(),
            }
        }
    }

    /// The kind of the next value.
    ///
    /// # Errors
    /// No value follows.
    #[inline]
    pub(crate) fn kind(&mut self) -> Result<JsonKind, JsonError> {
        match self.peek().and_then(|first| KINDS[usize::from(first)]) {
            Some(kind) => Ok(kind),
            None => self.broken("Expecting value"),
        }
    }

    /// Steps into an object, to read it with `next_key`; skips any other value and returns `false`.
    pub(crate) fn enter_object(&mut self) -> Result<bool, JsonError> {
        self.enter(b'{')
    }

    /// Steps into an array, to read it with `next_element`; skips any other value.
    pub(crate) fn enter_array(&mut self) -> Result<bool, JsonError> {
        self.enter(b'[')
    }

    fn enter(&mut self, bracket: u8) -> Result<bool, JsonError> {
        if self.peek() == Some(bracket) {
            self.at += 1;
            return Ok(true);
        }
        self.skip()?;
        Ok(false)
    }

    /// The next member's key; its colon is consumed. `None` at the object's end. `first` is true
    /// for the first call, which sets it.
    pub(crate) fn next_key(
        &mut self,
        first: &mut bool,
    ) -> Result<Option<MemberKey<'a>>, JsonError> {
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
        Ok(Some(MemberKey { text, at, comma }))
    }

    /// Whether the array has another element; if so, it is next.
    pub(crate) fn next_element(&mut self, first: &mut bool) -> Result<bool, JsonError> {
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

    /// The next value if it is a string; skips any other and returns `None`.
    pub(crate) fn text(&mut self) -> Result<Option<JsonString<'a>>, JsonError> {
        if self.peek() == Some(b'"') {
            return self.string().map(Some);
        }
        self.skip()?;
        Ok(None)
    }

    /// Skips one value of any kind, and checks it.
    pub(crate) fn skip(&mut self) -> Result<(), JsonError> {
        match self.kind()? {
            JsonKind::Object | JsonKind::Array => self.skip_nested(),
            JsonKind::String => self.string().map(|_| ()),
            JsonKind::Number => self.number(),
            JsonKind::True => self.literal(b"true"),
            JsonKind::False => self.literal(b"false"),
            JsonKind::Null => self.literal(b"null"),
        }
    }

    /// Skips one value, and returns it as it is written.
    pub(crate) fn skipped(&mut self) -> Result<&'a [u8], JsonError> {
        self.peek();
        let start = self.at;
        self.skip()?;
        Ok(&self.bytes[start..self.at])
    }

    fn skip_nested(&mut self) -> Result<(), JsonError> {
        let mut open = Nesting::default();
        loop {
            match self.kind()? {
                JsonKind::Object => {
                    self.push(&mut open, true)?;
                    if self.peek() == Some(b'}') {
                        self.at += 1;
                        open.pop();
                    } else {
                        self.key()?;
                        continue;
                    }
                }
                JsonKind::Array => {
                    self.push(&mut open, false)?;
                    if self.peek() == Some(b']') {
                        self.at += 1;
                        open.pop();
                    } else {
                        self.counts();
                        continue;
                    }
                }
                JsonKind::String => {
                    self.string()?;
                }
                JsonKind::Number => self.number()?,
                JsonKind::True => self.literal(b"true")?,
                JsonKind::False => self.literal(b"false")?,
                JsonKind::Null => self.literal(b"null")?,
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

    /// Skips whole numbers and their commas in an array: a prompt of token ids has very many. Stops
    /// before anything else.
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

    /// Checks that nothing but white space is left.
    pub(crate) fn end(&mut self) -> Result<(), JsonError> {
        match self.peek() {
            None => Ok(()),
            Some(_) => self.broken("Extra data"),
        }
    }

    fn push(&mut self, open: &mut Nesting, object: bool) -> Result<(), JsonError> {
        if open.depth == MAX_DEPTH {
            return self.broken("Nested too deeply");
        }
        open.push(object);
        self.at += 1;
        Ok(())
    }

    fn key(&mut self) -> Result<(JsonString<'a>, usize), JsonError> {
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

    /// Reads a string, from its opening quote on.
    #[inline]
    fn string(&mut self) -> Result<JsonString<'a>, JsonError> {
        let start = self.at + 1;
        let end = plain_until(self.bytes, start);
        if self.bytes.get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(JsonString { raw: &self.bytes[start..end], escapes: Escapes::None });
        }
        self.string_from(start, end)
    }

    /// Reads the rest of a string that begins at `start`, from its first special byte on.
    #[cold]
    fn string_from(&mut self, start: usize, special: usize) -> Result<JsonString<'a>, JsonError> {
        let mut escapes = Escapes::None;
        self.at = special;
        loop {
            match self.bytes.get(self.at) {
                Some(b'"') => {
                    let raw = &self.bytes[start..self.at];
                    self.at += 1;
                    return Ok(JsonString { raw, escapes });
                }
                Some(b'\\') => {
                    let usual = !matches!(self.bytes.get(self.at + 1), Some(b'u' | b'/'));
                    escapes = match usual && escapes != Escapes::Any {
                        true => Escapes::Usual,
                        false => Escapes::Any,
                    };
                    self.escape()?;
                }
                Some(_) => return self.broken("Invalid control character at"),
                None => {
                    let at = start - 1;
                    return Err(JsonError { at, why: "Unterminated string starting at" });
                }
            }
            self.at = plain_until(self.bytes, self.at);
        }
    }

    fn escape(&mut self) -> Result<(), JsonError> {
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

    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        let expecting = JsonError { at: start, why: "Expecting value" };
        if self.bytes[self.at] == b'-' {
            self.at += 1;
        }
        match self.bytes.get(self.at) {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => {
                self.digits();
            }
            Some(b'I') => return self.literal(b"Infinity").map_err(|_| expecting),
            Some(b'N') if self.at == start => return self.literal(b"NaN"),
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

    /// Skips digits; returns whether there were any.
    fn digits(&mut self) -> bool {
        let rest = &self.bytes[self.at..];
        let count = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        self.at += count;
        count > 0
    }

    fn literal(&mut self, word: &[u8]) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(word) {
            return self.broken("Expecting value");
        }
        self.at += word.len();
        Ok(())
    }

    #[cold]
    fn broken<T>(&self, why: &'static str) -> Result<T, JsonError> {
        Err(JsonError { at: self.at, why })
    }
}

/// The open brackets, one bit each, set for objects: skipping needs no memory.
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

    /// Whether the innermost bracket is an object's; `None` outside of all.
    fn top(&self) -> Option<bool> {
        let depth = self.depth.checked_sub(1)?;
        Some(self.objects[depth / 64] >> (depth % 64) & 1 == 1)
    }
}

mod ids;
mod lax;
mod plain;
mod string;
mod unescape;

pub(crate) use lax::{Lax, boolean, count};

#[cfg(test)]
mod tests;
