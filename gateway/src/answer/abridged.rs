//! A short copy of a JSON answer that is too long to keep: only the members that `judge` reads, and
//! only their upper levels.
//!
//! Servers put the token counts where they like: vLLM writes `usage` behind the choices, and
//! `prompt_logprobs`, which may be megabytes, behind `usage`. So the whole answer is scanned as it
//! comes, at a nanosecond a byte or less, and the upper levels of the few members that matter are
//! kept. The same scan finds out whether the JSON is complete.
//!
//! Pure: bytes come in as arguments, cut anywhere.

use memchr::memchr2;

/// The members that `judge` reads.
const MEMBERS: [&[u8]; 6] = [b"choices", b"usage", b"error", b"type", b"status", b"stop_reason"];
/// Levels of nesting that are kept: `usage` has its details at this depth, a choice its members.
const DEPTH: u32 = 3;
/// Longer strings are kept as empty ones.
const LONGEST_STRING: usize = 1024;
/// The longest copy: a member that would make it longer is left out.
const LONGEST_COPY: usize = 256 << 10;

/// The copy so far, and the position in the JSON.
#[derive(Debug, Default)]
pub(crate) struct Abridged {
    kept: Vec<u8>,
    place: Position,
    /// Open brackets.
    depth: u32,
    /// The next string at the top level is a member's key.
    key_next: bool,
    /// The current string is a key.
    in_key: bool,
    /// The current member is kept.
    keeps: bool,
    /// The first value has ended; nothing behind it is kept.
    over: bool,
    /// The current string is too long to keep.
    long: bool,
    /// The offset in `kept` where the current member begins.
    member: usize,
    /// The offset in `kept` where the current string begins.
    text: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Position {
    #[default]
    Between,
    Text,
    /// Behind a backslash in a string.
    Escape,
}

/// Whether `json` ends in the middle of an object, an array or a string.
pub(crate) fn is_cut(json: &[u8]) -> bool {
    let mut all = Abridged::default();
    all.feed(json);
    all.is_open()
}

impl Abridged {
    /// Takes the next bytes.
    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(first) = rest.first() {
            let passed = match self.place {
                Position::Between => self.between(rest),
                Position::Text => self.text(rest),
                Position::Escape => {
                    self.place = Position::Text;
                    self.keep(&[*first]);
                    1
                }
            };
            rest = &rest[passed..];
        }
    }

    /// The copy: an object with some of the answer's members.
    pub(crate) fn kept(&self) -> &[u8] {
        &self.kept
    }

    /// Whether the bytes so far end in the middle of an object, an array or a string.
    pub(crate) fn is_open(&self) -> bool {
        self.depth > 0 || self.place != Position::Between
    }

    /// Reads up to and including the next bracket or quote; returns the number of bytes.
    fn between(&mut self, bytes: &[u8]) -> usize {
        let end = bracket_or_quote(bytes);
        let run = &bytes[..end];
        match run.iter().position(|byte| self.depth == 1 && *byte == b',') {
            Some(comma) => {
                self.keep(&run[..comma]);
                self.keeps = false;
                self.key_next = !self.over && self.kept.first() == Some(&b'{');
            }
            None => self.keep(run),
        }
        let Some(byte) = bytes.get(end) else { return end };
        match byte {
            b'"' => self.begin_text(),
            b'{' | b'[' => {
                if self.depth == 0 && !self.over {
                    self.kept.push(*byte);
                    self.key_next = *byte == b'{';
                }
                self.keep(&[*byte]);
                self.depth += 1;
            }
            _ => {
                self.depth = self.depth.saturating_sub(1);
                if self.depth == 0 {
                    self.keeps = false;
                    if !std::mem::replace(&mut self.over, true) {
                        self.kept.push(*byte);
                    }
                }
                self.keep(&[*byte]);
            }
        }
        end + 1
    }

    fn begin_text(&mut self) {
        self.place = Position::Text;
        self.in_key = self.depth == 1 && std::mem::take(&mut self.key_next);
        if self.in_key {
            self.member = self.kept.len();
            if self.member > 1 {
                self.kept.push(b',');
            }
            self.keeps = true;
        }
        self.text = self.kept.len();
        self.keep(b"\"");
    }

    /// Reads up to and including the next quote or backslash; returns the number of bytes.
    fn text(&mut self, bytes: &[u8]) -> usize {
        let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        if !self.long {
            self.keep(&bytes[..end]);
        }
        if self.keeps && self.depth <= DEPTH && self.kept.len() - self.text > LONGEST_STRING {
            self.kept.truncate(self.text + 1);
            self.long = true;
        }
        match bytes.get(end) {
            None => return end,
            Some(b'"') => self.end_text(),
            Some(_) => {
                self.keep(b"\\");
                self.place = Position::Escape;
            }
        }
        end + 1
    }

    fn end_text(&mut self) {
        self.place = Position::Between;
        self.long = false;
        self.keep(b"\"");
        if std::mem::take(&mut self.in_key) && self.keeps {
            let key = &self.kept[self.text + 1..self.kept.len() - 1];
            if !MEMBERS.contains(&key) {
                self.leave_out();
            }
        }
    }

    fn keep(&mut self, bytes: &[u8]) {
        if !self.keeps || self.depth > DEPTH || self.long && self.place != Position::Between {
            return;
        }
        self.kept.extend_from_slice(bytes);
        if self.kept.len() > LONGEST_COPY {
            self.leave_out();
        }
    }

    fn leave_out(&mut self) {
        self.keeps = false;
        self.kept.truncate(self.member);
    }
}

/// The position of the first bracket or quote. Reads eight bytes at a time.
fn bracket_or_quote(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = ONES << 7;
    // A borrow can only mark bytes after a real hit, so the first mark is exact.
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;
    let mut at = 0;
    while let Some(eight) = bytes[at..].first_chunk() {
        let word = u64::from_le_bytes(*eight);
        // Square brackets differ from curly ones in this bit only.
        let curly = word | (ONES * 0x20);
        let open = zeros(curly ^ (ONES * u64::from(b'{')));
        let close = zeros(curly ^ (ONES * u64::from(b'}')));
        let quotes = zeros(word ^ (ONES * u64::from(b'"')));
        let hits = (open | close | quotes) & TOPS;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'{' | b'}' | b'[' | b']');
    bytes[at..].iter().position(special).map_or(bytes.len(), |i| at + i)
}
