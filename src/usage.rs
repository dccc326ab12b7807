//! Hints for mistakes on the command line, beyond those that clap finds by itself.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};

/// Names of other programs' commands that start something, for which `run` is ours.
const STARTS: [&str; 5] = ["serve", "server", "start", "up", "launch"];

/// Adds to an error the command that was probably meant. `arguments` are those of this process.
pub(crate) fn with_hint(mut error: Error, arguments: &[String]) -> Error {
    // A hidden subcommand is for Forebay itself, and no help for a typing error.
    if let Some(ContextValue::Strings(names)) = error.remove(ContextKind::SuggestedSubcommand) {
        let names: Vec<_> = names.into_iter().filter(|name| name != "supervise").collect();
        if !names.is_empty() {
            error.insert(ContextKind::SuggestedSubcommand, ContextValue::Strings(names));
        }
    }
    if let Some(hint) = hint(&error, arguments) {
        error.remove(ContextKind::SuggestedArg);
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint.into()]));
    }
    error
}

fn hint(error: &Error, arguments: &[String]) -> Option<String> {
    let of = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.as_str()),
        _ => None,
    };
    match error.kind() {
        ErrorKind::InvalidSubcommand => {
            let name = of(ContextKind::InvalidSubcommand)?;
            if is_file(name) {
                Some(format!("a configuration file is started by: forebay run --config {name}"))
            } else if name == "vllm" || name == "python" || name == "python3" {
                let after = arguments.iter().skip_while(|argument| *argument != name);
                let command = after.map(String::as_str).collect::<Vec<_>>().join(" ");
                Some(format!("a command for replicas follows `--`: forebay dev -- {command}"))
            } else if starts(name) {
                Some(
                    "to start from a configuration file: forebay run --config FILE; without one: \
                     forebay dev"
                        .to_owned(),
                )
            } else {
                None
            }
        }
        ErrorKind::UnknownArgument => {
            let argument = of(ContextKind::InvalidArg)?;
            let command = arguments.iter().find(|argument| !argument.starts_with('-'))?.as_str();
            let flag = argument.split('=').next().unwrap_or(argument);
            match (command, flag) {
                ("run" | "gateway" | "scaler" | "check" | "dev" | "replay", file)
                    if is_file(file) =>
                {
                    Some(format!(
                        "a configuration file follows --config: forebay {command} --config {file}"
                    ))
                }
                ("dev", "--port" | "--host" | "-p") => Some(format!(
                    "--listen sets the address for clients: forebay dev --listen 127.0.0.1:{}; a \
                     replica's own {flag} follows `--`, with its command",
                    port(argument, arguments).unwrap_or(8080),
                )),
                ("run" | "gateway" | "scaler", "--listen" | "--port" | "--admin" | "-p") => {
                    Some("the file sets the addresses: gateway.listen and admin.listen".to_owned())
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// Whether a word is one of [`STARTS`], or a long one with a letter that is wrong, missing or swapped.
fn starts(word: &str) -> bool {
    let near = |start: &&str| start.len() > 3 && strsim::osa_distance(start, word) <= 1;
    STARTS.contains(&word) || STARTS.iter().any(near)
}

/// Whether a word is meant as a configuration file.
fn is_file(word: &str) -> bool {
    [".yaml", ".yml", ".json"].iter().any(|ending| word.ends_with(ending))
}

/// The port that was given with the flag `argument`.
fn port(argument: &str, arguments: &[String]) -> Option<u16> {
    let flag = argument.split('=').next().unwrap_or(argument);
    let mut rest = arguments.iter().skip_while(|given| given.split('=').next() != Some(flag));
    let value = rest.next()?.split_once('=').map(|(_, value)| value.to_owned());
    value.as_ref().or_else(|| rest.next())?.parse().ok()
}
