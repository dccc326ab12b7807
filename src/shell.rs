//! Files that packages install beside the program: completions of the shells, and man pages.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::CommandFactory as _;
use clap_complete::Shell;
use forebay_base::print;

/// Flags of `forebay completions`.
#[derive(clap::Args)]
#[command(after_help = "\
For bash:  forebay completions bash > ~/.local/share/bash-completion/completions/forebay
For zsh:   forebay completions zsh > \"${fpath[1]}/_forebay\"
For fish:  forebay completions fish > ~/.config/fish/completions/forebay.fish")]
pub(crate) struct CompletionArgs {
    /// The shell
    shell: Shell,
}

/// Flags of `forebay man-pages`.
#[derive(clap::Args)]
pub(crate) struct ManPageArgs {
    /// Folder for the pages, a file for each command
    folder: PathBuf,
}

/// Prints the script that completes `forebay` in a shell.
pub(crate) fn completions(args: &CompletionArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut shown(), "forebay", &mut script);
    print::out(String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes `forebay.1`, and `forebay-NAME.1` for each command.
pub(crate) fn man_pages(args: &ManPageArgs) -> anyhow::Result<ExitCode> {
    let folder = &args.folder;
    let written = std::fs::create_dir_all(folder).and_then(|()| {
        let mut command = shown();
        command.build();
        write(&command, None, folder)
    });
    written.with_context(|| format!("cannot write into {}", folder.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn write(command: &clap::Command, above: Option<&str>, folder: &Path) -> std::io::Result<()> {
    let name = match above {
        Some(above) => format!("{above}-{}", command.get_name()),
        None => command.get_name().to_owned(),
    };
    let page = clap_mangen::Man::new(command.clone()).title(name.to_uppercase());
    let mut text = Vec::new();
    page.render(&mut text)?;
    std::fs::write(folder.join(format!("{name}.1")), text)?;
    let shown = command.get_subcommands().filter(|command| !command.is_hide_set());
    for command in shown.filter(|command| command.get_name() != "help") {
        write(command, Some(&name), folder)?;
    }
    Ok(())
}

/// The command line without what is hidden in it.
fn shown() -> clap::Command {
    let all = crate::Cli::command();
    let about = all.get_about().cloned().unwrap_or_default();
    let mut shown = clap::Command::new("forebay").version(crate::VERSION).about(about);
    if let Some(text) = all.get_after_help() {
        shown = shown.after_help(text.clone());
    }
    shown.subcommands(all.get_subcommands().filter(|command| !command.is_hide_set()).cloned())
}
