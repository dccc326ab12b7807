//! The token ids of one stream: the prompt's, and those generated so far. Another replica can go on
//! from them.
//!
//! The answer can be cut only where the client has the text of every token: never inside a
//! character. Tokens behind the last such place are left out, if nothing of them was passed on.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use crate::answer::not_continued::NotContinued;

/// The most tokens of one stream, of its prompt and its answer. An id takes four bytes.
const MOST_OF_ONE: usize = 1 << 18;
/// The most tokens of all streams.
const MOST_OF_ALL: usize = 1 << 26;
/// Memory is taken for this many tokens at a time.
const STEP: usize = 512;

/// The tokens of all streams for which memory is taken.
static OF_ALL: AtomicUsize = AtomicUsize::new(0);

/// The token ids of one stream.
#[derive(Debug, Default)]
pub(crate) struct TokenIds {
    /// The prompt's, and behind them the answer's.
    ids: Vec<u32>,
    /// The number of the prompt's tokens; `None` until they are known.
    prompt: Option<usize>,
    /// The length of `ids` at the last place where the answer can be cut.
    cut: usize,
    /// Something of the tokens behind the cut was passed on.
    shown: bool,
    /// Why the ids can't be used.
    lost: Option<NotContinued>,
    /// The tokens for which memory is taken.
    taken: usize,
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
        if !self.append(list) {
            return;
        }
        match shown {
            TextShown::Complete => (self.cut, self.shown) = (self.ids.len(), false),
            TextShown::Part => self.shown = true,
            TextShown::Nothing => {}
        }
    }

    /// Gives the ids up. The first reason counts.
    pub(crate) fn lose(&mut self, why: NotContinued) {
        if self.lost.is_none() {
            self.lost = Some(why);
            self.ids = Vec::new();
            self.give_back();
        }
    }

    /// Whether the ids were given up.
    pub(crate) fn are_lost(&self) -> bool {
        self.lost.is_some()
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
        let needed = self.ids.len();
        if needed > self.taken {
            let more = (needed - self.taken).next_multiple_of(STEP);
            let all = OF_ALL.fetch_add(more, Relaxed) + more;
            self.taken += more;
            if needed > MOST_OF_ONE || all > MOST_OF_ALL {
                self.lose(NotContinued::Memory);
                return false;
            }
        }
        added > 0
    }

    fn give_back(&mut self) {
        OF_ALL.fetch_sub(std::mem::take(&mut self.taken), Relaxed);
    }
}

impl Clone for TokenIds {
    fn clone(&self) -> Self {
        let Self { ref ids, prompt, cut, shown, lost, taken } = *self;
        OF_ALL.fetch_add(taken, Relaxed);
        Self { ids: ids.clone(), prompt, cut, shown, lost, taken }
    }
}

impl Drop for TokenIds {
    fn drop(&mut self) {
        self.give_back();
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
        assert_eq!(ids.taken, 0, "its memory is given back");
    }

    #[test]
    fn a_copy_counts_its_own_memory_and_can_be_cut_alone() {
        let mut ids = TokenIds::default();
        ids.prompt(b"[10,11]");
        ids.generated(b"[7]", TextShown::Complete);
        ids.generated(b"[8]", TextShown::Nothing);
        let mut copy = ids.clone();
        assert_eq!((copy.taken, copy.ids.len()), (ids.taken, 4));
        assert_eq!(copy.cut_back(), Ok(()));
        assert_eq!((copy.answer_tokens(), ids.answer_tokens()), (1, 2));
    }
}
