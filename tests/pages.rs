//! The pages that people read: every link leads somewhere, and every path, test and crate that a
//! page names exists.
//!
//! Read are the pages at the top, `docs/`, and the pages of the chart and of the examples, in this
//! repository as it stands. Addresses on the web are not fetched. `docs/SUMMARY.md` is the book's table of
//! contents; the links of the built book are checked by `.ci/book`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A page by its path from the root, with its text.
struct Page {
    name: String,
    text: String,
}

/// The pages below a folder, by their paths from the root.
fn pages_below(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(root().join(folder)).expect("a readable folder");
    let below = entries.flat_map(|entry| {
        let entry = entry.expect("a readable folder");
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.path().is_dir() { pages_below(&path) } else { vec![path] }
    });
    below.filter(|path| path.ends_with(".md")).collect()
}

fn pages() -> Vec<Page> {
    let mut names = pages_below("docs");
    let others = [
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "deploy/chart/forebay/README.md",
        "deploy/examples/README.md",
    ];
    names.extend(others.map(str::to_owned));
    names.sort();
    let read = |name: String| {
        let text = fs::read_to_string(root().join(&name)).expect("a readable page");
        Page { name, text }
    };
    names.into_iter().map(read).collect()
}

fn assert_none(problems: &[String]) {
    assert!(problems.is_empty(), "\n{}\n", problems.join("\n"));
}

/// The text outside of fenced blocks, or the blocks alone.
fn part(text: &str, fenced: bool) -> String {
    let mut inside = false;
    let mut part = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if inside == fenced {
            part.push_str(line);
            part.push('\n');
        }
    }
    part
}

/// The targets of Markdown links.
fn links(text: &str) -> Vec<String> {
    let prose = part(text, false);
    let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
    targets.map(str::to_owned).collect()
}

/// The anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let prose = part(text, false);
    let headings = prose.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let kept = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, '-' | '_' | ' '));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

/// The problems of a page's links.
fn broken_links(
    page: &Page,
    anchors_of: impl Fn(&Path) -> Option<BTreeSet<String>>,
) -> Vec<String> {
    let folder = Path::new(&page.name).parent().unwrap_or(Path::new(""));
    let check = |target: String| {
        if target.contains("://") {
            return None;
        }
        let (file, anchor) = target.split_once('#').unwrap_or((&target, ""));
        let path =
            if file.is_empty() { PathBuf::from(&page.name) } else { normal(&folder.join(file)) };
        match anchors_of(&path) {
            None => Some(format!("{}: ({target}) leads to no file", page.name)),
            Some(known) if !anchor.is_empty() && !known.contains(anchor) => {
                Some(format!("{}: ({target}) leads to no heading", page.name))
            }
            Some(_) => None,
        }
    };
    links(&page.text).into_iter().filter_map(check).collect()
}

/// A path without `..`.
fn normal(path: &Path) -> PathBuf {
    let mut parts = Vec::new();
    for part in path.components() {
        if part.as_os_str() == ".." {
            parts.pop();
        } else {
            parts.push(part);
        }
    }
    parts.into_iter().collect()
}

/// Every file and folder of the repository by its path from the root, folders with a slash at the
/// end. What git does not track is left out.
fn tracked() -> BTreeSet<String> {
    let listed = std::process::Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output()
        .expect("git");
    let mut all = BTreeSet::new();
    for file in String::from_utf8_lossy(&listed.stdout).lines() {
        all.insert(file.to_owned());
        for (at, _) in file.match_indices('/') {
            all.insert(file[..=at].to_owned());
        }
    }
    all
}

