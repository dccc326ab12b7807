//! A slow reader of prompts through serde, by the same rules.

use std::fmt;

use forebay_scheduling::prompt::BLOCK_BYTES;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

use super::super::{Chain, NO_ID, blocks, mark};

/// JSON as serde reads it, with the members of objects in their order.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Doc {
    Null,
    Bool(bool),
    Whole(i64),
    Float(f64),
    Text(String),
    List(Vec<Doc>),
    Object(Vec<(String, Doc)>),
}

struct DocVisitor;

impl<'de> Visitor<'de> for DocVisitor {
    type Value = Doc;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Doc, E> {
        Ok(Doc::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Doc, E> {
        Ok(Doc::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Doc, E> {
        Ok(Doc::Whole(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Doc, E> {
        Ok(i64::try_from(value).map_or(Doc::Float(value as f64), Doc::Whole))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Doc, E> {
        Ok(Doc::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Doc, E> {
        Ok(Doc::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Doc, A::Error> {
        let mut list = Vec::new();
        while let Some(one) = all.next_element()? {
            list.push(one);
        }
        Ok(Doc::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Doc, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = all.next_entry()? {
            members.push(member);
        }
        Ok(Doc::Object(members))
    }
}

impl<'de> Deserialize<'de> for Doc {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(DocVisitor)
    }
}

impl Doc {
    /// The content of a value, as the rules say, one byte after the other.
    fn content(&self, messages: bool) -> Vec<u8> {
        let marked = |mark: u8, content: &[u8]| [&[mark], content, &[mark::TEXT_END]].concat();
        match self {
            Self::Null => vec![mark::NULL],
            Self::Bool(true) => vec![mark::TRUE],
            Self::Bool(false) => vec![mark::FALSE],
            Self::Whole(number) => marked(mark::NUMBER, number.to_string().as_bytes()),
            Self::Float(number) => marked(mark::NUMBER, &number.to_bits().to_le_bytes()),
            Self::Text(text) => {
                let written = serde_json::to_string(text).expect("text");
                [&written.as_bytes()[1..written.len() - 1], &[mark::TEXT_END]].concat()
            }
            Self::List(list) => {
                let id = |one: &Self| match one {
                    Self::Whole(id @ 0..=999_999_999) => Some(*id as u32),
                    _ => None,
                };
                let mut content = vec![mark::ARRAY];
                let mut rest = list.iter().peekable();
                while let Some(next) = rest.peek() {
                    if matches!(next, Self::Whole(_) | Self::Float(_)) {
                        content.push(mark::IDS);
                        while let Some(id) = rest.next_if(|next| id(next).is_some()).and_then(id) {
                            content.extend(id.to_le_bytes());
                        }
                        content.extend(NO_ID.to_le_bytes());
                    }
                    let next = rest.next().map(|one| match messages {
                        true => one.message(),
                        false => one.content(false),
                    });
                    content.extend(next.unwrap_or_default());
                }
                content.push(mark::END);
                content
            }
            Self::Object(members) => object(members.iter().map(|(name, value)| (name, value))),
        }
    }

    fn message(&self) -> Vec<u8> {
        let Self::Object(members) = self else { return self.content(false) };
        let there = members.iter().filter(|(_, value)| *value != Self::Null);
        let mut sorted: Vec<_> = there.map(|(name, value)| (name, value)).collect();
        let first = ["role", "tool_call_id", "name", "content"];
        let place = |name: &str| first.iter().position(|first| *first == name).unwrap_or(4);
        sorted.sort_by_key(|(name, _)| (place(name), *name));
        object(sorted.into_iter())
    }
}

fn object<'a>(members: impl Iterator<Item = (&'a String, &'a Doc)>) -> Vec<u8> {
    let mut content = vec![mark::OBJECT];
    for (name, value) in members {
        content.extend(name.bytes().chain([mark::KEY_END]));
        content.extend(value.content(false));
    }
    content.push(mark::END);
    content
}

/// The hashes by a slow reader through serde.
pub(super) fn reference(body: &str) -> (Vec<u64>, usize) {
    let Ok(Doc::Object(members)) = serde_json::from_str(body) else { panic!("{body}") };
    let find = |name: &str| members.iter().find(|(other, _)| other == name).map(|(_, doc)| doc);
    let mut chain = Chain::START.with(b"anonymous").with(b"m");
    if let Some(Doc::Text(salt)) = find("cache_salt")
        && !salt.is_empty()
    {
        chain = chain.with(&blocks::hash(salt.as_bytes()).to_le_bytes());
    }
    for (number, name) in [(0, "reasoning_effort"), (1, "chat_template_kwargs")] {
        let Some(value) = find(name).filter(|value| **value != Doc::Null) else { continue };
        let content = value.content(false);
        let hash = content.chunks(BLOCK_BYTES).fold(Chain::START, |chain, block| {
            chain.with(&Chain::START.with(block).hash().to_le_bytes())
        });
        chain = chain.with(&[number]).with(&hash.hash().to_le_bytes());
    }
    let (mut blocks, mut bytes) = (Vec::new(), 0);
    for name in ["tools", "documents", "system", "messages"] {
        let Some(content) = find(name).map(|doc| doc.content(name == "messages")) else { continue };
        bytes += content.len();
        for block in content.chunks(BLOCK_BYTES) {
            chain = chain.with(&Chain::START.with(block).hash().to_le_bytes());
            if block.len() == BLOCK_BYTES {
                blocks.push(chain.hash());
            }
        }
    }
    (blocks, bytes)
}
