//! Tokens and texts, without a model: four bytes of a prompt are a token, and a reply is a run of
//! words that follows from the seed and the prompt. And text as JSON strings.
//!
//! Pure and deterministic: the same seed and prompt give the same reply, in every process.

use std::borrow::Cow;

use crate::mix::{mix, unit};

/// Bytes of a prompt that make one token.
const TOKEN_BYTES: usize = 4;

/// A prompt as the engine sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Prompt {
    bytes: Vec<u8>,
}

impl Prompt {
    pub(crate) fn text(text: &str) -> Self {
        Self { bytes: text.as_bytes().to_vec() }
    }

    /// A prompt of token ids. The ids of a text give that text's prompt.
    pub(crate) fn ids(ids: &[u32]) -> Self {
        let mut bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        // The last token of a text may have fewer bytes than the others.
        let least = bytes.len().saturating_sub(TOKEN_BYTES - 1);
        while bytes.len() > least && bytes.last() == Some(&0) {
            bytes.pop();
        }
        Self { bytes }
    }

    /// The ways to take this prompt for another one with the beginning of a reply behind it: tokens of
    /// replies have small numbers, and those of texts large ones. The longest beginning comes first.
    pub(crate) fn with_reply(&self) -> impl Iterator<Item = (Self, Vec<u32>)> {
        let ids = self.token_ids();
        let reply = ids.iter().rev().take_while(|id| (EOS_ID..=LAST_ID).contains(id)).count();
        let first = (ids.len() - reply).max(1);
        // A text's last token may be as small, and a few before it.
        (first..ids.len())
            .take(MOST_SPLITS)
            .map(move |at| (Self::ids(&ids[..at]), ids[at..].to_vec()))
    }

    /// Its text without the marks of a conversation.
    fn without_marks(&self) -> String {
        self.detokenize().replace("<|im_start|>", "").replace("<|im_end|>", "")
    }

    pub(crate) fn tokens(&self) -> u32 {
        u32::try_from(self.bytes.len().div_ceil(TOKEN_BYTES)).unwrap_or(u32::MAX)
    }

    /// Characters of its text.
    pub(crate) fn chars(&self) -> usize {
        self.bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
    }

    pub(crate) fn token_ids(&self) -> Vec<u32> {
        self.bytes
            .chunks(TOKEN_BYTES)
            .map(|chunk| {
                let mut id = [0; TOKEN_BYTES];
                id[..chunk.len()].copy_from_slice(chunk);
                u32::from_le_bytes(id)
            })
            .collect()
    }

    /// The text of the prompt; bytes that are not UTF-8 show as replacement characters.
    pub(crate) fn detokenize(&self) -> String {
        let bytes: Vec<u8> = self.bytes.iter().copied().filter(|byte| *byte != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub(crate) fn hash(&self, salt: u64) -> u64 {
        hash(salt, &self.bytes)
    }

    /// A hash for each full block, of everything up to its end. `salt` separates adapters.
    pub(crate) fn blocks(&self, block_size: u32, salt: u64) -> Vec<u64> {
        let bytes = block_size as usize * TOKEN_BYTES;
        let chain = self.bytes.chunks_exact(bytes).scan(salt, |chain, block| {
            *chain = hash(*chain, block);
            Some(*chain)
        });
        chain.collect()
    }
}

/// A string as JSON.
pub(crate) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// An optional string as JSON.
pub(crate) fn quoted_or_null(text: Option<&str>) -> String {
    text.map_or_else(|| "null".into(), quoted)
}

fn hash(start: u64, bytes: &[u8]) -> u64 {
    let mut state = mix(start, bytes.len() as u64);
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        state = mix(state, u64::from_le_bytes(word));
    }
    state
}

const WORDS: [&str; 48] = [
    " the", " of", " and", " a", " to", " in", " is", " that", " it", " for", " was", " on",
    " with", " as", " be", " at", " by", " this", " from", " or", " which", " water", " light",
    " engine", " reply", " token", " number", " harbour", " gate", " river", " stone", " north",
    " early", " small", " open", " under", " never", " again", ",", ".", ";", " first", " second",
    " last", "\n", " bridge", " winter", " field",
];

/// One of the words, alone.
pub(crate) fn word(key: u64) -> &'static str {
    let at = (mix(key, 0x30d) % 48) as usize;
    let words = WORDS.iter().cycle().skip(at);
    let mut words = words.map(|word| word.trim()).filter(|word| word.len() > 1);
    words.next().unwrap_or("the")
}

