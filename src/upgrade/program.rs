//! The program that is started in this process's place.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The first flag of a process that takes over from the one that started it.
pub(crate) const TAKE_OVER: &str = "--take-over";

/// The soft limit on open files that it begins with. It comes next, if it is given.
pub(crate) const OPEN_FILES: &str = "--open-files=";

/// A program with its arguments.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) arguments: Vec<OsString>,
}

impl Program {
    /// This process's program, by the name that it was started with: by now, the path may lead to a new
    /// binary. Must be called at the start, since a relative path depends on the working directory.
    pub(crate) fn of_this_process() -> std::io::Result<Self> {
        let mut arguments = env::args_os();
        let path = arguments.next().and_then(|name| find(&name, env::var_os("PATH").as_deref()));
        let path = path.map_or_else(env::current_exe, Ok)?;
        let ours = |argument: &OsString| {
            argument == TAKE_OVER || argument.as_encoded_bytes().starts_with(OPEN_FILES.as_bytes())
        };
        let arguments = arguments.skip_while(ours).collect();
        Ok(Self { path, arguments })
    }
}

/// The file that a shell starts by this name.
fn find(name: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if Path::new(name).components().count() > 1 {
        return std::path::absolute(name).ok();
    }
    let is_program = |file: &PathBuf| {
        let metadata = file.metadata();
        metadata
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    let found = env::split_paths(path?).map(|folder| folder.join(name)).find(is_program)?;
    std::path::absolute(found).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_as_a_shell_finds_it() {
        let path = Some(OsStr::new("/nowhere:/usr/bin:/bin"));
        let sh = find(OsStr::new("sh"), path).expect("there is a shell");
        assert!(sh.is_absolute() && sh.ends_with("sh"), "{sh:?}");
        assert_eq!(find(OsStr::new("no-such-program"), path), None);
        assert_eq!(find(OsStr::new("sh"), None), None);
        assert_eq!(find(OsStr::new("/a/b"), path), Some("/a/b".into()));
        let relative = find(OsStr::new("target/b"), path).expect("not looked for");
        assert!(relative.is_absolute() && relative.ends_with("target/b"), "{relative:?}");
    }
}
