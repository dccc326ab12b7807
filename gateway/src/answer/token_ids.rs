//! The token ids of one stream: the prompt's, and those generated so far. Another replica can go on
//! from them.
//!
//! The answer can be cut only where the client has the text of every token: never inside a
//! character. Tokens behind the last place that may be one are left out, if nothing of them was passed
//! on. `shown_text` shows whether it is one.

use crate::answer::not_continued::NotContinued;
use crate::answer::stream_memory::StreamMemory;

/// The most tokens of one stream, of its prompt and its answer. An id takes four bytes.
const MOST_OF_ONE: usize = 1 << 18;
/// The token ids of one stream.
#[derive(Clone, Debug, Default)]
pub(crate) struct TokenIds {
    /// The prompt's, and behind them the answer's.
    ids: Vec<u32>,
    /// The number of the prompt's tokens; `None` until they are known.
    prompt: Option<usize>,
    /// The length of `ids` at the last place where the answer may be cut.
    cut: usize,
    /// The chunk before that place had several tokens: the last of them may have no text yet.
    several: bool,
    /// Something of the tokens behind the cut was passed on.
    shown: bool,
    /// Why the ids can't be used.
    lost: Option<NotContinued>,
    memory: StreamMemory,
}

/// The part that a client has of an event's tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TextShown {
    /// All of their text.
    Complete,
    /// A part of it, or something else about them.
    Part,
    Nothing,
}

impl TokenIds {
    /// Takes the prompt's ids: the JSON of a list.
    pub(crate) fn prompt(&mut self, list: &[u8]) {
        if self.prompt.is_none() && self.append(list) {
            self.prompt = Some(self.ids.len());
            self.cut = self.ids.len();
        }
    }

    /// Takes the ids of an event: the JSON of a list, with or without its brackets.
    pub(crate) fn generated(&mut self, list: &[u8], shown: TextShown) {
        if self.prompt.is_none() {
            self.lose(NotContinued::NoTokenIds);
        }
        let before = self.ids.len();
        if !self.append(list) {
            return;
        }
        match shown {
            TextShown::Complete => {
                (self.cut, self.shown) = (self.ids.len(), false);
                self.several = self.ids.len() > before + 1;
            }
            TextShown::Part => self.shown = true,
            TextShown::Nothing => {}
        }
    }

    /// Gives the ids up. The first reason counts.
    pub(crate) fn lose(&mut self, why: NotContinued) {
        if self.lost.is_none() {
            self.lost = Some(why);
            self.ids = Vec::new();
            self.memory.give_back();
        }
    }

    /// Whether the ids were given up.
    pub(crate) fn are_lost(&self) -> bool {
        self.lost.is_some()
    }

    /// Why the ids were given up, if they were.
    pub(crate) fn lost(&self) -> Option<NotContinued> {
        self.lost
    }

    /// Leaves out the tokens behind the last place where the answer can be cut.
    ///
    /// # Errors
    /// The ids are not known, or a part of a character was passed on.
    pub(crate) fn cut_back(&mut self) -> Result<(), NotContinued> {
        if let Some(why) = self.lost {
            return Err(why);
        }
        if self.prompt.is_none() {
            return Err(NotContinued::NoTokenIds);
        }
        if self.shown {
            return Err(NotContinued::InsideCharacter);
        }
        self.ids.truncate(self.cut);
        Ok(())
    }

    /// Leaves out the last `tokens`.
    pub(crate) fn go_back(&mut self, tokens: usize) {
        self.ids.truncate(self.ids.len() - tokens.min(self.answer_tokens()));
        self.cut = self.ids.len();
    }

    /// Whether the chunk before the last place where the answer may be cut had several tokens.
    pub(crate) fn ends_with_several(&self) -> bool {
        self.several
    }

    /// The prompt's ids, and the answer's behind them.
    pub(crate) fn all(&self) -> &[u32] {
        &self.ids
    }

    /// The number of tokens of the answer.
    pub(crate) fn answer_tokens(&self) -> usize {
        self.ids.len() - self.prompt.unwrap_or(0).min(self.ids.len())
    }

    /// The number of tokens of the prompt.
    pub(crate) fn prompt_tokens(&self) -> usize {
        self.prompt.unwrap_or(0)
    }

