//! Wrong files and their problems.

#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses its part")]

use forebay_config::parse;

/// A pool that is right, to be put where the rest is what a case is about.
pub const POOL: &str = "pools: [{name: a, models: [m], endpoints: ['h:1']}]\n";

pub fn report(text: &str) -> String {
    match parse(text, "f.yaml") {
        Ok(_) => format!("is valid:\n{text}"),
        Err(problems) => problems.to_string(),
    }
}

/// With `fields` of one pool, from line 3 on.
pub fn of_pool(fields: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    report(&format!("pools:\n  - name: a\n{fields}"))
}

/// With `fields` of a processes target that is right, from line 4 on; the command comes last.
pub fn of_processes(fields: &str, scaling: &str) -> String {
    let fields: String = fields.lines().map(|line| format!("    {line}\n")).collect();
    let command = if fields.contains("command") { "" } else { "    command: ['{port}']\n" };
    of_pool(&format!("target:\n  processes:\n{fields}{command}{scaling}"))
}
