//! One server process at an endpoint, from its first answer to its end.
//!
//! The end of a process that was stopped by an order says nothing against the requests that it had.
//! The order may become known before the end or after it. So a request keeps the processes in which
//! it failed, and asks them only when the reason matters.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use forebay_signals::ProcessEnd;
use tokio::time::Instant;

use super::Endpoint;
use crate::answer::failure::Cause;
use crate::answer::fingerprint::Fingerprint;

/// A vLLM that receives SIGTERM aborts some of its requests and fails the others within this time.
const STOPS_WITHIN: Duration = Duration::from_secs(5);

static BEGUN: AtomicU64 = AtomicU64::new(0);

/// A server process, shared with its requests.
#[derive(Debug)]
pub(crate) struct Process {
    id: u64,
    stopped: AtomicBool,
    crashed: AtomicBool,
    /// It refuses a request that asks for token ids.
    refuses_token_ids: AtomicBool,
    /// The fingerprint that its streams carry, once it is known.
    fingerprint: ArcSwapOption<Fingerprint>,
}

impl Process {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            id: BEGUN.fetch_add(1, Relaxed) + 1,
            stopped: AtomicBool::new(false),
            crashed: AtomicBool::new(false),
            refuses_token_ids: AtomicBool::new(false),
            fingerprint: ArcSwapOption::empty(),
        })
    }

    /// Unique among all endpoints, and larger than those of all processes that began before.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// The number of the process that began last, at any endpoint.
    pub(crate) fn latest() -> u64 {
        BEGUN.load(Relaxed)
    }

    /// Notes that it ends, or ended, by an order: to stop, to drain, to be deleted.
    pub(crate) fn stopped(&self) {
        self.stopped.store(true, Relaxed);
    }

    /// Notes a crash that the observer of the process reported. That outranks every other sign.
    pub(crate) fn crashed(&self) {
        self.crashed.store(true, Relaxed);
    }

    /// Whether its end says nothing about the requests that it had.
    pub(crate) fn was_stopped(&self) -> bool {
        self.stopped.load(Relaxed) && !self.crashed.load(Relaxed)
    }

    /// Whether it refuses a request that asks for token ids.
    pub(crate) fn refuses_token_ids(&self) -> bool {
        self.refuses_token_ids.load(Relaxed)
    }

    /// Notes that it refused a request that asks for token ids.
    pub(crate) fn note_refuses_token_ids(&self) {
        self.refuses_token_ids.store(true, Relaxed);
    }

    /// The fingerprint that its streams carry, once it has reported one.
    pub(crate) fn fingerprint(&self) -> Option<Fingerprint> {
        self.fingerprint.load().as_deref().cloned()
    }

    pub(crate) fn set_fingerprint(&self, fingerprint: &Fingerprint) {
        if self.fingerprint.load().as_deref() != Some(fingerprint) {
            self.fingerprint.store(Some(Arc::new(fingerprint.clone())));
        }
    }
}

/// The process at an endpoint, and the signs of its end.
#[derive(Clone, Debug)]
pub(super) struct Lifecycle {
    pub(super) process: Arc<Process>,
    /// The process has ended: the next answer comes from another one.
    pub(super) ended: bool,
    /// When it last aborted a request, and when a request last failed there by a death.
    aborted_at: Option<Instant>,
    died_at: Option<Instant>,
}

impl Lifecycle {
    pub(super) fn new() -> Self {
        Self { process: Process::new(), ended: false, aborted_at: None, died_at: None }
    }

    /// Begins another process if the one before has ended; true if it had.
    pub(super) fn answered(&mut self) -> bool {
        let ended = self.ended;
        if ended {
            *self = Self::new();
        }
        ended
    }

    /// Concludes from a failure whether the process has ended, and whether that was ordered.
    pub(super) fn request_failed(&mut self, cause: Cause, now: Instant) {
        match cause {
            Cause::ShuttingDown => {
                self.process.stopped();
                self.ended = true;
            }
            Cause::Aborted => self.aborted_at = Some(now),
            cause if cause.is_death() => {
                self.died_at = Some(now);
                // A connection alone may break for another reason.
                self.ended |= cause == Cause::EngineDead;
            }
            _ => {}
        }
        if let (Some(aborted), Some(died)) = (self.aborted_at, self.died_at)
            && aborted.max(died).saturating_duration_since(aborted.min(died)) <= STOPS_WITHIN
        {
            self.process.stopped();
        }
    }
}

impl Endpoint {
    /// The process that answers there, or that answered last.
    pub(crate) fn process(&self) -> &Arc<Process> {
        &self.lifecycle.process
    }

    /// Takes the end of its process from the scaler or from discovery, which watch it.
    pub(crate) fn process_ended(&mut self, how: ProcessEnd) {
        match how {
            ProcessEnd::Stopped => self.lifecycle.process.stopped(),
            ProcessEnd::Crashed => self.lifecycle.process.crashed(),
        }
        self.lifecycle.ended = true;
    }
}
