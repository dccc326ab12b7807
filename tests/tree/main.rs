//! The shape of the source tree: which room may import from which, no circles, no long files, and
//! sentences that can be read once.
//!
//! Reads the sources as they stand. A failure names the file, the line and the mend. The floors of
//! each crate are in `floors.rs`; a new room gets its line there.

mod floors;
mod imports;
mod language;
mod types;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use floors::{CRATES, Crate};
use imports::Sources;

/// Lines that a file may have before it has to be split.
const LONGEST: usize = 500;

/// Structs that have a field for each one of a public text: a section of the configuration, an
/// object of a feed. They are split where the text is.
const AS_WIDE_AS_THEIR_TEXT: &[&str] = &[
    "signals.rs: EndpointSignals",
    "signals.rs: PoolSignals",
    "types/gateway.rs: Gateway",
    "types/gateway.rs: Limits",
    "types/pool.rs: Pool",
    "types/scaling.rs: Scaling",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, by its path from there.
fn read(folder: &Path) -> Sources {
    fn walk(folder: &Path, top: &Path, files: &mut Sources) {
        let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{folder:?}: {error}"));
        for entry in entries.map(|entry| entry.expect("a readable folder").path()) {
            if entry.is_dir() {
                if !entry.ends_with("target") {
                    walk(&entry, top, files);
                }
            } else if entry.extension().is_some_and(|ending| ending == "rs") {
                let name = entry.strip_prefix(top).expect("below the top");
                let text = fs::read_to_string(&entry).expect("a readable file");
                files.insert(name.to_string_lossy().into_owned(), text);
            }
        }
    }
    let mut files = BTreeMap::new();
    walk(folder, folder, &mut files);
    files
}

fn assert_none(problems: Vec<String>) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

fn each_crate(check: impl Fn(&Crate, &Sources) -> Vec<String>) {
    let problems = CRATES.iter().flat_map(|krate| {
        let found = check(krate, &read(&root().join(krate.folder)));
        found.into_iter().map(|problem| format!("{}/{problem}", krate.folder))
    });
    assert_none(problems.collect());
}

#[test]
fn imports_go_down_only() {
    each_crate(|krate, files| imports::upward(krate.floors, files));
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    each_crate(|_, files| imports::circles(files));
}

#[test]
fn every_room_has_its_floor_and_says_what_it_is() {
    each_crate(|krate, files| imports::rooms(krate.floors, files));
}

#[test]
fn no_two_types_of_a_crate_share_a_name() {
    each_crate(|_, files| types::shared_names(files));
}

#[test]
fn no_struct_has_many_fields() {
    each_crate(|_, files| types::wide_structs(files, AS_WIDE_AS_THEIR_TEXT));
}

#[test]
fn no_file_is_longer_than_it_can_be_read() {
    let longer = read(&root()).into_iter().filter(|(_, text)| text.lines().count() > LONGEST);
    let longer =
        longer.map(|(name, _)| format!("{name}: over {LONGEST} lines: split it by its subject"));
    assert_none(longer.collect());
}

#[test]
fn no_sentence_has_to_be_read_twice() {
    let mut files = read(&root());
    // The list names the phrases itself, and the planted ones are below.
    files.retain(|name, _| !name.starts_with("tests/tree/"));
    assert_none(language::phrases(&files));
}

// === the checks themselves, on planted faults ===

fn planted(files: &[(&str, &str)]) -> Sources {
    files.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect()
}

const FLOORS: &[&str] = &["low", "high"];

#[test]
fn an_import_that_goes_up_is_named() {
    for planted_use in [
        "use crate::high::b::B;",
        "use crate::{high::b, low};",
        "fn f() { crate::high::b::run(); }",
        "use super::super::high::b::{self, B};",
        "fn f(b: &crate::high::b::B) {}",
    ] {
        let files = planted(&[
            ("lib.rs", "mod low; mod high;"),
            ("low/mod.rs", "//! Low.\nmod a;"),
            ("low/a.rs", planted_use),
            ("high/mod.rs", "//! High.\nmod b;"),
            ("high/b.rs", "use crate::low::a;"),
        ]);
        let found = imports::upward(FLOORS, &files);
        assert_eq!(found.len(), 1, "{planted_use}: {found:?}");
        assert!(found[0].contains("low/a.rs") && found[0].contains("high/b.rs"), "{found:?}");
    }
}

#[test]
fn an_import_of_a_test_counts_for_nothing() {
    let files = planted(&[
        ("low/mod.rs", "//! Low.\n#[cfg(test)]\nmod tests { use crate::high::b::B; }"),
        ("low/tests.rs", "use crate::high::b::B;"),
        ("low/a/tests.rs", "use crate::high::b::B;"),
        ("high/mod.rs", "//! High.\nmod b;"),
        ("high/b.rs", ""),
    ]);
    assert_eq!(imports::upward(FLOORS, &files), Vec::<String>::new());
}

#[test]
fn a_circle_is_named_with_all_its_files() {
    let files = planted(&[
        ("low/a.rs", "use crate::low::b;"),
        ("low/b.rs", "use super::c::C;"),
        ("low/c.rs", "use crate::low::a::A;"),
        ("low/d.rs", "use crate::low::a::A;"),
    ]);
    let found = imports::circles(&files);
    assert_eq!(found.len(), 1, "{found:?}");
    for name in ["low/a.rs", "low/b.rs", "low/c.rs"] {
        assert!(found[0].contains(name), "{found:?}");
    }
    assert!(!found[0].contains("low/d.rs"), "{found:?}");
}

#[test]
fn a_module_and_its_parts_are_not_a_circle() {
    let files = planted(&[
        ("low/pool.rs", "mod hold; use hold::Hold; fn f() { self::hold::run(); }"),
        ("low/pool/hold.rs", "use super::Pool;"),
    ]);
    assert_eq!(imports::circles(&files), Vec::<String>::new());
}

#[test]
fn a_room_without_floor_or_comment_is_named() {
    let files = planted(&[
        ("low/mod.rs", "mod a;"),
        ("attic/mod.rs", "//! Things.\nmod a;"),
        ("high/mod.rs", "//! High."),
    ]);
    let found = imports::rooms(FLOORS, &files).join("\n");
    assert!(found.contains("attic") && found.contains("low/mod.rs"), "{found}");
    assert!(!found.contains("high/mod.rs"), "{found}");
}

#[test]
fn a_phrase_that_has_to_be_read_twice_is_named_with_its_line() {
    for (case, source, line) in [
        ("a doc comment", "mod a;\n/// What comes.\nfn a() {}", Some(2)),
        ("a module's comment", "//! What comes.", Some(1)),
        ("in the middle of one", "/// The rest.\n/// What comes.\nfn a() {}", None),
        ("a question in a comment", "// What comes?", None),
        ("a comment", "fn a() {}\n// It is no size.", Some(2)),
        ("over a line's end", "/// Nobody\n/// is\n/// told.\nfn a() {}", Some(3)),
        ("a text", "fn a() { say(\"a client is told\") }", Some(1)),
        ("a text on two lines", "fn a() {\nsay(\"a client is \\\n  told\") }", Some(2)),
        ("a raw text", "const A: &str = r#\"it is no \"size\"\"#;", Some(1)),
        ("behind a character", "const A: (char, char) = ('\"', '\\''); // is told", Some(1)),
        ("plain English", "// It is no longer there, and there is no other.", None),
        ("part of a word", "// this told", None),
        ("a name", "fn is_told() {}", None),
    ] {
        let found = language::phrases(&planted(&[("a.rs", source)]));
        match line {
            Some(line) => {
                assert_eq!(found.len(), 1, "{case}: {found:?}");
                assert!(found[0].starts_with(&format!("a.rs:{line}: ")), "{case}: {found:?}");
            }
            None => assert_eq!(found, Vec::<String>::new(), "{case}"),
        }
    }
}

#[test]
fn a_shared_name_and_a_wide_struct_are_named() {
    let fields: String = (0..13).map(|field| format!("f{field}: u8, ")).collect();
    let wide = format!("struct Wide {{ {fields} }} mod tests {{ struct Twice; }}");
    let files = planted(&[
        ("lib.rs", "mod a; mod b;"),
        ("a.rs", "struct Twice; fn f() { struct Wide; }"),
        ("b.rs", "enum Twice { A }"),
        ("c.rs", &wide),
    ]);
    assert_eq!(types::shared_names(&files), ["a.rs, b.rs: two types are called Twice: rename one"]);
    assert_eq!(types::wide_structs(&files, &[]), ["c.rs: Wide has 13 fields: split it by duty"]);
    assert_eq!(types::wide_structs(&files, &["c.rs: Wide"]), [""; 0]);
}