    /// Appends ids; false if they can't be read, or would take too much memory.
    fn append(&mut self, list: &[u8]) -> bool {
        if self.lost.is_some() {
            return false;
        }
        let Some(added) = read_ids(list, &mut self.ids) else {
            self.lose(NotContinued::Form);
            return false;
        };
        let tokens = self.ids.len();
        if tokens > MOST_OF_ONE || !self.memory.reach(tokens * size_of::<u32>()) {
            self.lose(NotContinued::Memory);
            return false;
        }
        added > 0
    }
}

/// Appends the numbers of a JSON list, with or without its brackets, and returns how many there
/// are; `None` if it is something else.
pub(crate) fn read_ids(list: &[u8], into: &mut Vec<u32>) -> Option<usize> {
    let inner = match list {
        [b'[', inner @ .., b']'] => inner,
        inner => inner,
    };
    if inner.trim_ascii().is_empty() {
        return Some(0);
    }
    let before = into.len();
    let (mut id, mut digits) = (0u32, 0);
    for byte in inner.iter().chain(b",") {
        match byte {
            b'0'..=b'9' => {
                id = id.checked_mul(10)?.checked_add(u32::from(byte - b'0'))?;
                digits += 1;
            }
            b',' if digits > 0 => {
                into.push(id);
                (id, digits) = (0, 0);
            }
            // Between numbers only: `1 2` is read as 12 by no one.
            b' ' if digits == 0 => {}
            _ => return None,
        }
    }
    Some(into.len() - before)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_list_of_small_numbers_is_read() {
        let read = |list: &str| {
            let mut ids = Vec::new();
            read_ids(list.as_bytes(), &mut ids).map(|count| {
                assert_eq!(count, ids.len());
                ids
            })
        };
        assert_eq!(read("[1,87, 543]"), Some(vec![1, 87, 543]));
        assert_eq!(read("1614"), Some(vec![1614]));
        assert_eq!(read("[]"), Some(vec![]));
        assert_eq!(read("[4294967295]"), Some(vec![u32::MAX]));
        for none in ["null", "[4294967296]", "[-1]", "[1.5]", "[1,]", "[,1]", "[1 2]", "[[1]]"] {
            assert_eq!(read(none), None, "{none}");
        }
    }

    #[test]
    fn an_answer_is_cut_only_where_its_text_is_complete() {
        use TextShown::{Complete, Nothing, Part};
        for (events, want) in [
            (&[Complete, Complete][..], Ok(2)),
            (&[Complete, Nothing, Nothing], Ok(1)),
            (&[Complete, Nothing, Complete], Ok(3)),
            (&[Nothing], Ok(0)),
            (&[Complete, Part], Err(NotContinued::InsideCharacter)),
            (&[Complete, Part, Nothing], Err(NotContinued::InsideCharacter)),
            (&[Complete, Part, Complete], Ok(3)),
        ] {
            let mut ids = TokenIds::default();
            ids.prompt(b"[10,11]");
            events.iter().for_each(|shown| ids.generated(b"[7]", *shown));
            let cut = ids.cut_back().map(|()| ids.answer_tokens());
            assert_eq!(cut, want, "{events:?}");
            assert!(ids.all().starts_with(&[10, 11]));
        }
    }

    #[test]
    fn ids_that_are_incomplete_or_too_many_are_given_up() {
        let mut ids = TokenIds::default();
        ids.generated(b"[7]", TextShown::Complete);
        assert_eq!(ids.cut_back(), Err(NotContinued::NoTokenIds), "no prompt");
        let mut ids = TokenIds::default();
        ids.prompt(b"[10]");
        ids.generated(b"[x]", TextShown::Complete);
        assert_eq!(ids.cut_back(), Err(NotContinued::Form));
        let mut ids = TokenIds::default();
        let many = vec!["1"; MOST_OF_ONE].join(",");
        ids.prompt(many.as_bytes());
        assert_eq!(ids.cut_back(), Ok(()));
        ids.generated(b"[7]", TextShown::Complete);
        assert_eq!(ids.cut_back(), Err(NotContinued::Memory));
        assert_eq!(ids.memory.taken(), 0, "its memory is given back");
    }

    #[test]
    fn a_copy_counts_its_own_memory_and_can_be_cut_alone() {
        let mut ids = TokenIds::default();
        ids.prompt(b"[10,11]");
        ids.generated(b"[7]", TextShown::Complete);
        ids.generated(b"[8]", TextShown::Nothing);
        let mut copy = ids.clone();
        assert_eq!((copy.memory.taken(), copy.ids.len()), (ids.memory.taken(), 4));
        assert_eq!(copy.cut_back(), Ok(()));
        assert_eq!((copy.answer_tokens(), ids.answer_tokens()), (1, 2));
    }
}