/// Paths in code spans that do not exist: those that begin with a folder of the root, source files,
/// and names with a slash at the end. A path may leave out the folders before it.
fn missing_paths(page: &Page, tracked: &BTreeSet<String>) -> Vec<String> {
    let prose = part(&page.text, false);
    let spans = prose.split('`').skip(1).step_by(2);
    let is_path = |span: &&str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '_' | '-');
        let top = span.split_once('/').map(|(top, _)| format!("{top}/"));
        let in_root = top.is_some_and(|top| top.len() > 1 && tracked.contains(&top));
        let named = in_root || span.ends_with(".rs") || (span.ends_with('/') && span.len() > 1);
        span.chars().all(plain) && !span.starts_with('/') && named
    };
    let exists = |span: &str| {
        let with_slash = format!("{}/", span.trim_end_matches('/'));
        let ends = |path: &String, end: &str| {
            path.strip_suffix(end).is_some_and(|before| before.is_empty() || before.ends_with('/'))
        };
        tracked.iter().any(|path| ends(path, span) || ends(path, &with_slash))
    };
    let missing = spans.filter(is_path).filter(|span| !exists(span));
    missing.map(|span| format!("{}: there is no `{span}`", page.name)).collect()
}

/// Tests, benchmarks and crates in a page's commands that do not exist.
fn missing_targets(page: &Page, tracked: &BTreeSet<String>) -> Vec<String> {
    let words: Vec<_> = page.text.split_whitespace().map(|word| word.trim_matches('`')).collect();
    let exists = |flag: &str, name: &str| {
        let ends = |end: String| tracked.iter().any(|path| path.ends_with(&end));
        match flag {
            "--test" => {
                let path = format!("tests/{name}");
                ends(format!("{path}.rs")) || ends(format!("{path}/main.rs"))
            }
            "--bench" => ends(format!("benches/{name}.rs")),
            "-p" => {
                tracked.contains(&format!("{}/Cargo.toml", name.trim_start_matches("forebay-")))
            }
            _ => true,
        }
    };
    let name = |word: &str| word.trim_end_matches(['.', ',', ')', ';', '`']).to_owned();
    words
        .windows(2)
        .map(|pair| (pair[0], name(pair[1])))
        .filter(|(flag, name)| *flag != "-p" || name.starts_with("forebay-"))
        .filter(|(flag, name)| !exists(flag, name))
        .map(|(flag, name)| format!("{}: there is no `{flag} {name}`", page.name))
        .collect()
}

#[test]
fn every_link_leads_somewhere() {
    let anchors_of = |path: &Path| {
        let path = root().join(path);
        let is_page = path.extension().is_some_and(|ending| ending == "md");
        let text = if is_page { fs::read_to_string(&path).ok()? } else { String::new() };
        path.exists().then(|| anchors(&text))
    };
    let problems: Vec<_> = pages().iter().flat_map(|page| broken_links(page, anchors_of)).collect();
    assert_none(&problems);
}

#[test]
fn every_path_and_command_of_a_page_exists() {
    let tracked = tracked();
    let problems: Vec<_> = pages()
        .iter()
        .flat_map(|page| [missing_paths(page, &tracked), missing_targets(page, &tracked)])
        .flatten()
        .collect();
    assert_none(&problems);
}

#[test]
fn every_page_is_in_the_book_once() {
    let summary = fs::read_to_string(root().join("docs/SUMMARY.md")).expect("docs/SUMMARY.md");
    let mut listed: Vec<_> =
        links(&summary).into_iter().map(|target| format!("docs/{target}")).collect();
    listed.sort();
    let mut there = pages_below("docs");
    there.retain(|page| page != "docs/SUMMARY.md");
    there.sort();
    assert_eq!(listed, there, "docs/SUMMARY.md against the pages of docs/");
}

/// The YAML blocks of a page.
fn yaml_blocks(text: &str) -> impl Iterator<Item = &str> {
    text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next())
}

