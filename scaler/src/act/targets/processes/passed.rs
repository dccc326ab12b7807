//! A replica on its way from one Forebay process to another, which looks after it from then on.
//!
//! Its supervisor notices nothing: the other end of its tether goes over as it is.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use forebay_signals::ProcessEnd;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Phase;

/// A replica without a task.
#[derive(Debug)]
pub struct PassedReplica {
    /// What is known of it.
    pub facts: Facts,
    /// Our end of its supervisor's tether, while it runs. Dropped, the replica is ended.
    pub tether: Option<OwnedFd>,
}

/// What its task knew.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    pub(super) pool: String,
    pub(super) id: String,
    pub(super) log: PathBuf,
    /// As configured when it was started.
    pub(super) command: Vec<String>,
    pub(super) phase: Phase,
    pub(super) reason: String,
    pub(super) started_ms: u64,
    /// How its last process ended and where that listened, where it failed.
    pub(super) ended: Option<(SocketAddr, ProcessEnd)>,
    /// A gateway found this start healthy.
    pub(super) ready: bool,
    /// It was told to stop.
    pub(super) stop: bool,
    /// Failures in a row.
    pub(super) failures: u32,
    /// When it is started again, where it failed.
    pub(super) again_in_ms: Option<u64>,
    pub(super) running: Option<RunningFacts>,
}

/// What its task knew of its present start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunningFacts {
    /// The supervisor's PID.
    pub(super) pid: i32,
    /// When that was started, in clock ticks since boot.
    pub(super) since: Option<u64>,
    pub(super) mark: String,
    pub(super) log_from: u64,
    pub(super) port: u16,
    pub(super) gpu: Option<String>,
    /// The supervisor's last report.
    pub(super) said: Option<String>,
    /// What has come of the next one.
    pub(super) heard: Vec<u8>,
    /// Why it is ended for another start, where it is.
    pub(super) replaced: Option<String>,
}

impl PassedReplica {
    /// The pool that it was started for.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.facts.pool
    }

    /// Stops it when `gone` is cancelled, and waits for its end: whoever was asked to take it over
    /// has no place for it, and the process before may still have requests there.
    pub(crate) async fn stop_after(self, gone: CancellationToken) {
        let Some(tether) = self.tether else { return };
        gone.cancelled().await;
        let ended = async {
            let mut tether = stream(tether)?;
            tether.write_all(b"s").await?;
            tether.read_to_end(&mut Vec::new()).await
        };
        if let Err(error) = ended.await {
            tracing::debug!("replica {}: {error}", self.facts.id);
        }
    }
}

pub(super) fn stream(tether: OwnedFd) -> io::Result<tokio::net::UnixStream> {
    let tether = UnixStream::from(tether);
    tether.set_nonblocking(true)?;
    tokio::net::UnixStream::from_std(tether)
}

/// A moment as the other process can understand it.
pub(super) fn left(deadline: Option<Instant>) -> Option<u64> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

/// The moment that [`left`] meant.
pub(super) fn deadline(left: Option<u64>) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(left?))
}
