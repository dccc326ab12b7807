//! Finds the commit that is built, and its date, for `forebay --version`.
//!
//! Taken from `src/commit.txt`, which `git archive` fills in, or else from the repository itself.
//! Where neither is known, the version stands alone.

use std::path::Path;
use std::process::Command;

fn main() {
    let root = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/commit.txt");
    let archived = std::fs::read_to_string("src/commit.txt").unwrap_or_default();
    let archived = Some(archived.trim().to_owned()).filter(|text| !text.starts_with('$'));
    let commit = archived.or_else(|| of_repository(Path::new(&root)));
    let commit = commit.filter(|text| !text.is_empty());
    let commit = commit.map_or_else(String::new, |text| format!(" ({text})"));
    println!("cargo::rustc-env=FOREBAY_COMMIT={commit}");
}

/// Hash and date of the last commit, if this folder is the top of a repository: a copy of the
/// source within another repository has nothing to do with its commits.
fn of_repository(root: &Path) -> Option<String> {
    let top = git(root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    // Grows with each commit, checkout and reset.
    let log = root.join(git(root, &["rev-parse", "--git-path", "logs/HEAD"])?);
    if log.exists() {
        println!("cargo::rerun-if-changed={}", log.display());
    }
    git(root, &["log", "-1", "--format=%h %cs"])
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
