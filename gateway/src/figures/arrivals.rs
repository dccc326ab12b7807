//! Records when requests arrived and how many tokens they had, for `forebay replay`. No content.
//!
//! Each request is one line, written at its end by a thread of its own ([`Output`]), so that
//! threads that serve clients never wait for the disk.

use std::fs::{OpenOptions, rename};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use forebay_base::output::{Lines, Output, Sink};
use forebay_config::RecordArrivals;

const HEADER: &str = "time,pool,promptTokens,generatedTokens\n";
/// How long writing the last lines may take when the gateway ends.
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

/// A pool's way to record its requests.
#[derive(Clone)]
pub(crate) struct Recorder(Output);

impl Recorder {
    /// Records a request. Never waits.
    pub(crate) fn record(&self, arrival: &Arrival) {
        self.0.write(arrival.line().as_bytes());
    }
}

/// The recording of every pool's arrivals.
pub(crate) struct Recording(Recorder);

impl Recording {
    /// Opens the file, or creates it.
    pub(crate) fn start(settings: &RecordArrivals) -> io::Result<Self> {
        let log = ArrivalFile::open(&settings.file, settings.max_size.bytes())?;
        Ok(Self(Recorder(Output::start("arrivals", log)?)))
    }

    /// A way to record requests.
    pub(crate) fn recorder(&self) -> Recorder {
        self.0.clone()
    }

    /// Writes the lines recorded so far, and ends. It does not wait if nothing can be written.
    pub(crate) fn finish(self) {
        if !self.0.0.finish(LAST) {
            tracing::warn!("the last arrivals are not recorded: the file can't be written");
        }
    }
}

/// The file, and beside it the one before (`.1`).
struct ArrivalFile {
    path: PathBuf,
    most: u64,
    size: u64,
    lines: Lines,
    /// Whether it is rotated: it is a file, not a pipe.
    rotates: bool,
}

impl ArrivalFile {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (size, rotates) = (file.metadata()?.len(), file.metadata()?.is_file());
        Ok(Self { path: path.to_owned(), most, size, lines: Lines::new(file), rotates })
    }

    fn put(&mut self, text: &[u8]) -> io::Result<()> {
        self.lines.write(text)?;
        self.size += text.len() as u64;
        Ok(())
    }

    /// Renames the file to the one with `.1`, and begins a new one.
    fn rotate(&mut self) -> io::Result<()> {
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        match rename(&self.path, before) {
            // The file was deleted, or an earlier rotation could not create the new one.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        *self = Self::open(&self.path, self.most)?;
        Ok(())
    }
}

impl Sink for ArrivalFile {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        for line in lines.split_inclusive(|byte| *byte == b'\n') {
            let full = self.size + line.len() as u64 > self.most;
            if full && self.rotates && self.size > HEADER.len() as u64 {
                self.rotate()?;
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
    fn each_request_is_one_line_and_a_restart_appends_to_the_same_file() {
        let folder = folder("lines");
        let file = folder.join("arrivals.csv");
        let settings = RecordArrivals { file: file.clone(), ..RecordArrivals::default() };
        for second in [1_767_571_200, 1_767_571_201] {
            let recording = Recording::start(&settings).expect("writable");
            recording.0.record(&arrival(second, 12));
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
    fn a_full_file_is_rotated_and_both_files_stay_within_their_size() {
        let folder = folder("turn");
        let file = folder.join("arrivals.csv");
        let most = 200;
        let mut log = ArrivalFile::open(&file, most).expect("writable");
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
        assert!(read("arrivals.csv").contains("1970-01-01T00:00:29.250Z"), "a new file");
        std::fs::remove_dir_all(folder).expect("ours");
    }

    #[test]
    fn a_device_is_never_renamed() {
        let mut log = ArrivalFile::open(Path::new("/dev/null"), 200).expect("writable");
        assert!(!log.rotates);
        for second in 0..20 {
            log.write(arrival(second, 1).line().as_bytes()).expect("written");
        }
        assert!(log.size > 200);
    }
}
