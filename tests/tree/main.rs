//! The shape of the source tree: which room may import from which, no circles, no long files.
//!
//! Reads the sources as they stand. A failure names the file, the line and the mend. The floors of
//! each crate are in `floors.rs`; a new room gets its line there.

mod floors;
mod imports;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use floors::{CRATES, Crate};
use imports::Sources;

/// Lines that a file may have before it has to be split.
const LONGEST: usize = 500;
/// Files that are longer already and wait for their split. None joins them.
const LONG: &[&str] = &[
    "config/tests/keda/corpus.rs",
    "config/tests/triggers.rs",
    "gateway/src/answer/judge.rs",
    "gateway/src/pool/tests.rs",
    "scaler/src/run/mod.rs",
    "scaler/src/run/pool/tests.rs",
    "scaler/tests/supervisor.rs",
    "tests/answers.rs",
    "tests/upgrade.rs",
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
fn no_file_is_longer_than_it_can_be_read() {
    let files = read(&root());
    let long = |name: &str| files.get(name).is_some_and(|text| text.lines().count() > LONGEST);
    let longer = files.keys().filter(|name| long(name) && !LONG.contains(&name.as_str()));
    let longer =
        longer.map(|name| format!("{name}: over {LONGEST} lines: split it by its subject"));
    let split = LONG.iter().filter(|name| !long(name));
    let split = split.map(|name| format!("{name}: short enough now: take it off the list"));
    assert_none(longer.chain(split).collect());
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
