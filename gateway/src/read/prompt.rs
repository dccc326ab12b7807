//! A prompt's content as hashes of its blocks, for the policies that know what endpoints remember.
//! Pure.
//!
//! Values are hashed, not JSON: spaces, escapes and the order of a message's members don't matter.
//! The parts are in the order in which chat templates write them: tools, documents, system prompt,
//! messages. Fields that change a template count before all of them. Members that no template writes
//! are left out. A block is full of content, so what follows the
//! last full block has no hash.
//!
//! `scan` calls this where it would skip a part, so a body is read once. In a body the parts may
//! have any order, and the model's name may follow them. So each part's blocks are hashed on their
//! own, and [`Contents::prompt`] chains them once the pool is known.

mod blocks;

use std::borrow::Cow;

use forebay_scheduling::prompt::{MAX_BLOCKS, Prompt};

use self::blocks::{BlockHasher, Blocks, Chain};
use crate::text::json::{Cursor, JsonError, JsonKind, JsonString};

/// Marks between values. No UTF-8 text has these bytes, so different values never have the same
/// content.
mod mark {
    pub(super) const TEXT_END: u8 = 0xff;
    pub(super) const KEY_END: u8 = 0xfe;
    pub(super) const OBJECT: u8 = 0xfd;
    pub(super) const ARRAY: u8 = 0xfc;
    pub(super) const END: u8 = 0xfb;
    pub(super) const NUMBER: u8 = 0xfa;
    pub(super) const TRUE: u8 = 0xf9;
    pub(super) const FALSE: u8 = 0xf8;
    pub(super) const NULL: u8 = 0xf7;
    pub(super) const FILE: u8 = 0xf6;
    pub(super) const IDS: u8 = 0xf5;
    pub(super) const NO_TEMPLATE: u8 = 0xf4;
}

/// The end of token ids: no id is that large.
const NO_ID: u32 = u32::MAX;

/// The depth from which values are hashed as they are written.
const MAX_DEPTH: usize = 64;

/// The content that a file stands for, in bytes: a picture is about a thousand tokens to most
/// models, however large its file is.
const FILE_BYTES: usize = 4096;

/// The most members of a message that are put into order. No client writes nearly as many.
const MAX_MEMBERS: usize = 64;

/// The beginning of a text within which a file's encoding stands.
const FILE_HEAD: usize = 256;

/// The least length of a file in a body. A shorter text under the same name is content.
const LEAST_FILE: usize = 64;

/// A line of Claude Code that differs in each request. vLLM leaves out the texts of a system prompt
/// that begin with it (`entrypoints/anthropic/serving.py`).
const BILLING_LINE: &[u8] = b"x-anthropic-billing-header";

/// All that separates prompts with the same content: a replica's cache keeps them apart, or none
/// may learn from another's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) tenant: &'a str,
    /// The model or adapter, by the name that the endpoint receives.
    pub(crate) model: &'a str,
    /// Whether the field `user` names a session where nothing else does.
    pub(crate) user_is_session: bool,
}

/// The contents of a request that the model will see, and what names them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Contents {
    tools: Blocks,
    documents: Blocks,
    system: Blocks,
    prompt: Blocks,
    /// The hash of the field `cache_salt`, which keeps a prompt apart in a replica's cache.
    salt: Option<u64>,
    /// The hash of the field `prompt_cache_key`, by which a client names its session.
    session: Option<u64>,
    /// The hash of the field `user`.
    user: Option<u64>,
    /// The hashes of the fields that change a template, by [`TemplateField`].
    template: [Option<u64>; 2],
}

/// A field of a request that changes what a chat template writes.
#[derive(Clone, Copy, Debug)]
enum TemplateField {
    ReasoningEffort,
    ChatTemplateKwargs,
}

/// A field of a request that has content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    Tools,
    Documents,
    System,
    /// Messages, which a template puts around with more text.
    Messages,
    /// A text or token ids that the model sees as they are.
    Prompt,
}

