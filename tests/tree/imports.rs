//! Imports between the files of one crate, as `syn` reads them: `use` items and paths that begin
//! with `crate`, `self` or `super`. What only tests import is left out.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

/// Files by their path below `src`, with their text.
pub(crate) type Sources = BTreeMap<String, String>;

/// Every import between two files.
fn edges(files: &Sources) -> BTreeMap<&str, BTreeSet<&str>> {
    let modules: BTreeMap<Vec<&str>, &str> =
        files.keys().map(|name| (module(name), name.as_str())).collect();
    let mut edges = BTreeMap::new();
    for (name, text) in files.iter().filter(|(name, _)| !is_test(name)) {
        let file = syn::parse_file(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut paths = Paths::default();
        paths.visit_file(&file);
        let here = module(name);
        let targets = paths.found.iter().filter_map(|path| resolve(&here, path, &modules));
        let targets = targets.filter(|target| target != name && !is_test(target));
        edges.insert(name.as_str(), targets.collect());
    }
    edges
}

pub(crate) fn is_test(name: &str) -> bool {
    name.split('/').any(|part| matches!(part, "tests" | "tests.rs"))
}

/// `["pool", "hold"]` for `pool/hold.rs`; empty for the crate's root.
fn module(name: &str) -> Vec<&str> {
    let mut parts: Vec<_> = name.trim_end_matches(".rs").split('/').collect();
    if matches!(parts.last(), Some(&("mod" | "lib" | "main"))) {
        parts.pop();
    }
    parts
}

/// The file that a path leads to: that of the longest part of it that is a module.
fn resolve<'a>(
    here: &[&str],
    path: &[String],
    modules: &BTreeMap<Vec<&str>, &'a str>,
) -> Option<&'a str> {
    let mut base = here.to_vec();
    let mut rest = path.iter().map(String::as_str).peekable();
    match rest.next()? {
        "crate" => base.clear(),
        "self" => {}
        "super" => {
            base.pop()?;
            while rest.next_if_eq(&"super").is_some() {
                base.pop()?;
            }
        }
        _ => return None,
    }
    base.extend(rest);
    while !modules.contains_key(&base) {
        base.pop()?;
    }
    modules.get(&base).copied()
}

/// Collects paths, with groups taken apart.
#[derive(Default)]
struct Paths {
    found: BTreeSet<Vec<String>>,
}

impl Paths {
    fn tree(&mut self, before: &[String], tree: &syn::UseTree) {
        let with = |name: &syn::Ident| {
            let mut path = before.to_vec();
            // `a::{self, B}` names `a` itself.
            if name != "self" || path.is_empty() {
                path.push(name.to_string());
            }
            path
        };
        match tree {
            syn::UseTree::Path(path) => self.tree(&with(&path.ident), &path.tree),
            syn::UseTree::Name(name) => drop(self.found.insert(with(&name.ident))),
            syn::UseTree::Rename(name) => drop(self.found.insert(with(&name.ident))),
            syn::UseTree::Glob(_) => drop(self.found.insert(before.to_vec())),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.tree(before, item));
            }
        }
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && attribute.parse_args::<syn::Ident>().is_ok_and(|argument| argument == "test")
    })
}

impl<'ast> Visit<'ast> for Paths {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !is_for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        if !is_for_tests(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        let names = path.segments.iter().map(|segment| segment.ident.to_string());
        self.found.insert(names.collect());
        visit::visit_path(self, path);
    }
}

/// The floor of a file, by the room that it stands in; the crate's root is above all.
fn floor(floors: &[&str], name: &str) -> Option<usize> {
    match module(name).first() {
        Some(room) => floors.iter().position(|floor| floor == room),
        None => Some(floors.len()),
    }
}

/// Imports that lead to a higher floor.
pub(crate) fn upward(floors: &[&str], files: &Sources) -> Vec<String> {
    let edges = edges(files);
    let each = edges.iter().flat_map(|(from, targets)| targets.iter().map(move |to| (*from, *to)));
    let upward = |(from, to): &(&str, &str)| {
        // What stands in the crate's root is for everybody, names re-exported there too.
        !module(to).is_empty()
            && floor(floors, from).zip(floor(floors, to)).is_some_and(|(from, to)| from < to)
    };
    each.filter(upward)
        .map(|(from, to)| {
            format!("{from} imports {to}, which is on a higher floor: move what it needs down")
        })
        .collect()
}

/// Files that import each other, directly or through others. A module and its parts are one thing:
/// what it takes from them is not an import.
pub(crate) fn circles(files: &Sources) -> Vec<String> {
    let mut edges = edges(files);
    for (from, targets) in &mut edges {
        let parent = module(from);
        targets.retain(|to| !module(to).starts_with(&parent));
    }
    let reach: BTreeMap<&str, BTreeSet<&str>> =
        edges.keys().map(|from| (*from, reachable(from, &edges))).collect();
    let mut circles = BTreeSet::new();
    for (from, reached) in reach.iter().filter(|(from, reached)| reached.contains(*from)) {
        let circle = reached
            .iter()
            .filter(|to| reach.get(*to).is_some_and(|reached| reached.contains(from)));
        circles.insert(circle.copied().collect::<Vec<_>>());
    }
    circles.into_iter().map(|circle| format!("in a circle: {}", circle.join(", "))).collect()
}

fn reachable<'a>(from: &str, edges: &BTreeMap<&'a str, BTreeSet<&'a str>>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = edges.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(edges.get(file).into_iter().flatten());
        }
    }
    reached
}

/// Rooms without a floor, and folders whose top file does not say what they are.
pub(crate) fn rooms(floors: &[&str], files: &Sources) -> Vec<String> {
    let mut problems = BTreeSet::new();
    for name in files.keys().filter(|name| !is_test(name)) {
        if !floors.is_empty() && floor(floors, name).is_none() {
            let room = module(name)[0];
            problems.insert(format!("{room}: give this room its floor in tests/tree/floors.rs"));
        }
        let mut folder = name.as_str();
        while let Some((parent, _)) = folder.rsplit_once('/') {
            folder = parent;
            let top = [format!("{folder}/mod.rs"), format!("{folder}.rs")];
            let top = top.iter().find_map(|name| Some((name, files.get(name)?)));
            match top {
                Some((name, text)) if !text.starts_with("//!") => {
                    problems.insert(format!("{name}: say at the top what this folder is"));
                }
                _ => {}
            }
        }
    }
    problems.into_iter().collect()
}
