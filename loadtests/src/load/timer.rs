//! A timer of some ten microseconds: tokio's own ticks in milliseconds, which at a thousand requests
//! a second would send them in bursts.

use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context;
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// One timer of the kernel.
pub(crate) struct FineTimer {
    descriptor: AsyncFd<OwnedFd>,
}

impl FineTimer {
    /// # Errors
    /// The process has no descriptor left.
    pub(crate) fn new() -> anyhow::Result<Self> {
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let descriptor =
            timerfd_create(TimerfdClockId::Monotonic, flags).context("cannot create a timer")?;
        #[expect(
            deprecated,
            reason = "sound for an OwnedFd: it stays one descriptor until dropped"
        )]
        let descriptor = AsyncFd::new(descriptor).context("cannot watch a timer")?;
        Ok(Self { descriptor })
    }

    /// Waits until `at`; where that has passed, other tasks run once.
    ///
    /// # Errors
    /// The kernel refuses the timer.
    pub(crate) async fn until(&self, at: Instant) -> std::io::Result<()> {
        let left = at.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tokio::task::yield_now().await;
            return Ok(());
        }
        timerfd_settime(self.descriptor.get_ref(), TimerfdTimerFlags::empty(), &once(left))?;
        loop {
            let mut ready = self.descriptor.readable().await?;
            let mut expirations = [0; 8];
            match rustix::io::read(self.descriptor.get_ref(), &mut expirations) {
                Err(rustix::io::Errno::AGAIN) => ready.clear_ready(),
                read => {
                    ready.clear_ready();
                    return read.map(|_| ()).map_err(Into::into);
                }
            }
        }
    }
}

fn once(left: Duration) -> Itimerspec {
    Itimerspec {
        it_interval: Timespec { tv_sec: 0, tv_nsec: 0 },
        it_value: Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_wait_ends_after_its_time_and_one_for_the_past_at_once() {
        let timer = FineTimer::new().expect("a timer");
        let began = Instant::now();
        timer.until(began + Duration::from_millis(5)).await.expect("a wait");
        assert!(began.elapsed() >= Duration::from_millis(5));
        timer.until(began).await.expect("no wait");
    }
}
