//! A YAML document as a tree, scalars still in their written form.
//!
//! Anchors and aliases are resolved, `<<` merges.

use std::collections::HashMap;

use serde_saphyr::granit_parser::{Event, Parser, ScalarStyle, ScanError, Span, StrInput};

use super::flow::unquoted;
use crate::yaml::problem::{Path, Place, Step};

/// Most nodes of a document, aliases expanded. A configuration of a few thousand pools has fewer,
/// and the bound keeps aliases of aliases from filling the memory.
const MOST_NODES: usize = 500_000;

/// Deepest nesting. The configuration needs six levels.
const DEEPEST: usize = 64;

/// One value and its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) kind: Kind,
}

#[derive(Clone, Debug)]
pub(crate) enum Kind {
    Scalar {
        text: String,
        /// Without quotes: may be a number, a boolean or null.
        plain: bool,
    },
    List(Vec<Node>),
    Map(Vec<Entry>),
    /// Removed so that reading can go on: the value was faulty or empty.
    Removed {
        faulty: bool,
    },
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) value: Node,
}

/// A whole document.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    pub(crate) root: Node,
}

/// A fault of the syntax: its place and the reason.
pub(crate) type Broken = (Place, String);

impl Tree {
    /// # Errors
    /// All faults of the YAML itself. Of syntax errors only the first, since the text after it
    /// can't be trusted.
    pub(crate) fn parse(text: &str) -> Result<Self, Vec<Broken>> {
        let mut builder = Builder::new(text);
        let root = builder.document();
        let read = builder.end(root).map(|root| Self { root });
        read.map_err(|broken| with_remedy(text, broken))
    }

    /// Like [`Tree::parse`], for a file of several documents.
    pub(crate) fn parse_all(text: &str) -> Result<Vec<Self>, Vec<Broken>> {
        let mut builder = Builder::new(text);
        let roots = builder.documents();
        let roots = builder.end(roots).map_err(|broken| with_remedy(text, broken))?;
        Ok(roots.into_iter().map(|root| Self { root }).collect())
    }

    /// The place of the field at `path`, or else of the innermost value that holds it.
    pub(crate) fn place(&self, path: &Path) -> Place {
        let (mut node, mut place) = (&self.root, self.root.place);
        for step in path.steps() {
            let next = match (step, &node.kind) {
                (Step::Key(key), Kind::Map(entries)) => entries
                    .iter()
                    .find(|entry| entry.key == *key)
                    .map(|entry| (&entry.value, entry.key_place)),
                (Step::Index(index), Kind::List(items)) => {
                    items.get(*index).map(|item| (item, item.place))
                }
                _ => None,
            };
            let Some(next) = next else { break };
            (node, place) = next;
        }
        place
    }

    /// The value at `path`.
    pub(crate) fn node(&self, path: &Path) -> Option<&Node> {
        path.steps().iter().try_fold(&self.root, |node, step| match (step, &node.kind) {
            (Step::Key(key), Kind::Map(entries)) => {
                entries.iter().find(|entry| entry.key == *key).map(|entry| &entry.value)
            }
            (Step::Index(index), Kind::List(items)) => items.get(*index),
            _ => None,
        })
    }

    /// The value at `path`, mutable.
    pub(crate) fn node_mut(&mut self, path: &Path) -> Option<&mut Node> {
        let mut node = &mut self.root;
        for step in path.steps() {
            let next = match (step, &mut node.kind) {
                (Step::Key(key), Kind::Map(entries)) => {
                    entries.iter_mut().find(|entry| entry.key == *key).map(|entry| &mut entry.value)
                }
                (Step::Index(index), Kind::List(items)) => items.get_mut(*index),
                _ => None,
            };
            node = next?;
        }
        Some(node)
    }
}

impl Node {
    /// Null as YAML 1.2's core schema writes it.
    pub(crate) fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::List(items) => items.iter().map(Self::count).sum(),
            Kind::Map(entries) => entries.iter().map(|entry| entry.value.count()).sum(),
            Kind::Scalar { .. } | Kind::Removed { .. } => 0,
        }
    }
}

/// Adds what to write instead, where it is known.
fn with_remedy(text: &str, broken: Vec<Broken>) -> Vec<Broken> {
    let with_remedy = |(place, message): Broken| {
        let line = text.lines().nth(place.line.saturating_sub(1)).unwrap_or_default();
        match unquoted(line) {
            Some(remedy) => (place, format!("{message}; {remedy}")),
            None => (place, message),
        }
    };
    broken.into_iter().map(with_remedy).collect()
}

