//! The output of replicas: `POOL-N.log`, a file for each replica with all its starts.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The default folder, below the working directory.
const DEFAULT: &str = ".forebay/logs";

/// Files to keep for a pool.
const KEPT: usize = 20;

/// Bytes to read at a file's end, and lines of it to show.
const TAIL: (u64, usize) = (4096, 10);

/// The folder, and the highest number of a file in it. Replicas are numbered from there, so that no
/// file name and no replica's name is used twice.
#[derive(Debug)]
pub(super) struct Output {
    folder: PathBuf,
    pool: String,
    last: AtomicU64,
}

impl Output {
    /// Creates the folder. Without a configured one, and if the working directory can't be written,
    /// it is among the temporary files.
    pub(super) fn open(folder: Option<&Path>, pool: &str) -> io::Result<Self> {
        let folder = match folder {
            Some(folder) => made(folder.into())?,
            None => made(DEFAULT.into()).or_else(|_| {
                let user = nix::unistd::getuid();
                made(std::env::temp_dir().join(format!("forebay-{user}/logs")))
            })?,
        };
        // A pool's name may contain characters that a file's name may not.
        let plain = |c: char| if c.is_alphanumeric() || "-._".contains(c) { c } else { '_' };
        let pool: String = pool.chars().map(plain).collect();
        let last = AtomicU64::new(numbers(&folder, &pool).pop().unwrap_or(0));
        Ok(Self { folder, pool, last })
    }

    /// The next replica's name and file. The file is created here, so that another Forebay in the
    /// same folder takes another number. If that fails, the start reports it.
    pub(super) fn next_replica(&self) -> (String, PathBuf) {
        loop {
            let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
            let id = format!("{}-{number}", self.pool);
            let path = self.file(&id);
            match File::create_new(&path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Ok(_) | Err(_) => return (id, path),
            }
        }
    }

    /// The file of the replica with this name.
    pub(super) fn file(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.log"))
    }

    /// Removes all but the newest files.
    pub(super) fn prune(&self) {
        let numbers = numbers(&self.folder, &self.pool);
        for number in numbers.iter().rev().skip(KEPT) {
            let _ = fs::remove_file(self.folder.join(format!("{}-{number}.log", self.pool)));
        }
    }
}

/// Opens a replica's file to append to it.
pub(super) fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("can't write {}: {error}", path.display()))
    })
}

/// A file that discards everything.
pub(super) fn nowhere() -> io::Result<File> {
    OpenOptions::new().append(true).open("/dev/null")
}

/// The last lines written after the first `from` bytes of the file, each after a newline.
pub(super) fn last_lines(path: &Path, from: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let (bytes, lines) = TAIL;
    let start = file.metadata()?.len().saturating_sub(bytes).max(from);
    file.seek(SeekFrom::Start(start))?;
    let mut tail = Vec::new();
    file.take(bytes).read_to_end(&mut tail)?;
    let tail = String::from_utf8_lossy(&tail);
    let mut shown: Vec<&str> = tail.lines().rev().take(lines).collect();
    if start > from && shown.len() < lines {
        // The first line of the tail is incomplete.
        shown.pop();
    }
    Ok(shown.iter().rev().flat_map(|line| ["\n", line]).collect())
}

fn made(folder: PathBuf) -> io::Result<PathBuf> {
    fs::create_dir_all(&folder).map_err(|error| {
        io::Error::new(error.kind(), format!("can't create {}: {error}", folder.display()))
    })?;
    std::path::absolute(folder)
}

/// The numbers of a pool's files, sorted.
fn numbers(folder: &Path, pool: &str) -> Vec<u64> {
    let number =
        |name: &str| name.strip_prefix(pool)?.strip_prefix('-')?.strip_suffix(".log")?.parse().ok();
    let mut numbers: Vec<u64> = fs::read_dir(folder)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| number(entry.file_name().to_str()?))
        .collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is removed with the test.
    struct TestFolder(PathBuf);

    impl TestFolder {
        fn new() -> Self {
            let name = format!("forebay-output-{:x}", rand::random::<u64>());
            Self(std::env::temp_dir().join(name))
        }
    }

    impl Drop for TestFolder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn replicas_are_numbered_from_the_files_in_the_folder() {
        let folder = TestFolder::new();
        let output = Output::open(Some(&folder.0), "a/b").unwrap();
        assert_eq!(output.next_replica().0, "a_b-1");
        assert_eq!(output.next_replica().0, "a_b-2");
        let later = Output::open(Some(&folder.0), "a/b").unwrap();
        assert_eq!(later.next_replica(), ("a_b-3".into(), folder.0.join("a_b-3.log")));
        assert_eq!(output.next_replica().0, "a_b-4");
        assert_eq!(Output::open(Some(&folder.0), "a").unwrap().next_replica().0, "a-1");
    }

    #[test]
    fn only_the_newest_files_are_kept() {
        let folder = TestFolder::new();
        let output = Output::open(Some(&folder.0), "pool").unwrap();
        for _ in 0..KEPT + 5 {
            output.next_replica();
        }
        fs::write(folder.0.join("pool-x.log"), "").unwrap();
        output.prune();
        assert_eq!(numbers(&folder.0, "pool"), (6..=25).collect::<Vec<_>>());
        assert!(folder.0.join("pool-x.log").exists());
    }

    #[test]
    fn the_last_lines_are_those_of_the_last_start() {
        let folder = TestFolder::new();
        let path = Output::open(Some(&folder.0), "pool").unwrap().next_replica().1;
        fs::write(&path, "before\none\ntwo\n").unwrap();
        assert_eq!(last_lines(&path, 7).unwrap(), "\none\ntwo");
        assert_eq!(last_lines(&path, 15).unwrap(), "");
        let many: String = (0..2000).map(|line| format!("line {line}\n")).collect();
        fs::write(&path, many).unwrap();
        let shown = last_lines(&path, 0).unwrap();
        assert_eq!(shown.lines().count(), 1 + TAIL.1);
        assert!(shown.starts_with("\nline 1990\n") && shown.ends_with("\nline 1999"));
        fs::write(&path, format!("{}\nend\n", "x".repeat(5000))).unwrap();
        assert_eq!(last_lines(&path, 0).unwrap(), "\nend");
    }

    #[test]
    fn a_folder_that_cannot_be_created_is_named() {
        let error = Output::open(Some(Path::new("/proc/none/logs")), "pool").unwrap_err();
        assert!(error.to_string().starts_with("can't create /proc/none/logs: "), "{error}");
    }
}
