//! The configuration file, followed while Forebay runs: read again when its content changes, and at
//! SIGHUP. A file with a mistake changes nothing and is told of once.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use forebay_config::Config;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// How often the file is looked at. By its content, so that it does not matter how it was replaced.
const LOOK: Duration = Duration::from_secs(2);

/// A configuration file that was read once.
pub(crate) struct ConfigFile {
    path: PathBuf,
    seen: String,
    hangup: Signal,
    ticks: Interval,
    /// Somebody wants to know how it is, and was not told yet.
    asked: bool,
}

impl ConfigFile {
    /// `text` is what was read of it; must be called within a runtime.
    pub(crate) fn new(path: PathBuf, text: String) -> anyhow::Result<Self> {
        let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
        let mut ticks = interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Ok(Self { path, seen: text, hangup, ticks, asked: false })
    }

    /// The next configuration that is right. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Config {
        loop {
            tokio::select! {
                _ = self.hangup.recv() => self.asked = true,
                _ = self.ticks.tick() => {}
            }
            // A file may lie on a volume that hangs, and requests go on meanwhile.
            let path = self.path.clone();
            let read = tokio::task::spawn_blocking(move || std::fs::read_to_string(path)).await;
            let read = read.unwrap_or_else(|error| Err(error.into()));
            if let Some(config) = self.look(read) {
                return config;
            }
        }
    }

    fn look(&mut self, read: io::Result<String>) -> Option<Config> {
        let asked = std::mem::take(&mut self.asked);
        let name = self.path.display().to_string();
        let text = match read {
            Ok(text) => text,
            // It may be on its way: who asked is told, and the next look finds it.
            Err(error) => {
                if asked {
                    tracing::error!("{name}: cannot be read: {error}; nothing is changed");
                }
                return None;
            }
        };
        if text == self.seen && !asked {
            return None;
        }
        self.seen = text;
        match forebay_config::inspect(&self.seen, &name) {
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
                tracing::error!("{name}: not valid; the configuration before stays in force");
                None
            }
        }
    }
}