struct Builder<'a, I: Iterator<Item = Result<(Event<'a>, Span), ScanError>>> {
    events: I,
    anchors: HashMap<usize, Node>,
    nodes: usize,
    /// Faults that were found; the rest can still be read.
    broken: Vec<Broken>,
}

impl<'a> Builder<'a, Parser<'a, StrInput<'a>>> {
    fn new(text: &'a str) -> Self {
        Self {
            events: Parser::new_from_str(text),
            anchors: HashMap::new(),
            nodes: 0,
            broken: Vec::new(),
        }
    }
}

impl<'a, I: Iterator<Item = Result<(Event<'a>, Span), ScanError>>> Builder<'a, I> {
    /// The tree that was read, unless the syntax is broken.
    fn end<T>(mut self, read: Result<T, Broken>) -> Result<T, Vec<Broken>> {
        match read {
            Ok(read) if self.broken.is_empty() => Ok(read),
            Ok(_) => Err(self.broken),
            Err(fatal) => {
                self.broken.push(fatal);
                Err(self.broken)
            }
        }
    }

    fn documents(&mut self) -> Result<Vec<Node>, Broken> {
        let mut roots = Vec::new();
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(roots),
                (Event::StreamStart | Event::DocumentEnd, _) => {}
                (Event::DocumentStart(..), _) => {
                    let first = self.next()?;
                    roots.push(self.node(first, 0)?);
                }
                (_, place) => return Err((place, "not valid YAML".to_owned())),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Place), Broken> {
        loop {
            match self.events.next() {
                Some(Ok((Event::Comment(..), _))) => {}
                Some(Ok((event, span))) => return Ok((event, place(&span))),
                Some(Err(error)) => {
                    let marker = error.marker();
                    let place = Place { line: marker.line(), column: marker.col() + 1 };
                    return Err((place, format!("not valid YAML: {}", error.info())));
                }
                None => return Ok((Event::StreamEnd, Place { line: 1, column: 1 })),
            }
        }
    }

    fn document(&mut self) -> Result<Node, Broken> {
        let mut root = None;
        loop {
            match self.next()? {
                (Event::StreamEnd, place) => {
                    // A file of comments alone is a configuration without fields.
                    let empty = Node { place, kind: Kind::Map(Vec::new()) };
                    return Ok(root.unwrap_or(empty));
                }
                (Event::StreamStart | Event::DocumentEnd, _) => {}
                (Event::DocumentStart(..), place) if root.is_some() => {
                    let message = "a second document begins here; write one per file";
                    return Err((place, message.to_owned()));
                }
                (Event::DocumentStart(..), _) => {
                    let first = self.next()?;
                    let mut node = self.node(first, 0)?;
                    if node.is_null() {
                        node.kind = Kind::Map(Vec::new());
                    }
                    root = Some(node);
                }
                (_, place) => return Err((place, "not valid YAML".to_owned())),
            }
        }
    }

    fn node(&mut self, (event, place): (Event<'a>, Place), depth: usize) -> Result<Node, Broken> {
        self.nodes += 1;
        if self.nodes > MOST_NODES || depth > DEEPEST {
            return Err((place, "too large or too deeply nested for a configuration".to_owned()));
        }
        let (kind, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                // `!!str 1` is text, as if it were quoted.
                let plain = style == ScalarStyle::Plain && tag.is_none();
                (Kind::Scalar { text: text.into_owned(), plain }, anchor)
            }
            Event::SequenceStart(_, anchor, _) => (Kind::List(self.list(depth)?), anchor),
            Event::MappingStart(_, anchor, _) => (Kind::Map(self.map(depth)?), anchor),
            Event::Alias(id) => return self.alias(id, place),
            _ => return Err((place, "not valid YAML: a value is missing".to_owned())),
        };
        let node = Node { place, kind };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn alias(&mut self, id: usize, place: Place) -> Result<Node, Broken> {
        let Some(node) = self.anchors.get(&id).cloned() else {
            return Err((place, "an anchor can't be used inside of itself".to_owned()));
        };
        self.nodes += node.count();
        if self.nodes > MOST_NODES {
            return Err((place, "too large once its aliases are expanded".to_owned()));
        }
        Ok(Node { place, ..node })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Node>, Broken> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(items),
                event => items.push(self.node(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Vec<Entry>, Broken> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut merged = Vec::new();
        loop {
            let (event, key_place) = self.next()?;
            let (key, plain) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, ..) => (text.into_owned(), style == ScalarStyle::Plain),
                _ => return Err((key_place, "a field's name must be plain text".to_owned())),
            };
            let value = self.next()?;
            let value = self.node(value, depth + 1)?;
            if plain && key == "<<" {
                merged.extend(merge(value)?);
            } else if let Some(first) = entries.iter().find(|entry| entry.key == key) {
                let line = first.key_place.line;
                self.broken.push((key_place, format!("{key}: given twice, first on line {line}")));
            } else {
                entries.push(Entry { key, key_place, value });
            }
        }
        // A field that is written here wins over a merged one, and an earlier merge over a later.
        for entry in merged {
            if entries.iter().all(|own| own.key != entry.key) {
                entries.push(entry);
            }
        }
        Ok(entries)
    }
}

