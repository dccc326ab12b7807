//! A replica that passes from one Forebay process to another.
//!
//! Its supervisor notices nothing: Forebay's end of the tether passes unchanged.

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

use crate::decide::Condition;

/// A replica without a task.
#[derive(Debug)]
pub struct PassedReplica {
    /// Facts about it.
    pub facts: Facts,
    /// Forebay's end of its supervisor's tether, while it runs. If dropped, the replica is ended.
    pub tether: Option<OwnedFd>,
}

/// The state of its task.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Facts {
    pub(super) pool: String,
    pub(super) id: String,
    pub(super) log: PathBuf,
    /// The command that it was started with.
    pub(super) command: Vec<String>,
    #[serde(rename = "phase")]
    pub(super) condition: Condition,
    pub(super) reason: String,
    /// Milliseconds since the epoch; 0 before.
    pub(super) started_ms: u64,
    /// If it failed: the end of its last process, and the address where that listened.
    pub(super) ended: Option<(SocketAddr, ProcessEnd)>,
    /// A gateway found this start healthy.
    pub(super) ready: bool,
    /// It has to stop.
    pub(super) stop: bool,
    #[serde(flatten)]
    pub(super) retry: Retry,
    pub(super) running: Option<RunningFacts>,
}

/// The failures of a replica.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Retry {
    /// Failures in a row.
    pub(super) failures: u32,
    /// Those of them that were starts.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(super) failed_starts: u32,
    /// Time until its next start, if it failed.
    pub(super) again_in_ms: Option<u64>,
}

/// A process of an earlier release does not expect the count.
fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// The state of its current start.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct RunningFacts {
    /// The supervisor's PID.
    pub(super) pid: i32,
    /// The supervisor's start time, in clock ticks since boot.
    pub(super) since: Option<u64>,
    pub(super) mark: String,
    pub(super) log_from: u64,
    pub(super) port: u16,
    pub(super) gpu: Option<String>,
    /// The supervisor's last report.
    #[serde(rename = "said")]
    pub(super) last_report: Option<String>,
    /// The received part of the next report.
    #[serde(rename = "heard")]
    pub(super) received: Vec<u8>,
    /// The reason why it is being replaced, if it is.
    pub(super) replaced: Option<String>,
}

impl PassedReplica {
    /// The pool whose replica it is.
    #[must_use]
    pub fn pool(&self) -> &str {
        &self.facts.pool
    }

    /// Stops it when `gone` is cancelled, and waits for its end. For a replica that the new process
    /// has no place for: the old process may still have requests there.
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

/// The time left until a deadline, for the other process.
pub(super) fn left(deadline: Option<Instant>) -> Option<u64> {
    let left = deadline?.saturating_duration_since(Instant::now());
    Some(u64::try_from(left.as_millis()).unwrap_or(u64::MAX))
}

/// The deadline that [`left`] was computed from.
pub(super) fn deadline(left: Option<u64>) -> Option<Instant> {
    Instant::now().checked_add(Duration::from_millis(left?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_of_a_process_of_an_earlier_release_are_read_and_written_as_they_were() {
        let text = serde_json::json!({
            "pool": "p", "id": "p-1", "log": "logs/p-1.log", "command": ["vllm", "serve"],
            "phase": "Running", "reason": "", "started_ms": 5, "ended": null, "ready": true,
            "stop": false, "failures": 2, "again_in_ms": null,
            "running": {"pid": 7, "since": 8, "mark": "m", "log_from": 0, "port": 18100, "gpu": null,
                        "said": "started 9", "heard": [], "replaced": null},
        });
        let facts: Facts = serde_json::from_value(text.clone()).expect("facts");
        assert_eq!((facts.condition, facts.retry.failures), (Condition::Starting, 2));
        assert_eq!(serde_json::to_value(&facts).expect("plain"), text);
    }
}