impl Contents {
    /// Reads the next value as this part. Of several tools or documents the last value counts, as for
    /// Python; of other parts, which have several names, the longest.
    ///
    /// # Errors
    /// Broken JSON.
    pub(crate) fn read(&mut self, part: Part, cursor: &mut Cursor<'_>) -> Result<(), JsonError> {
        let mut reader = PartReader { blocks: BlockHasher::new(), part };
        let blocks = match part {
            Part::Tools => &mut self.tools,
            Part::Documents => &mut self.documents,
            Part::System => &mut self.system,
            Part::Messages | Part::Prompt => &mut self.prompt,
        };
        match part {
            Part::Messages => reader.prompt(cursor)?,
            Part::Prompt => {
                reader.mark(mark::NO_TEMPLATE);
                reader.prompt(cursor)?;
            }
            Part::Tools | Part::Documents | Part::System => reader.value(cursor, 0)?,
        }
        let read = reader.blocks.end();
        let last_counts = matches!(part, Part::Tools | Part::Documents);
        if last_counts || read.bytes >= blocks.bytes {
            *blocks = read;
        }
        Ok(())
    }

    /// Reads the value of a field beside the prompt, which may decide where the prompt is remembered.
    pub(crate) fn read_field(
        &mut self,
        field: &[u8],
        cursor: &mut Cursor<'_>,
    ) -> Result<(), JsonError> {
        match field {
            b"cache_salt" => self.salt = name(cursor)?,
            b"prompt_cache_key" => self.session = name(cursor)?,
            b"user" => self.user = name(cursor)?,
            b"reasoning_effort" => self.read_template(TemplateField::ReasoningEffort, cursor)?,
            b"chat_template_kwargs" => {
                self.read_template(TemplateField::ChatTemplateKwargs, cursor)?;
            }
            _ => cursor.skip()?,
        }
        Ok(())
    }

    /// Reads a field that changes the template. `null` is no value.
    fn read_template(
        &mut self,
        field: TemplateField,
        cursor: &mut Cursor<'_>,
    ) -> Result<(), JsonError> {
        let absent = cursor.kind()? == JsonKind::Null;
        let mut reader = PartReader { blocks: BlockHasher::new(), part: Part::System };
        reader.value(cursor, 0)?;
        self.template[field as usize] = (!absent).then(|| reader.blocks.end().hash());
        Ok(())
    }

    /// The prompt as its owner's. `session`: the name that a header gives the client's session;
    /// without it, the body names it.
    pub(crate) fn prompt(&self, owner: Owner<'_>, session: Option<&[u8]>) -> Prompt {
        let mut chain = Chain::START.with(owner.tenant.as_bytes()).with(owner.model.as_bytes());
        if let Some(salt) = &self.salt {
            chain.add(&salt.to_le_bytes());
        }
        let user = self.user.filter(|_| owner.user_is_session);
        let session = session.map(blocks::hash).or(self.session).or(user);
        let session = session.map(|name| chain.with(b"session").with(&name.to_le_bytes()).hash());
        for (field, hash) in self.template.iter().enumerate() {
            if let Some(hash) = hash {
                chain.add(&[field as u8]);
                chain.add(&hash.to_le_bytes());
            }
        }
        let parts = [&self.tools, &self.documents, &self.system, &self.prompt];
        let count: usize = parts.iter().map(|part| part.full.len()).sum();
        let mut blocks = Vec::with_capacity(count.min(MAX_BLOCKS));
        for part in parts {
            for block in part.full.iter().take(MAX_BLOCKS - blocks.len()) {
                chain.add(&block.to_le_bytes());
                blocks.push(chain.hash());
            }
            // The rest of a part belongs to the block after it.
            if let Some(rest) = part.rest {
                chain.add(&rest.to_le_bytes());
            }
        }
        let bytes: usize = parts.iter().map(|part| part.bytes).sum();
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        Prompt { blocks: blocks.into_boxed_slice(), bytes, session }
    }
}

/// The hash of the next value, if it is a text that is not empty.
fn name(cursor: &mut Cursor<'_>) -> Result<Option<u64>, JsonError> {
    let text = cursor.text()?.filter(|text| !text.raw().is_empty());
    Ok(text.map(|text| blocks::hash(&decoded(text))))
}