#[test]
fn every_recipe_is_a_valid_file() {
    let page = fs::read_to_string(root().join("docs/howto.md")).expect("docs/howto.md");
    let folder = std::env::temp_dir().join(format!("forebay-recipes-{}", std::process::id()));
    fs::create_dir(&folder).expect("a folder");
    // The recipes name programs and files of the reader's machine.
    let vllm = folder.join("vllm");
    fs::write(&vllm, "#!/bin/sh\n").expect("written");
    fs::set_permissions(&vllm, fs::Permissions::from_mode(0o755)).expect("permitted");
    let keys = folder.join("keys.yaml");
    let tenants = ["web", "research", "nightly"];
    let hash = |n: usize| format!("{n:064x}");
    let entries: String = (0..tenants.len())
        .map(|n| format!("- {{tenant: {}, sha256: {}}}\n", tenants[n], hash(n)))
        .collect();
    fs::write(&keys, entries).expect("written");
    let file = folder.join("forebay.yaml");
    let mut problems = Vec::new();
    let mut count = 0;
    for block in yaml_blocks(&page) {
        count += 1;
        let text = block.replace("/run/secrets/forebay/keys.yaml", &keys.to_string_lossy());
        fs::write(&file, text).expect("written");
        let checked = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"))
            .args(["check", "--strict", "--config"])
            .arg(&file)
            .env("PATH", &folder)
            .output()
            .expect("forebay");
        if !checked.status.success() {
            let why = [checked.stdout, checked.stderr].concat();
            problems.push(format!("{block}{}", String::from_utf8_lossy(&why)));
        }
    }
    let _ = fs::remove_dir_all(&folder);
    assert!(count > 5, "the page has recipes");
    assert_none(&problems);
}

#[test]
fn the_page_of_triggers_shows_the_findings_as_they_are_printed() {
    let page = fs::read_to_string(root().join("docs/triggers.md")).expect("docs/triggers.md");
    let command = "$ forebay check --scaled-object kv-cache.yaml\n";
    let (_, shown) = page.split_once(command).expect("the command");
    let (shown, _) = shown.split_once("```").expect("a fence");
    let printed = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(["check", "--scaled-object", "kv-cache.yaml"])
        .current_dir(root().join("config/tests/scaled-objects"))
        .output()
        .expect("forebay");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(shown, text(&printed.stderr) + &text(&printed.stdout), "docs/triggers.md");
}

/// A shell takes `?` of an address without quotes for a pattern; zsh then runs nothing.
#[test]
fn every_address_with_a_query_is_quoted() {
    let mut problems = Vec::new();
    for page in pages() {
        for line in part(&page.text, true).lines() {
            let plain = line.split_whitespace().find(|word| {
                word.starts_with("http") && word.contains('?') && line.contains("curl ")
            });
            problems.extend(plain.map(|word| format!("{}: quote {word}", page.name)));
        }
    }
    assert_none(&problems);
}

// === the checks themselves, on planted faults ===

fn page(text: &str) -> Page {
    Page { name: "docs/page.md".to_owned(), text: text.to_owned() }
}

#[test]
fn a_link_without_file_or_heading_is_named() {
    let known = |path: &Path| {
        (path == Path::new("docs/page.md") || path == Path::new("docs/there.md"))
            .then(|| anchors("# One `two`, three\n```\n# no heading\n```\n"))
    };
    let text = "[a](there.md#one-two-three) [b](gone.md) [c](#no-heading) [d](https://x.y/z)";
    let found = broken_links(&page(text), known);
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found[0].contains("gone.md") && found[1].contains("#no-heading"), "{found:?}");
}

#[test]
fn a_path_or_a_test_that_does_not_exist_is_named() {
    let tracked =
        ["gateway/src/pool/hold.rs", "gateway/src/pool/", "gateway/", "tests/tree/main.rs"]
            .map(str::to_owned)
            .into();
    let text = "`pool/hold.rs` `hold.rs` `gateway/src/pool` `old.rs` `gateway/old` `rooms/` `/v1/`\n\
                `cargo test --test tree` and `cargo test --test gone`";
    let paths = missing_paths(&page(text), &tracked).join(" ");
    for wrong in ["`old.rs`", "`gateway/old`", "`rooms/`"] {
        assert!(paths.contains(wrong), "{paths}");
    }
    assert_eq!(paths.matches("there is no").count(), 3, "{paths}");
    let targets = missing_targets(&page(text), &tracked).join(" ");
    assert!(targets.contains("gone") && !targets.contains("tree"), "{targets}");
}
