//! The signals that stop this process: SIGTERM, and SIGINT from a terminal.

use std::process::ExitCode;

use anyhow::Context;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::logging::Log;

/// Waits for either signal.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }

    /// The exit code of the orderly end. A second signal ends the process at once.
    pub(crate) async fn or_at_once(
        &mut self,
        orderly: impl Future<Output = ExitCode>,
        log: &Log,
    ) -> ExitCode {
        tokio::select! {
            code = orderly => code,
            () = self.next() => {
                tracing::warn!("stopped at once");
                log.finish();
                // Supervisors end the replicas: their pipe ends with this process.
                std::process::exit(1);
            }
        }
    }
}
