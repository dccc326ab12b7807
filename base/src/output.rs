//! Outputs that never block: a log, a file of arrivals. Code that writes a line never waits.
//!
//! A thread of its own writes the lines, and the queue to it is bounded in bytes. Lines that don't fit
//! or can't be written are dropped, counted on `/metrics`, and reported in the log when writing works
//! again. A pipe without a reader blocks that thread and nothing else, not even the process's end.

use std::fs::File;
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use memchr::{memchr, memchr_iter, memrchr};
use parking_lot::{Condvar, Mutex};
use tokio::time::Instant;

use crate::metric;

/// Bytes that may wait to be written.
const WAITING: usize = 4 << 20;
/// Memory that is kept between bursts.
const KEPT: usize = 64 << 10;
/// How long lines are gathered before they are written, unless there are `KEPT` bytes.
/// Without this, each line of a busy process would wake the thread that writes.
const GATHER: Duration = Duration::from_millis(20);
/// Short lines are written together up to here: as much as a pipe takes in one piece.
const PIECE: usize = 4096;
/// Pause before a file that accepts nothing is tried again. Another process may have made it
/// non-blocking.
const AGAIN: Duration = Duration::from_millis(10);

/// A destination for whole lines.
pub trait Sink: Send + 'static {
    /// Writes them all. May block.
    ///
    /// # Errors
    /// The lines are lost; later ones may be accepted again.
    fn write(&mut self, lines: &[u8]) -> io::Result<()>;
}

/// An output. Clones write to the same sink.
#[derive(Clone)]
pub struct Output(Arc<Shared>);

struct Shared {
    name: &'static str,
    queue: Mutex<Queue>,
    /// Signals that there are lines to write, that there are many, or that the output is closed.
    more: Condvar,
    /// The thread has ended.
    ended: Condvar,
    /// See [`GATHER`].
    gather: Duration,
}

#[derive(Default)]
struct Queue {
    lines: Vec<u8>,
    /// Lines that were dropped and not reported yet.
    lost: u64,
    closed: bool,
    ended: bool,
}

impl Output {
    /// Starts the thread that writes to `sink`. `name` says what the lines are, on `/metrics` and
    /// in reports.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(name: &'static str, sink: impl Sink) -> io::Result<Self> {
        Self::start_gathering(name, sink, GATHER)
    }

    fn start_gathering(name: &'static str, sink: impl Sink, gather: Duration) -> io::Result<Self> {
        let (queue, more, ended) = (Mutex::default(), Condvar::new(), Condvar::new());
        let output = Self(Arc::new(Shared { name, queue, more, ended, gather }));
        let shared = Arc::clone(&output.0);
        let thread = std::thread::Builder::new().name(format!("writes-{name}"));
        thread.spawn(move || shared.write_to(sink))?;
        output.show();
        Ok(output)
    }

    /// Shows on `/metrics` that nothing was dropped so far. Needed if the output is older than the
    /// recorder of metrics.
    pub fn show(&self) {
        metric::dropped_lines(self.0.name).increment(0);
    }

    /// Takes a line, its end included. Never waits.
    pub fn write(&self, line: &[u8]) {
        let mut queue = self.0.queue.lock();
        if queue.closed || queue.lines.len() + line.len() > WAITING {
            queue.lost += 1;
            drop(queue);
            metric::dropped_lines(self.0.name).increment(1);
            return;
        }
        let before = queue.lines.len();
        queue.lines.extend_from_slice(line);
        let many = before < KEPT && queue.lines.len() >= KEPT;
        drop(queue);
        if before == 0 || many {
            self.0.more.notify_one();
        }
    }

    /// Accepts nothing more, and waits until all is written, or `within` is over. Returns whether all
    /// was written.
    pub fn finish(&self, within: Duration) -> bool {
        let until = Instant::now() + within;
        let mut queue = self.0.queue.lock();
        queue.closed = true;
        self.0.more.notify_one();
        while !queue.ended {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.0.ended.wait_for(&mut queue, left);
        }
        true
    }
}

