//! Carries the bytes of a session both ways until either side closes, or the gateway ends it. The
//! gateway ends a session with a close frame to the client, between two frames of the replica.

use std::future::Future;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use forebay_config::Limits;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::{Instant, sleep_until, timeout};

use super::frames::{self, Frames};
use crate::answer::traffic::{SideTraffic, Traffic};
use crate::net::drain::Drain;

const BUFFER: usize = 16 << 10;
/// While the gateway drains, a session ends after this time without traffic.
const PAUSE: Duration = Duration::from_secs(1);
/// The time that the replica has to end its frame, and the client to answer the gateway's close.
const FAREWELL: Duration = Duration::from_secs(1);

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SessionEnd {
    /// A side sent a close, or the client left.
    Closed,
    /// The replica's side ended without a close.
    Broken,
    /// The gateway has given the replica up.
    Lost,
    Idle,
    TooLong,
    /// The gateway drains, and the session had no traffic for a moment.
    Drained,
    /// A shutdown stopped waiting.
    CutOff,
}

impl SessionEnd {
    /// The code and the reason of the close that the gateway sends.
    fn close(self) -> Option<(u16, &'static str)> {
        Some(match self {
            Self::Closed => return None,
            Self::Broken => (1011, "The replica ended the session without a close."),
            Self::Lost => (1011, "The replica does not answer."),
            Self::Idle => (1001, "The session was idle for too long."),
            Self::TooLong => (1001, "The time for one session is over."),
            Self::Drained | Self::CutOff => (1001, "The gateway is shutting down."),
        })
    }
}

/// Carries bytes until the session ends, and says how it ended. `on_text` gets each text message of
/// the replica; `lost` resolves when the replica is given up. Both sides close together: there is
/// no half-closed session. Dropping the future closes both without a close frame.
pub(super) async fn relay(
    client: impl AsyncRead + AsyncWrite,
    replica: impl AsyncRead + AsyncWrite,
    (limits, drain, traffic): (&Limits, &Drain, &Traffic),
    mut on_text: impl FnMut(&[u8]),
    lost: impl Future<Output = ()>,
) -> SessionEnd {
    let (mut from_client, mut to_client) = split(client);
    let (mut from_replica, mut to_replica) = split(replica);
    let clock = Clock { started: Instant::now(), last: AtomicU64::new(0) };
    let mut upward = Direction::new(Frames::default(), &traffic.client, &clock);
    let mut downward = Direction::new(Frames::reading(), &traffic.replica, &clock);
    let pause = async {
        drain.begun().await;
        clock.quiet(PAUSE).await;
    };
    let ending = drain.ending();
    let hung_up = tokio::select! {
        side = upward.run(&mut from_client, &mut to_replica, |_| {}) => Ok(side == EndedSide::To),
        side = downward.run(&mut from_replica, &mut to_client, &mut on_text) => Ok(side == EndedSide::From),
        () = clock.quiet(limits.session_idle_timeout) => Err(SessionEnd::Idle),
        () = sleep_until(clock.started + limits.session_timeout) => Err(SessionEnd::TooLong),
        () = pause => Err(SessionEnd::Drained),
        () = ending.cancelled() => Err(SessionEnd::CutOff),
        () = lost => Err(SessionEnd::Lost),
    };
    if hung_up == Ok(true) {
        // The replica may have sent something before it hung up: that is passed on.
        let rest = downward.run(&mut from_replica, &mut to_client, &mut on_text);
        let _ = timeout(FAREWELL, rest).await;
    }
    let ended = match hung_up {
        // After a close frame from either side, this is the proper end.
        Ok(true) if !upward.frames.closed() && !downward.frames.closed() => SessionEnd::Broken,
        Ok(_) => SessionEnd::Closed,
        Err(ended) => ended,
    };
    let close = ended.close().filter(|_| !downward.frames.closed());
    let farewell = async {
        if close.is_some() {
            downward.end_frame(&mut from_replica, &mut to_client, &mut on_text).await?;
        }
        drop((from_replica, to_replica));
        if let Some((code, reason)) = close {
            to_client.write_all(&frames::close(code, reason)).await?;
            to_client.flush().await?;
            while !upward.frames.closed() && upward.fill(&mut from_client, |_| {}).await {}
        }
        // A connection that is dropped with unread bytes is reset, and the last frame would be
        // lost.
        to_client.shutdown().await
    };
    // A client that does not take the close frame in time does not get it.
    let _ = timeout(FAREWELL, farewell).await;
    ended
}

/// The time of the last traffic, of either side.
struct Clock {
    started: Instant,
    /// Milliseconds since `started`.
    last: AtomicU64,
}

impl Clock {
    fn touch(&self) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Relaxed);
    }

    /// Resolves after `time` without traffic.
    async fn quiet(&self, time: Duration) {
        loop {
            let due = self.started + Duration::from_millis(self.last.load(Relaxed)) + time;
            if Instant::now() >= due {
                return;
            }
            sleep_until(due).await;
        }
    }
}

/// The side of a direction that ended.
#[derive(PartialEq, Eq)]
enum EndedSide {
    From,
    To,
}

/// One direction of a session. Bytes under way stay here when `run` is dropped.
struct Direction<'a> {
    frames: Frames,
    carried: &'a SideTraffic,
    clock: &'a Clock,
    buffer: Vec<u8>,
    /// The bytes of the buffer that are still to be passed on: from `at` to `have`.
    at: usize,
    have: usize,
    /// The end of the last frame that ends in the buffer, or at its beginning.
    whole: Option<usize>,
}

impl<'a> Direction<'a> {
    fn new(frames: Frames, carried: &'a SideTraffic, clock: &'a Clock) -> Self {
        let buffer = vec![0; BUFFER];
        Self { frames, carried, clock, buffer, at: 0, have: 0, whole: Some(0) }
    }

    async fn run(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut on_text: impl FnMut(&[u8]),
    ) -> EndedSide {
        loop {
            while self.at < self.have {
                let Ok(count @ 1..) = to.write(&self.buffer[self.at..self.have]).await else {
                    return EndedSide::To;
                };
                self.at += count;
            }
            if to.flush().await.is_err() {
                return EndedSide::To;
            }
            if !self.fill(from, &mut on_text).await {
                return EndedSide::From;
            }
        }
    }

    /// Reads into the buffer, over its old bytes. False at the end.
    async fn fill(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        on_text: impl FnMut(&[u8]),
    ) -> bool {
        let Ok(count @ 1..) = from.read(&mut self.buffer).await else { return false };
        (self.at, self.have) = (0, count);
        self.whole = self.frames.feed(&self.buffer[..count], on_text);
        self.carried.add(count as u64, self.frames.messages());
        self.clock.touch();
        true
    }

    /// Passes on the rest of the frame that is going out, and nothing after it.
    async fn end_frame(
        &mut self,
        from: &mut (impl AsyncRead + Unpin),
        to: &mut (impl AsyncWrite + Unpin),
        mut on_text: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        loop {
            if let Some(whole) = self.whole.filter(|whole| *whole >= self.at) {
                return to.write_all(&self.buffer[self.at..whole]).await;
            }
            to.write_all(&self.buffer[self.at..self.have]).await?;
            if !self.fill(from, &mut on_text).await {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

#[cfg(test)]
mod tests;