/// The text of a name. One that is not text is taken as it is written.
fn decoded(text: JsonString<'_>) -> Cow<'_, [u8]> {
    let decoded = || text.decode().map(|text| Cow::Owned(text.into_owned().into_bytes()));
    text.unescaped().map(Cow::Borrowed).or_else(decoded).unwrap_or(Cow::Borrowed(text.raw()))
}

/// One part as far as it is read.
struct PartReader {
    blocks: BlockHasher,
    part: Part,
}

impl PartReader {
    /// The messages or the text, or the token ids.
    fn prompt(&mut self, cursor: &mut Cursor<'_>) -> Result<(), JsonError> {
        if cursor.kind()? != JsonKind::Array {
            return self.value(cursor, 0);
        }
        self.array(cursor, |reader, cursor| match cursor.kind()? {
            JsonKind::Object => reader.message(cursor),
            _ => reader.value(cursor, 1),
        })
    }

    /// A message: its members in one order, without those that are null.
    fn message(&mut self, cursor: &mut Cursor<'_>) -> Result<(), JsonError> {
        if self.blocks.are_all() {
            let written = cursor.skipped()?;
            self.blocks.count(written.len());
            return Ok(());
        }
        let (start, before) = (cursor.clone(), self.blocks.saved());
        // Most clients write that order, and their messages are read once.
        if !self.ordered_message(cursor)? {
            self.blocks.restore(&before);
            *cursor = start;
            self.unordered_message(cursor)?;
        }
        Ok(())
    }

    /// Reads a message whose members are in order. False if they are not.
    fn ordered_message(&mut self, cursor: &mut Cursor<'_>) -> Result<bool, JsonError> {
        self.mark(mark::OBJECT);
        let (mut first, mut last) = (true, None);
        cursor.enter_object()?;
        while let Some(key) = cursor.next_key(&mut first)? {
            let name = decoded(key.text);
            if cursor.kind()? == JsonKind::Null || is_left_out(&name) {
                cursor.skip()?;
                continue;
            }
            let next = (place(&name), name);
            if last.is_some_and(|last| next <= last) {
                return Ok(false);
            }
            self.member(cursor, &next.1, 0)?;
            last = Some(next);
        }
        self.mark(mark::END);
        Ok(true)
    }

    fn unordered_message(&mut self, cursor: &mut Cursor<'_>) -> Result<(), JsonError> {
        let mut members = Vec::new();
        let mut first = true;
        cursor.enter_object()?;
        while let Some(key) = cursor.next_key(&mut first)? {
            let name = decoded(key.text);
            let counts = cursor.kind()? != JsonKind::Null && !is_left_out(&name);
            if counts && members.len() < MAX_MEMBERS {
                members.push((name, cursor.clone()));
            }
            cursor.skip()?;
        }
        // Of members with the same name all count, in their order.
        members.sort_by(|(one, _), (other, _)| (place(one), one).cmp(&(place(other), other)));
        self.mark(mark::OBJECT);
        for (name, mut value) in members {
            self.member(&mut value, &name, 0)?;
        }
        self.mark(mark::END);
        Ok(())
    }

    /// An array, each element read by `element`. Runs of whole numbers are token ids, four bytes
    /// each.
    fn array<'a>(
        &mut self,
        cursor: &mut Cursor<'a>,
        mut element: impl FnMut(&mut Self, &mut Cursor<'a>) -> Result<(), JsonError>,
    ) -> Result<(), JsonError> {
        self.mark(mark::ARRAY);
        cursor.enter_array()?;
        let mut more = cursor.next_element(&mut true)?;
        while more {
            if cursor.kind()? == JsonKind::Number {
                self.mark(mark::IDS);
                more = cursor.id_pieces(|ids| self.blocks.push(ids))?;
                self.blocks.push(&NO_ID.to_le_bytes());
                if !more {
                    break;
                }
            }
            element(self, cursor)?;
            more = cursor.next_element(&mut false)?;
        }
        self.mark(mark::END);
        Ok(())
    }

    fn value(&mut self, cursor: &mut Cursor<'_>, depth: usize) -> Result<(), JsonError> {
        match cursor.kind()? {
            JsonKind::String => self.text(cursor)?,
            JsonKind::Object | JsonKind::Array if depth == MAX_DEPTH => {
                let written = cursor.skipped()?;
                self.blocks.push(written);
                self.mark(mark::TEXT_END);
            }
            JsonKind::Object => {
                self.mark(mark::OBJECT);
                let mut first = true;
                cursor.enter_object()?;
                while let Some(key) = cursor.next_key(&mut first)? {
                    self.member(cursor, &decoded(key.text), depth)?;
                }
                self.mark(mark::END);
            }
            JsonKind::Array => {
                self.array(cursor, |reader, cursor| reader.value(cursor, depth + 1))?;
            }
            JsonKind::Number => {
                let written = cursor.skipped()?;
                self.number(written);
            }
            JsonKind::True => self.literal(cursor, mark::TRUE)?,
            JsonKind::False => self.literal(cursor, mark::FALSE)?,
            JsonKind::Null => self.literal(cursor, mark::NULL)?,
        }
        Ok(())
    }

    fn member(
        &mut self,
        cursor: &mut Cursor<'_>,
        name: &[u8],
        depth: usize,
    ) -> Result<(), JsonError> {
        if is_left_out(name) {
            return cursor.skip();
        }
        self.blocks.push(name);
        self.mark(mark::KEY_END);
        match cursor.kind()? {
            JsonKind::String if name == b"data" => {
                cursor.text()?.into_iter().for_each(|text| self.file(text));
                Ok(())
            }
            _ => self.value(cursor, depth + 1),
        }
    }

    fn text(&mut self, cursor: &mut Cursor<'_>) -> Result<(), JsonError> {
        let Some(text) = cursor.text()? else { return Ok(()) };
        if is_data_url(text.raw()) {
            self.file(text);
        } else {
            if self.part != Part::System || !text.raw().starts_with(BILLING_LINE) {
                self.blocks.push(&text.usual_form());
            }
            self.mark(mark::TEXT_END);
        }
        Ok(())
    }

    /// A picture or a sound: its hash, repeated to the length of its tokens. A short text is content
    /// like any other.
    fn file(&mut self, text: JsonString<'_>) {
        let content = text.usual_form();
        if content.len() < LEAST_FILE {
            self.blocks.push(&content);
            return self.mark(mark::TEXT_END);
        }
        let hash = blocks::hash(&content).to_le_bytes();
        self.mark(mark::FILE);
        for _ in 0..FILE_BYTES / hash.len() {
            self.blocks.push(&hash);
        }
    }

    /// A whole number as it is written, and any other as the value that Python reads.
    fn number(&mut self, written: &[u8]) {
        self.mark(mark::NUMBER);
        let whole = written.iter().all(|byte| byte.is_ascii_digit() || *byte == b'-');
        let text = std::str::from_utf8(written).unwrap_or_default();
        match text.parse::<f64>() {
            Ok(number) if !whole => self.blocks.push(&number.to_bits().to_le_bytes()),
            _ => self.blocks.push(written),
        }
        self.mark(mark::TEXT_END);
    }

    fn literal(&mut self, cursor: &mut Cursor<'_>, mark: u8) -> Result<(), JsonError> {
        self.mark(mark);
        cursor.skip()
    }

    fn mark(&mut self, mark: u8) {
        self.blocks.push(&[mark]);
    }
}

/// Whether a text is a file in itself.
fn is_data_url(text: &[u8]) -> bool {
    let head = &text[..text.len().min(FILE_HEAD)];
    head.starts_with(b"data:") && memchr::memmem::find(head, b";base64,").is_some()
}

/// The place of a message's member, before its name decides: first those that clients mostly write
/// before the content.
fn place(name: &[u8]) -> u8 {
    match name {
        b"role" => 0,
        b"tool_call_id" => 1,
        b"name" => 2,
        b"content" => 3,
        _ => 4,
    }
}

/// Whether no template writes a member with this name. Clients move `cache_control` from one
/// message to the next as a conversation grows.
fn is_left_out(name: &[u8]) -> bool {
    name == b"cache_control"
}

#[cfg(test)]
mod tests;