impl Shared {
    fn write_to(&self, mut sink: impl Sink) {
        let mut lines = Vec::new();
        let mut failed: Option<io::Error> = None;
        while self.wait(&mut lines) {
            for piece in pieces(&lines) {
                match (sink.write(piece), &failed) {
                    (Ok(()), None) => {}
                    (Ok(()), Some(error)) => {
                        self.report(&error.to_string());
                        failed = None;
                    }
                    (Err(error), before) => {
                        self.lost(memchr_iter(b'\n', piece).count() as u64);
                        if before.is_none() {
                            tracing::warn!("the {} can't be written: {error}", self.name);
                        }
                        failed = Some(error);
                    }
                }
            }
            if failed.is_none() {
                self.report("they could not be written fast enough");
            }
            lines.clear();
            lines.shrink_to(KEPT);
        }
        self.queue.lock().ended = true;
        self.ended.notify_all();
    }

    /// Waits for lines and takes them. False once the output is closed and empty.
    fn wait(&self, lines: &mut Vec<u8>) -> bool {
        let mut queue = self.queue.lock();
        while queue.lines.is_empty() && !queue.closed {
            self.more.wait(&mut queue);
        }
        let few = |queue: &mut Queue| !queue.closed && queue.lines.len() < KEPT;
        self.more.wait_while_for(&mut queue, few, self.gather);
        std::mem::swap(&mut queue.lines, lines);
        !lines.is_empty()
    }

    fn lost(&self, lines: u64) {
        self.queue.lock().lost += lines;
        metric::dropped_lines(self.name).increment(lines);
    }

    /// Not under the lock: where this output is the log, the report is a line of its own.
    fn report(&self, why: &str) {
        let lost = std::mem::take(&mut self.queue.lock().lost);
        match lost {
            0 => {}
            1 => tracing::warn!("a line of the {} was dropped: {why}", self.name),
            lost => tracing::warn!("{lost} lines of the {} were dropped: {why}", self.name),
        }
    }
}

/// Splits into whole lines, several short ones together.
fn pieces(mut lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (near, far) = lines.split_at(lines.len().min(PIECE));
        let end = memrchr(b'\n', near).or_else(|| Some(near.len() + memchr(b'\n', far)?));
        let piece;
        (piece, lines) = lines.split_at(end.map_or(lines.len(), |at| at + 1));
        (!piece.is_empty()).then_some(piece)
    })
}

/// A file that lines are appended to.
pub struct Lines {
    file: File,
    /// The last line was not written to its end.
    torn: bool,
}

impl Lines {
    /// To this file, from its present position.
    #[must_use]
    pub fn new(file: File) -> Self {
        Self { file, torn: false }
    }

    /// To standard error, past the standard library's lock, which a blocked write would keep.
    ///
    /// # Errors
    /// It is not open.
    pub fn stderr() -> io::Result<Self> {
        Ok(Self::new(File::from(io::stderr().as_fd().try_clone_to_owned()?)))
    }