fn merge(value: Node) -> Result<Vec<Entry>, Broken> {
    match value.kind {
        Kind::Map(entries) => Ok(entries),
        Kind::List(items) => {
            let merged: Result<Vec<_>, _> = items.into_iter().map(merge).collect();
            Ok(merged?.into_iter().flatten().collect())
        }
        Kind::Scalar { .. } | Kind::Removed { .. } => {
            Err((value.place, "`<<` merges a mapping; give it an alias of one".to_owned()))
        }
    }
}

fn place(span: &Span) -> Place {
    Place { line: span.start.line(), column: span.start.col() + 1 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(text: &str) -> Vec<String> {
        let Err(broken) = Tree::parse(text) else { panic!("is valid: {text}") };
        broken.iter().map(|(place, message)| format!("{}: {message}", place.line)).collect()
    }

    #[test]
    fn a_value_is_found_where_its_field_is_written() {
        let tree = Tree::parse("a: 1\nb:\n  - c: 2\n  - d:\n      e: 3\n").unwrap();
        let b = Path::default().key("b");
        for (path, line) in [
            (Path::default(), 1),
            (Path::default().key("a"), 1),
            (b.clone(), 2),
            (b.index(0), 3),
            (b.index(1).key("d").key("e"), 5),
            // A missing field has the place of the mapping that lacks it.
            (b.index(1).key("d").key("other"), 4),
            (b.index(7), 2),
        ] {
            assert_eq!(tree.place(&path).line, line, "{path}");
        }
    }

    #[test]
    fn every_repeated_field_is_named_with_both_lines() {
        assert_eq!(
            broken("a: 1\nb: 2\na: 3\nb: 4\n"),
            ["3: a: given twice, first on line 1", "4: b: given twice, first on line 2"]
        );
    }

    #[test]
    fn a_second_document_and_a_key_that_is_a_list_are_refused() {
        assert_eq!(
            broken("a: 1\n---\nb: 2\n"),
            ["2: a second document begins here; write one per file"]
        );
        assert_eq!(broken("[a]: 1\n"), ["1: a field's name must be plain text"]);
    }

    #[test]
    fn aliases_of_aliases_do_not_fill_the_memory() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for n in 1..20 {
            let below = format!("*a{}", n - 1);
            text += &format!("a{n}: &a{n} [{}]\n", vec![below; 10].join(", "));
        }
        assert!(broken(&text)[0].contains("too large once its aliases are expanded"));
    }

    #[test]
    fn deep_nesting_is_refused_and_does_not_exhaust_the_stack() {
        let text = "[".repeat(100_000);
        assert_eq!(broken(&text).len(), 1);
    }

    #[test]
    fn what_is_written_wins_over_what_is_merged() {
        let tree = Tree::parse("base: &b {x: 1, y: 2}\nown:\n  <<: *b\n  y: 3\n").unwrap();
        let Kind::Map(entries) = &tree.root.kind else { panic!() };
        let Kind::Map(own) = &entries[1].value.kind else { panic!() };
        let texts: Vec<_> = own
            .iter()
            .map(|entry| match &entry.value.kind {
                Kind::Scalar { text, .. } => format!("{}={text}", entry.key),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(texts, ["y=3", "x=1"]);
    }
}
