//! Whether a replica's command can be started on this machine.

use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use forebay_config::Processes;

/// The reason why no start of this command can succeed, with the remedy, if one is known.
pub(crate) fn problem(processes: &Processes) -> Option<String> {
    let program = processes.command.first()?;
    let path = processes.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"));
    if program.contains('{') {
        // Filled in at the start.
        return None;
    }
    let found = if program.contains('/') {
        Some(PathBuf::from(program)).filter(|path| path.exists())
    } else {
        let folders: Vec<_> = std::env::split_paths(&path.unwrap_or_default()).collect();
        let at = |folder: &PathBuf| folder.join(program);
        let runs = folders.iter().map(at).find(|path| may_run(path));
        runs.or_else(|| folders.iter().map(at).find(|path| path.exists()))
    };
    match found {
        Some(path) if may_run(&path) => None,
        Some(path) => Some(format!(
            "{} is not a program that may be run; name another, or allow it by `chmod +x`",
            path.display()
        )),
        None if program.contains('/') => {
            Some(format!("there is no file {program}; correct the path"))
        }
        None => Some(format!(
            "there is no program `{program}` in the folders of PATH; install it, or name it by its \
             whole path"
        )),
    }
}

fn may_run(path: &Path) -> bool {
    path.metadata().is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_without_a_program_is_named_with_the_remedy() {
        for (command, want) in [
            (&["sh", "-c", "exit 1"][..], None),
            (&["/bin/sh"], None),
            (&["nosuch", "{port}"], Some("there is no program `nosuch` in the folders of PATH")),
            (&["/nosuch/vllm"], Some("there is no file /nosuch/vllm")),
            (&["/etc/passwd"], Some("/etc/passwd is not a program that may be run")),
            (&["/etc"], Some("/etc is not a program that may be run")),
            (&["{gpu}"], None),
        ] {
            let command: Vec<String> = command.iter().map(|part| (*part).to_owned()).collect();
            let problem = problem(&Processes::of(command.clone()));
            let matches = match (want, &problem) {
                (Some(want), Some(problem)) => problem.contains(want),
                (None, None) => true,
                _ => false,
            };
            assert!(matches, "{command:?}: {problem:?}");
        }
    }

    #[test]
    fn the_commands_own_path_is_searched() {
        let mut processes = Processes::of(vec!["sh".to_owned()]);
        processes.env.insert("PATH".to_owned(), "/nosuch".to_owned());
        assert!(problem(&processes).is_some());
        processes.env.insert("PATH".to_owned(), "/nosuch:/bin".to_owned());
        assert_eq!(problem(&processes), None);
    }
}
