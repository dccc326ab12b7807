//! A process with its output in a file. It ends when its handle is dropped.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::time::timeout;

/// A running process, in a group of its own.
pub struct Process {
    pub name: String,
    child: Child,
    group: Pid,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with its output in `LOGS/NAME.log`.
    pub fn start(name: &str, logs: &Path, mut command: Command) -> Self {
        std::fs::create_dir_all(logs).expect("a folder for logs");
        let log = logs.join(format!("{name}.log"));
        let file = File::options().create(true).append(true).open(&log).expect("a log");
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("a file"))
            .stderr(file)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        let group = Pid::from_raw(child.id().expect("just started") as i32);
        Self { name: name.to_owned(), child, group, log }
    }

    pub fn signal(&self, signal: Signal) {
        let _ = killpg(self.group, signal);
    }

    /// Waits for its end. Returns the exit code, or minus the signal that ended it.
    pub async fn wait(&mut self) -> i32 {
        use std::os::unix::process::ExitStatusExt;
        let status = self.child.wait().await.expect("our child");
        status.code().unwrap_or_else(|| -status.signal().unwrap_or(0))
    }

    /// Its exit code, if it has ended.
    pub fn ended(&mut self) -> Option<i32> {
        let status = self.child.try_wait().expect("our child")?;
        Some(status.code().unwrap_or(-1))
    }

    /// Sends SIGTERM, and SIGKILL after `grace`.
    pub async fn stop(&mut self, grace: Duration) -> i32 {
        self.signal(Signal::SIGTERM);
        if let Ok(code) = timeout(grace, self.wait()).await {
            return code;
        }
        self.signal(Signal::SIGKILL);
        self.wait().await
    }

    /// Sends SIGKILL and waits for the end.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        self.wait().await;
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The last lines of its output, for the report of a failure.
    pub fn tail(&self, lines: usize) -> String {
        let text = self.log();
        let all: Vec<_> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
    }
}
