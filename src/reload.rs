//! The configuration file, followed while Forebay runs: read again when its content changes, and at
//! SIGHUP. A file with a mistake changes nothing and is reported once.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use forebay_base::file_watch::FileWatch;
use forebay_config::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How often the file is read.
const LOOK: Duration = Duration::from_secs(2);

/// The configuration's label in metrics of files that are read again.
pub(crate) const CONFIGURATION: &str = "configuration";

/// A configuration file that was read once.
pub(crate) struct ConfigFile {
    name: String,
    file: FileWatch<String, io::Error>,
    /// The content that was judged last.
    seen: String,
    hangup: Signal,
    /// SIGHUP came: the next reading is judged and reported in any case.
    by_signal: bool,
}

impl ConfigFile {
    /// `text` is its content, which was read at the start. Must be called within a runtime.
    pub(crate) fn new(path: PathBuf, text: String) -> anyhow::Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
        let name = path.display().to_string();
        let file = FileWatch::new(LOOK, Some(text.clone()), move || std::fs::read_to_string(&path));
        Ok(Self { name, file, seen: text, hangup, by_signal: false })
    }

    /// The next valid configuration. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Config {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => {
                    self.by_signal = true;
                    self.file.read_now();
                }
                read = self.file.next() => {
                    if let Some(config) = self.judge(read) {
                        return config;
                    }
                }
            }
        }
    }

    fn judge(&mut self, read: io::Result<String>) -> Option<Config> {
        let by_signal = std::mem::take(&mut self.by_signal);
        let name = &self.name;
        let text = match read {
            Ok(text) => text,
            // The file may be in the middle of a replacement: only after SIGHUP this is an error.
            Err(error) => {
                if by_signal {
                    tracing::error!("{name}: cannot be read: {error}; nothing changes");
                }
                return None;
            }
        };
        if text == self.seen && !by_signal {
            return None;
        }
        self.seen = text;
        match forebay_config::inspect(&self.seen, name) {
            Ok((config, warnings)) => {
                for warning in warnings.iter() {
                    tracing::warn!("{warning}");
                }
                Some(config)
            }
            Err(problems) => {
                for problem in problems.iter() {
                    tracing::error!("{problem}");
                }
                tracing::error!("{name}: not valid; the previous configuration stays in force");
                forebay_base::reloaded(CONFIGURATION, false);
                None
            }
        }
    }
}