/// The token that ends a reply; `logit_bias` can force it.
pub(crate) const EOS_ID: u32 = 2;
/// The last of the tokens that replies are made of.
const LAST_ID: u32 = EOS_ID + 2045;
/// The first of the tokens that are words. Smaller numbers are those of texts of one byte.
const FIRST_WORD_ID: u32 = 256;
/// How many tokens each word has.
const IDS_OF_WORD: u64 = 37;
/// The tokens of a character in two parts.
const FIRST_PART_ID: u32 = FIRST_WORD_ID + 48 * IDS_OF_WORD as u32;
const SECOND_PART_ID: u32 = FIRST_PART_ID + 1;
/// Their text.
const IN_TWO_PARTS: &str = " —";
/// The most ways to take a prompt for one with the beginning of a reply that are tried.
const MOST_SPLITS: usize = 64;

/// Why a reply ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Reason {
    /// The model ended it.
    Stop,
    /// A stop string occurred.
    StopString(String),
    /// `max_tokens`.
    Length,
    /// The server aborted it.
    Abort,
}

impl Reason {
    /// `finish_reason` as OpenAI's APIs have it.
    pub(crate) fn openai(&self) -> &'static str {
        match self {
            Self::Stop | Self::StopString(_) => "stop",
            Self::Length => "length",
            Self::Abort => "abort",
        }
    }

    /// `stop_reason`, as JSON.
    pub(crate) fn stop_reason(&self) -> String {
        match self {
            Self::StopString(stop) => quoted(stop),
            _ => "null".into(),
        }
    }
}

/// The rules that decide a reply's length.
#[derive(Debug, Clone)]
pub(crate) struct LengthRule<'a> {
    pub(crate) max_tokens: u32,
    pub(crate) min_tokens: u32,
    pub(crate) stop: &'a [String],
    /// The model ends the reply after a number of tokens in this range. `None`: it never does.
    pub(crate) eos: Option<(u32, u32)>,
}

/// Most bytes of a token of a text that is given.
const WRITTEN_BYTES: usize = 4;

/// A reply before it is given out: every token, and where it ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Script {
    key: u64,
    /// The texts of the tokens, where they are not words.
    written: Option<Vec<Box<str>>>,
    /// The number of tokens that the prompt has already.
    given: u32,
    /// The text of the first token after those, if it is not the token's own.
    rejoined: Option<Box<str>>,
    pub(crate) tokens: u32,
    pub(crate) reason: Reason,
    /// Bytes of the text that are shown; a stop string and what follows it are not.
    shown: usize,
    /// The characters that are given out only at the end, as they may begin a stop string: as many as the
    /// longest one has, less one.
    held_back: usize,
}

impl Script {
    pub(crate) fn new(key: u64, rule: &LengthRule<'_>) -> Self {
        let length = Self {
            key,
            written: None,
            given: 0,
            rejoined: None,
            tokens: rule.max_tokens,
            reason: Reason::Length,
            shown: usize::MAX,
            held_back: 0,
        };
        let mut script = match rule.eos {
            Some((least, most)) => {
                let eos = least + (mix(key, 0xe05) % u64::from(most - least + 1)) as u32;
                let eos = eos.max(rule.min_tokens);
                if eos <= rule.max_tokens {
                    Self { tokens: eos, reason: Reason::Stop, ..length }
                } else {
                    length
                }
            }
            None => length,
        };
        script.stop_at(rule.stop, rule.min_tokens);
        script
    }