    fn put(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match self.file.write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.torn = !bytes.is_empty();
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Sink for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        if self.torn {
            self.put(b"\n")?;
        }
        self.put(lines)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// Nothing here takes as long, however busy the machine is.
    const PATIENCE: Duration = Duration::from_secs(60);

    /// Forwards the lines to the test, and answers as it decides.
    struct Scripted {
        given: Sender<Vec<u8>>,
        outcomes: Receiver<io::Result<()>>,
    }

    impl Sink for Scripted {
        fn write(&mut self, lines: &[u8]) -> io::Result<()> {
            let _ = self.given.send(lines.to_vec());
            self.outcomes.recv().unwrap_or(Ok(()))
        }
    }

    #[test]
    fn a_sink_that_hangs_blocks_no_writer_and_dropped_lines_are_counted() {
        let (given, written) = channel();
        let (next, outcomes) = channel();
        let output = Output::start("lines", Scripted { given, outcomes }).expect("a thread");
        output.write(b"first\n");
        assert_eq!(written.recv_timeout(PATIENCE).as_deref(), Ok(&b"first\n"[..]));
        // It hangs in the first.
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let room = WAITING / line.len();
        for _ in 0..room + 3 {
            output.write(&line);
        }
        assert_eq!(output.0.queue.lock().lost, 3);
        assert!(!output.finish(Duration::from_millis(1)), "the end waits for no more than this");
        for _ in 0..=room {
            let _ = next.send(Ok(()));
        }
        drop(next);
        assert!(output.finish(PATIENCE), "all that waited is written");
        let bytes: usize = written.try_iter().map(|batch| batch.len()).sum();
        assert_eq!(bytes, room * line.len());
        assert_eq!(output.0.queue.lock().lost, 0, "and the rest is reported");
        output.write(b"late\n");
        assert_eq!(output.0.queue.lock().lost, 1, "nothing is taken after the end");
    }

    #[test]
    fn lines_are_gathered_until_there_are_many() {
        let (given, written) = channel();
        let (_next, outcomes) = channel();
        let sink = Scripted { given, outcomes };
        let output = Output::start_gathering("lines", sink, 100 * PATIENCE).expect("a thread");
        output.write(b"first\n");
        // True once the thread gathers: it was woken by the line, or has seen it.
        while !output.0.more.notify_one() {
            std::thread::yield_now();
        }
        let line = [b"x".repeat(1023), b"\n".to_vec()].concat();
        let burst = line.repeat(KEPT / line.len());
        for line in burst.chunks(line.len()) {
            output.write(line);
        }
        let lines = [b"first\n", &burst[..]].concat();
        let first = pieces(&lines).next().map(<[u8]>::to_vec);
        assert_eq!(written.recv_timeout(PATIENCE).ok(), first, "in one batch, and not at its end");
    }

    #[test]
    fn lines_that_can_not_be_written_are_counted_until_writing_works() {
        let (given, written) = channel();
        let (next, outcomes) = channel();
        let output = Output::start("lines", Scripted { given, outcomes }).expect("a thread");
        for n in 0..3 {
            output.write(b"one\ntwo\n");
            written.recv_timeout(PATIENCE).expect("tried");
            assert_eq!(output.0.queue.lock().lost, 2 * n, "those before");
            next.send(Err(ErrorKind::StorageFull.into())).expect("it listens");
        }
        output.write(b"last\n");
        drop(next);
        assert!(output.finish(PATIENCE));
        assert_eq!(output.0.queue.lock().lost, 0, "reported");
    }

    #[test]
    fn pieces_are_whole_lines_and_all_of_them() {
        let long = [b"y".repeat(3 * PIECE), b"\n".to_vec()].concat();
        let lines = [&b"a\n".repeat(PIECE)[..], &long, b"b\n", b"no end"].concat();
        let all: Vec<_> = pieces(&lines).collect();
        assert_eq!(all.concat(), lines);
        let (last, whole) = all.split_last().expect("some");
        assert_eq!(last, b"no end");
        assert!(whole.iter().all(|piece| piece.ends_with(b"\n")));
        assert!(whole.iter().all(|piece| piece.len() <= PIECE || *piece == long));
    }

    #[test]
    fn a_line_after_a_torn_one_begins_anew() {
        let path = std::env::temp_dir().join(format!("forebay-lines-{}", std::process::id()));
        let mut lines = Lines::new(File::create(&path).expect("made"));
        lines.write(b"whole\n").expect("written");
        lines.put(b"to").expect("written");
        lines.torn = true;
        lines.write(b"next\n").expect("written");
        lines.write(b"last\n").expect("written");
        assert_eq!(std::fs::read(&path).expect("read"), b"whole\nto\nnext\nlast\n");
        std::fs::remove_file(&path).expect("ours");
        let mut full = Lines::new(File::options().write(true).open("/dev/full").expect("Linux"));
        let error = full.write(b"line\n").expect_err("no space");
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert!(!full.torn, "nothing of it is there");
    }
}
