//! docs/commands.md shows each command's help as the program prints it.

use std::path::Path;
use std::process::Command;

/// The output of the program with these arguments, on a terminal of 100 columns.
fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_forebay"))
        .args(arguments)
        .env("COLUMNS", "100")
        .env_remove("CLICOLOR_FORCE")
        .output()
        .expect("forebay");
    assert!(output.status.success(), "forebay {arguments:?}: {output:?}");
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| line.trim_end().to_owned() + "\n").collect()
}

/// The commands that the program's help lists.
fn commands(help: &str) -> Vec<&str> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let lines = listed.take_while(|line| !line.is_empty());
    // A description that continues on the next line stands further to the right.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next()).filter(|name| *name != "help").collect()
}

/// `UPDATE_DOCS=1` writes the page anew.
#[test]
fn the_page_of_commands_shows_each_command_as_it_explains_itself() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/commands.md");
    let mut page = std::fs::read_to_string(&path).expect("docs/commands.md");
    let begin = "<!-- written by `UPDATE_DOCS=1 cargo test --test command_reference` -->\n";
    let start = page.find(begin).expect("the mark") + begin.len();
    let overview = help(&["--help"]);
    let commands = commands(&overview);
    assert!(commands.contains(&"dev") && commands.contains(&"vllm-sim"), "{commands:?}");
    let mut text = String::new();
    for name in commands {
        text += &format!("\n## `forebay {name}`\n\n```text\n{}```\n", help(&[name, "--help"]));
    }
    page.replace_range(start.., &text);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let now = std::fs::read_to_string(&path).expect("docs/commands.md");
    assert!(now == page, "docs/commands.md is not up to date: run with UPDATE_DOCS=1");
}