    /// A reply with this text, after `silent` tokens without one.
    pub(crate) fn written(key: u64, silent: usize, text: &str, rule: &LengthRule<'_>) -> Self {
        let mut pieces: Vec<Box<str>> = vec!["".into(); silent];
        let mut rest = text;
        while !rest.is_empty() {
            let mut end = rest.len().min(WRITTEN_BYTES);
            while !rest.is_char_boundary(end) {
                end += 1;
            }
            pieces.push(rest[..end].into());
            rest = &rest[end..];
        }
        // One more token ends the reply.
        let whole = u32::try_from(pieces.len() + 1).unwrap_or(u32::MAX);
        let cut = whole > rule.max_tokens;
        let mut script = Self {
            key,
            written: Some(pieces),
            given: 0,
            rejoined: None,
            tokens: whole.min(rule.max_tokens),
            reason: if cut { Reason::Length } else { Reason::Stop },
            shown: usize::MAX,
            held_back: 0,
        };
        script.stop_at(rule.stop, rule.min_tokens);
        script
    }

    /// This reply from the token behind `given` on, which `prompt` has at its end; `None` if the reply
    /// does not begin so, or ends there.
    ///
    /// vLLM looks back for the beginning of an unfinished character. If the prompt ends within one, it
    /// shows the text of the whole prompt with the character's rest.
    pub(crate) fn after(self, prompt: &Prompt, given: &[u32]) -> Option<Self> {
        let count = u32::try_from(given.len()).ok().filter(|count| *count < self.tokens)?;
        if !given.iter().zip(0..).all(|(id, at)| self.token_id(at) == *id) {
            return None;
        }
        let within = self.written.is_none() && count > 0 && self.splits(count - 1);
        let rejoined = within.then(|| {
            let text: String = (0..=count).map(|at| self.piece(at)).collect();
            (prompt.without_marks() + &text).into()
        });
        Some(Self { given: count, rejoined, ..self })
    }

    /// The tokens to generate.
    pub(crate) fn to_generate(&self) -> u32 {
        self.tokens - self.given
    }

    /// The numbers of the first `count` tokens that are generated.
    pub(crate) fn generated(&self, count: u32) -> std::ops::Range<u32> {
        self.given..self.given + count
    }

    /// Token `at`'s text, before a stop string cuts it.
    fn piece(&self, at: u32) -> &str {
        if self.reason == Reason::Stop && at + 1 == self.tokens {
            return "";
        }
        if let Some(rejoined) = self.rejoined.as_deref().filter(|_| at == self.given) {
            return rejoined;
        }
        if let Some(written) = &self.written {
            return written.get(at as usize).map(|piece| &**piece).unwrap_or_default();
        }
        // Now and then a character comes in two tokens: the first shows nothing yet.
        if self.splits(at) {
            return "";
        }
        if at > 0 && self.splits(at - 1) {
            return IN_TWO_PARTS;
        }
        WORDS[(self.roll(at) % WORDS.len() as u64) as usize]
    }

    fn splits(&self, at: u32) -> bool {
        self.roll(at) >> 58 == 0 && (at == 0 || self.roll(at - 1) >> 58 != 0)
    }

    fn roll(&self, at: u32) -> u64 {
        mix(self.key, u64::from(at) + 1)
    }

    /// A vocabulary number for token `at`.
    pub(crate) fn token_id(&self, at: u32) -> u32 {
        if self.reason == Reason::Stop && at + 1 == self.tokens {
            return EOS_ID;
        }
        let roll = self.roll(at);
        if self.written.is_some() {
            return EOS_ID + 1 + (roll % u64::from(LAST_ID - EOS_ID)) as u32;
        }
        if self.splits(at) {
            return FIRST_PART_ID;
        }
        if at > 0 && self.splits(at - 1) {
            return SECOND_PART_ID;
        }
        let words = WORDS.len() as u64;
        FIRST_WORD_ID + (roll % words + words * (roll / words % IDS_OF_WORD)) as u32
    }

    /// How likely token `at` was, and the `rank`th other choice.
    pub(crate) fn logprob(&self, at: u32, rank: u32) -> (&str, f64) {
        let roll = mix(self.roll(at), u64::from(rank));
        let word = if rank == 0 { self.piece(at) } else { WORDS[(roll % 48) as usize] };
        (word, -0.01 - f64::from(rank) * 0.75 - unit(roll) * 0.5)
    }

