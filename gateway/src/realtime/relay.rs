//! The bytes of a session, both ways until either side closes, or until it is to end: then its
//! client is told by a close between two frames.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use forebay_config::Limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until, timeout};

use super::frames::{self, Frames};
use crate::answer::traffic::{Carried, Traffic};
use crate::net::drain::Drain;

const BUFFER: usize = 16 << 10;
/// While the gateway drains, a session ends once nothing was said for so long.
const PAUSE: Duration = Duration::from_secs(1);
/// So long the replica has to end its frame, and the client to answer our close.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// By a close or by the client's leaving.
    Closed,
    /// The replica's side ended without a close.
    Broken,
    /// The replica is silent for longer than it is waited for.
    Lost,
    Idle,
    TooLong,
    /// Between two things said, since the gateway drains.
    Drained,
    /// A shutdown waited no longer.
    CutOff,
}

impl Ended {
    /// What the client is told, where it was not told otherwise.
    fn goodbye(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Closed => return None,
            Self::Broken => (1011, "The replica ended the session without a close."),
            Self::Lost => (1011, "The replica answers nothing."),
            Self::Idle => (1001, "Nothing was said for too long."),
            Self::TooLong => (1001, "The time for one session is over."),
            Self::Drained | Self::CutOff => (1001, "The gateway is shutting down."),
        })
    }
}

/// Carries bytes until the session ends, whoever ends it. `hear` is given each text of the replica;
/// `lost` resolves when the replica is given up. Never closes half: what one side can no longer say,
/// the other need not hear. Dropping it closes both sides without a word.
pub(super) async fn relay(
    client: impl AsyncRead + AsyncWrite,
    replica: impl AsyncRead + AsyncWrite,
    (limits, drain, traffic): (&Limits, &Drain, &Traffic),
    mut hear: impl FnMut(&[u8]),
    lost: impl Future<Output = ()>,
) -> Ended {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_replica, mut to_replica) = split(replica);
    let clock = Clock { started: Instant::now(), last: AtomicU64::new(0) };
    let mut asked = Way::new(Frames::default(), &traffic.client, &clock);
    let mut told = Way::new(Frames::reading(), &traffic.replica, &clock);
    let pause = async {
        drain.begun().await;
        clock.quiet(PAUSE).await;
    };
    let ending = drain.ending();
    let hung_up = tokio::select! {
        side = asked.run(&mut from_client, &mut to_replica, |_| {}) => Ok(side == Side::To),
        side = told.run(&mut from_replica, &mut to_client, &mut hear) => Ok(side == Side::From),
        () = clock.quiet(limits.session_idle_timeout) => Err(Ended::Idle),
        () = sleep_until(clock.started + limits.session_timeout) => Err(Ended::TooLong),
        () = pause => Err(Ended::Drained),
        () = ending.cancelled() => Err(Ended::CutOff),
        () = lost => Err(Ended::Lost),
    };
    if hung_up == Ok(true) {
        // Perhaps known by its taking nothing more: what it said before is still to be passed on.
        let rest = told.run(&mut from_replica, &mut to_client, &mut hear);
        let _ = timeout(FAREWELL, rest).await;
    }
    let ended = match hung_up {
        // Who was told goodbye, or said it, may go.
        Ok(true) if !asked.frames.closed() && !told.frames.closed() => Ended::Broken,
        Ok(_) => Ended::Closed,
        Err(ended) => ended,
    };
    let goodbye = ended.goodbye().filter(|_| !told.frames.closed());
    let farewell = async {
        if goodbye.is_some() {
            told.end_frame(&mut from_replica, &mut to_client, &mut hear).await?;
        }
        drop((from_replica, to_replica));
        if let Some((code, reason)) = goodbye {
            to_client.write_all(&frames::close(code, reason)).await?;
            to_client.flush().await?;
            while !asked.frames.closed() && asked.fill(&mut from_client, |_| {}).await {}
        }
        // Dropped with something unread, the connection would be reset, and what was said last lost.
        to_client.shutdown().await
    };
    // Who does not take it in time goes without.
    let _ = timeout(FAREWELL, farewell).await;
    ended
}

/// When something was said last, by either side.
struct Clock {
    started: Instant,
    /// In milliseconds from there.
    last: AtomicU64,
}

impl Clock {
    fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Relaxed);
    }

    /// Until nothing was said for so long.
    async fn quiet(&self, long: Duration) {
        loop {
            let quiet = self.started + Duration::from_millis(self.last.load(Relaxed)) + long;
            if Instant::now() >= quiet {
                return;
            }
            sleep_until(quiet).await;
        }
    }
}

/// The side of a way that ended.
#[derive(PartialEq, Eq)]
enum Side {
    From,
    To,
}

/// One direction. What is under way stays here when `run` is dropped.
struct Way<'a> {
    frames: Frames,
    carried: &'a Carried,
    clock: &'a Clock,
    buffer: Vec<u8>,
    /// What of the buffer is still to be passed on.
    at: usize,
    have: usize,
    /// Where in the buffer a frame ends last, the beginning included.
    whole: Option<usize>,
}

impl<'a> Way<'a> {
    fn new(frames: Frames, carried: &'a Carried, clock: &'a Clock) -> Self {
        let buffer = vec![0; BUFFER];
        Self { frames, carried, clock, buffer, at: 0, have: 0, whole: Some(0) }
    }

    async fn run(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut hear: impl FnMut(&[u8]),
    ) -> Side {
        loop {
            while self.at < self.have {
                let Ok(count @ 1..) = to.write(&self.buffer[self.at..self.have]).await else {
                    return Side::To;
                };
                self.at += count;
            }
            if to.flush().await.is_err() {
                return Side::To;
            }
            if !self.fill(from, &mut hear).await {
                return Side::From;
            }
        }
    }

    /// Reads on; false at the end. What was in the buffer is thrown away.
    async fn fill(&mut self, from: &mut (impl AsyncRead + Unpin), hear: impl FnMut(&[u8])) -> bool {
        let Ok(count @ 1..) = from.read(&mut self.buffer).await else { return false };
        (self.at, self.have) = (0, count);
        self.whole = self.frames.feed(&self.buffer[..count], hear);
        self.carried.add(count as u64, self.frames.messages());
        self.clock.touch();
        true
    }

    /// Passes on what belongs to frames that have begun to go out, and no more.
    async fn end_frame(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut hear: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        loop {
            if let Some(whole) = self.whole.filter(|whole| *whole >= self.at) {
                return to.write_all(&self.buffer[self.at..whole]).await;
            }
            to.write_all(&self.buffer[self.at..self.have]).await?;
            if !self.fill(from, &mut hear).await {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
