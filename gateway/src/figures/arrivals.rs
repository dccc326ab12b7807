//! Records when requests came and how long they were, for `forebay replay`. No content.
//!
//! One line for each request, written at its end on the side ([`Output`]): whoever serves clients
//! never waits for the disk.

use std::fs::{OpenOptions, rename};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_bounds::{Lines, Output, Sink};
use forebay_config::RecordArrivals;

const HEADER: &str = "time,pool,promptTokens,generatedTokens\n";
/// How long the last lines may take when the gateway ends.
const LAST: Duration = Duration::from_secs(1);

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: SystemTime,
    pub(crate) pool: Arc<str>,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
}

impl Arrival {
    fn line(&self) -> String {
        let since = self.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = jiff::Timestamp::from_millisecond(since.as_millis() as i64).unwrap_or_default();
        let Self { pool, prompt_tokens, generated_tokens, .. } = self;
        format!("{at:.3},{pool},{prompt_tokens},{generated_tokens}\n")
    }
}

/// Where requests are recorded.
#[derive(Clone)]
pub(crate) struct Recorder(Output);

impl Recorder {
    /// Never waits.
    pub(crate) fn tell(&self, arrival: &Arrival) {
        self.0.write(arrival.line().as_bytes());
    }
}

/// The record of every pool.
pub(crate) struct Recording(Recorder);

impl Recording {
    /// Opens the file, or makes it.
    pub(crate) fn start(settings: &RecordArrivals) -> io::Result<Self> {
        let log = Log::open(&settings.file, settings.max_size.bytes())?;
        Ok(Self(Recorder(Output::start("arrivals", log)?)))
    }

    /// Where pools report their requests.
    pub(crate) fn recorder(&self) -> Recorder {
        self.0.clone()
    }

    /// Writes what was recorded so far, and ends; at once where nothing can be written.
    pub(crate) fn finish(self) {
        if !self.0.0.finish(LAST) {
            tracing::warn!("the last arrivals are not recorded: the file takes nothing");
        }
    }
}

/// The file, with the one before it beside it.
struct Log {
    path: PathBuf,
    most: u64,
    size: u64,
    lines: Lines,
    /// What is not a file, such as a pipe, has no other beside it.
    turns: bool,
}

impl Log {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (size, turns) = (file.metadata()?.len(), file.metadata()?.is_file());
        Ok(Self { path: path.to_owned(), most, size, lines: Lines::new(file), turns })
    }

    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        self.lines.write(text)?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// The file becomes the one before; a new one is begun.
    fn turn(&mut self) -> io::Result<()> {
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        match rename(&self.path, before) {
            // Somebody took it away, or only the new one could not be made the last time.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        *self = Self::open(&self.path, self.most)?;
        Ok(())
    }
}

impl Sink for Log {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let full = self.size + line.len() as u64 > self.most;
            if full && self.turns && self.size > HEADER.len() as u64 {
                self.turn()?;
            }
            if self.size == 0 {
                self.put(HEADER.as_bytes())?;
            }
            self.put(line)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("forebay-arrivals-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        folder
    }

    fn arrival(seconds: u64, prompt_tokens: u64) -> Arrival {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(seconds * 1000 + 250);
        Arrival { at, pool: "chat".into(), prompt_tokens, generated_tokens: 7 }
    }

    #[test]
    fn each_request_is_one_line_and_a_restart_goes_on_in_the_same_file() {
        let folder = folder("lines");
        let file = folder.join("arrivals.csv");
        let settings = RecordArrivals { file: file.clone(), ..RecordArrivals::default() };
        for second in [1_767_571_200, 1_767_571_201] {
            let recording = Recording::start(&settings).expect("writable");
            recording.0.tell(&arrival(second, 12));
            recording.finish();
        }
        let text = std::fs::read_to_string(&file).expect("written");
        let want = format!(
            "{HEADER}2026-01-05T00:00:00.250Z,chat,12,7\n2026-01-05T00:00:01.250Z,chat,12,7\n"
        );
        assert_eq!(text, want);
        std::fs::remove_dir_all(folder).expect("ours");
    }

    #[test]
    fn a_full_file_becomes_the_one_before_and_both_stay_within_their_size() {
        let folder = folder("turn");
        let file = folder.join("arrivals.csv");
        let most = 200;
        let mut log = Log::open(&file, most).expect("writable");
        for second in 0..20 {
            log.write(arrival(second, 1).line().as_bytes()).expect("written");
        }
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
        for name in ["arrivals.csv", "arrivals.csv.1"] {
            let text = read(name);
            assert!(text.starts_with(HEADER), "{name}: {text}");
            assert!(text.len() as u64 <= most, "{name}: {text}");
        }
        assert!(read("arrivals.csv").contains("1970-01-01T00:00:19.250Z"), "the last one is there");
        assert_eq!(std::fs::read_dir(&folder).expect("ours").count(), 2);
        std::fs::remove_file(&file).expect("ours");
        for second in 20..30 {
            log.write(arrival(second, 1).line().as_bytes()).expect("written");
        }
        assert!(read("arrivals.csv").contains("1970-01-01T00:00:29.250Z"), "begun anew");
        std::fs::remove_dir_all(folder).expect("ours");
    }

    #[test]
    fn what_is_not_a_file_is_never_renamed() {
        let mut log = Log::open(Path::new("/dev/null"), 200).expect("writable");
        assert!(!log.turns);
        for second in 0..20 {
            log.write(arrival(second, 1).line().as_bytes()).expect("written");
        }
        assert!(log.size > 200);
    }
}