    fn stop_at(&mut self, stops: &[String], min_tokens: u32) {
        let Some(longest) = stops.iter().map(String::len).max().filter(|len| *len > 0) else {
            return;
        };
        let characters = stops.iter().map(|stop| stop.chars().count()).max();
        self.held_back = characters.unwrap_or_default().saturating_sub(1);
        let mut text = String::new();
        for at in 0..self.tokens {
            // Where a stop string that this token completes could begin.
            let mut from = text.len().saturating_sub(longest);
            while !text.is_char_boundary(from) {
                from -= 1;
            }
            text.push_str(self.piece(at));
            if at + 1 < min_tokens {
                continue;
            }
            let found = stops
                .iter()
                .filter(|stop| !stop.is_empty())
                .filter_map(|stop| Some((from + text[from..].find(stop.as_str())?, stop)))
                .min();
            if let Some((begin, stop)) = found {
                self.tokens = at + 1;
                self.reason = Reason::StopString(stop.clone());
                self.shown = begin;
                return;
            }
        }
    }
}

/// The text of tokens, of texts and of words. A part of a character shows as a replacement character.
pub(crate) fn detokenize(ids: &[u32]) -> String {
    let (mut text, mut rest) = (String::new(), ids);
    while let [id, behind @ ..] = rest {
        rest = behind;
        match *id {
            EOS_ID => text.push_str("<|im_end|>"),
            FIRST_PART_ID if behind.first() == Some(&SECOND_PART_ID) => {
                text.push_str(IN_TWO_PARTS);
                rest = &behind[1..];
            }
            FIRST_PART_ID | SECOND_PART_ID => text.push('\u{fffd}'),
            FIRST_WORD_ID..FIRST_PART_ID => {
                text.push_str(WORDS[(id - FIRST_WORD_ID) as usize % WORDS.len()]);
            }
            _ => {
                let is_text = |id: &u32| !(FIRST_WORD_ID..=SECOND_PART_ID).contains(id);
                let more = behind.iter().take_while(|id| is_text(id)).count();
                let (ours, others) = behind.split_at(more);
                text.push_str(&Prompt::ids(&[&[*id], ours].concat()).detokenize());
                rest = others;
            }
        }
    }
    text
}

/// How much of a reply has been given out.
#[derive(Debug, Clone)]
pub(crate) struct Cursor {
    /// The number of the next token.
    pub(crate) at: u32,
    /// Bytes of text before it, with those of tokens that the prompt has.
    bytes: usize,
    /// Characters of text that were given out.
    characters: usize,
    /// Text of the tokens so far that is held back.
    held: String,
}

impl Cursor {
    pub(crate) fn of(script: &Script) -> Self {
        let given = (0..script.given).map(|at| script.piece(at).len()).sum();
        Self { at: script.given, bytes: given, characters: 0, held: String::new() }
    }

    /// The number of tokens given out.
    pub(crate) fn produced(&self, script: &Script) -> u32 {
        self.at - script.given
    }

    /// The text that the next token brings out, as far as it is shown.
    pub(crate) fn next<'a>(&mut self, script: &'a Script) -> Cow<'a, str> {
        let piece = script.piece(self.at);
        let room = script.shown.saturating_sub(self.bytes);
        self.at += 1;
        self.bytes += piece.len();
        let piece = &piece[..piece.len().min(room)];
        let text = if script.held_back == 0 {
            Cow::Borrowed(piece)
        } else {
            self.held.push_str(piece);
            let keep = if self.at == script.tokens { 0 } else { script.held_back };
            let out = self.held.chars().count().saturating_sub(keep);
            let end = self.held.char_indices().nth(out).map_or(self.held.len(), |(at, _)| at);
            Cow::Owned(self.held.drain(..end).collect())
        };
        self.characters += text.chars().count();
        text
    }

    /// The text that an end before the last token brings out.
    pub(crate) fn rest(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Characters of text given out.
    pub(crate) fn offset(&self) -> usize {
        self.characters
    }
}

#[cfg(test)]
mod tests;
