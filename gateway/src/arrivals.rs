//! Records when requests came and how long they were, for `forebay replay`. No content.
//!
//! One line for each request, written at its end by a thread of its own: whoever serves clients
//! only puts it into a bounded channel, and passes it over when the disk is too slow for that.

use std::fs::{File, OpenOptions, rename};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use forebay_config::RecordArrivals;

const HEADER: &str = "time,pool,promptTokens,generatedTokens\n";
/// Requests that may wait to be written.
const WAITING: usize = 8192;
/// Longest time that a line stays in memory.
const FLUSH: Duration = Duration::from_secs(1);

/// One request.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: SystemTime,
    pub(crate) pool: Arc<str>,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
}

enum Note {
    Arrival(Arrival),
    End,
}

/// Where requests are told.
#[derive(Clone, Debug)]
pub(crate) struct Recorder(SyncSender<Note>);

impl Recorder {
    /// Never waits.
    pub(crate) fn tell(&self, arrival: Arrival) {
        if self.0.try_send(Note::Arrival(arrival)).is_err() {
            tracing::debug!("an arrival was not recorded: the file can't be written fast enough");
        }
    }
}

/// The thread that writes.
pub(crate) struct Recording {
    recorder: Recorder,
    thread: JoinHandle<()>,
}

impl Recording {
    /// Opens the file, or makes it.
    pub(crate) fn start(settings: &RecordArrivals) -> io::Result<Self> {
        let mut log = Log::open(&settings.file, settings.max_size.bytes())?;
        let (sender, notes) = sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("arrivals".to_owned())
            .spawn(move || write_all(&notes, &mut log))?;
        Ok(Self { recorder: Recorder(sender), thread })
    }

    /// Where pools report their requests.
    pub(crate) fn recorder(&self) -> Recorder {
        self.recorder.clone()
    }

    /// Writes what was told so far, and ends.
    pub(crate) fn finish(self) {
        // Where the thread has ended, there is nobody to tell.
        let _ = self.recorder.0.send(Note::End);
        let _ = self.thread.join();
    }
}

fn write_all(notes: &Receiver<Note>, log: &mut Log) {
    let mut failed = false;
    loop {
        let done = match notes.recv_timeout(FLUSH) {
            Ok(Note::Arrival(arrival)) => log.write(&arrival),
            Ok(Note::End) | Err(RecvTimeoutError::Disconnected) => {
                if let Err(error) = log.file.flush() {
                    tracing::warn!("the last arrivals can't be recorded: {error}");
                }
                return;
            }
            Err(RecvTimeoutError::Timeout) => log.file.flush(),
        };
        match done {
            Ok(()) => failed = false,
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!("arrivals can't be recorded in {}: {error}", log.path.display());
                }
            }
        }
    }
}

/// The file, with the one before it beside it.
struct Log {
    path: PathBuf,
    most: u64,
    size: u64,
    file: BufWriter<File>,
}

impl Log {
    fn open(path: &Path, most: u64) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        let mut log = Self { path: path.to_owned(), most, size, file: BufWriter::new(file) };
        if size == 0 {
            log.put(HEADER)?;
        }
        Ok(log)
    }

    fn put(&mut self, text: &str) -> io::Result<()> {
        self.size += text.len() as u64;
        self.file.write_all(text.as_bytes())
    }

    fn write(&mut self, arrival: &Arrival) -> io::Result<()> {
        let since = arrival.at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let at = jiff::Timestamp::from_millisecond(since.as_millis() as i64).unwrap_or_default();
        let Arrival { pool, prompt_tokens, generated_tokens, .. } = arrival;
        let line = format!("{at:.3},{pool},{prompt_tokens},{generated_tokens}\n");
        if self.size + line.len() as u64 > self.most && self.size > HEADER.len() as u64 {
            self.turn()?;
        }
        self.put(&line)
    }

    /// The file becomes the one before; a new one is begun.
    fn turn(&mut self) -> io::Result<()> {
        self.file.flush()?;
        let mut before = self.path.clone().into_os_string();
        before.push(".1");
        rename(&self.path, before)?;
        *self = Self::open(&self.path, self.most)?;
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
            recording.recorder.tell(arrival(second, 12));
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
            log.write(&arrival(second, 1)).expect("written");
        }
        log.file.flush().expect("written");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).expect(name);
        for name in ["arrivals.csv", "arrivals.csv.1"] {
            let text = read(name);
            assert!(text.starts_with(HEADER), "{name}: {text}");
            assert!(text.len() as u64 <= most, "{name}: {text}");
        }
        assert!(read("arrivals.csv").contains("1970-01-01T00:00:19.250Z"), "the last one is there");
        assert_eq!(std::fs::read_dir(&folder).expect("ours").count(), 2);
        std::fs::remove_dir_all(folder).expect("ours");
    }
}
