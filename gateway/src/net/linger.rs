//! The end of a connection whose client may still be sending data that the gateway does not want.
//!
//! A socket that is closed with unread data, or that gets more data afterwards, is reset, and a
//! reset discards what the client has not read yet: the very answer that gives the reason. So our
//! side is closed first. Then data is read and discarded until the client closes its side, as RFC
//! 9112 (9.6) advises, but only while data comes, and no longer than [`LONGEST`].

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// No data for this long: the client has stopped sending.
const QUIET: Duration = Duration::from_secs(2);
/// The longest time: by then any client should have read the answer. It is well within the default
/// `shutdownTimeout`, so such a client does not delay a drain.
const LONGEST: Duration = Duration::from_secs(20);
const SCRATCH: usize = 16 << 10;

/// Reads and discards until the client is done.
pub(crate) struct Linger {
    until: Instant,
    /// When data came last.
    last: Instant,
    alarm: Pin<Box<Sleep>>,
}

impl Linger {
    pub(crate) fn new(now: Instant) -> Self {
        let alarm = Box::pin(sleep_until(now + QUIET));
        Self { until: now + LONGEST, last: now, alarm }
    }

    /// Ready when the connection may be closed.
    pub(crate) fn poll<R>(&mut self, cx: &mut Context<'_>, mut from: Pin<&mut R>) -> Poll<()>
    where
        R: AsyncRead + ?Sized,
    {
        let mut scratch = [0; SCRATCH];
        loop {
            let mut buffer = ReadBuf::new(&mut scratch);
            let read: Poll<io::Result<()>> = from.as_mut().poll_read(cx, &mut buffer);
            let now = Instant::now();
            match read {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() && now < self.until => {
                    self.last = now;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending => break,
            }
        }
        loop {
            ready!(self.alarm.as_mut().poll(cx));
            let due = self.until.min(self.last + QUIET);
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            self.alarm.as_mut().reset(due);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
    use tokio::time::sleep;

    use super::*;

    /// How long a connection lingers.
    async fn lingers(mut near: DuplexStream) -> Duration {
        let start = Instant::now();
        let mut linger = Linger::new(start);
        poll_fn(|cx| linger.poll(cx, Pin::new(&mut near))).await;
        start.elapsed()
    }

    /// A client that sends a byte every `every` milliseconds, `times` times.
    async fn sending(mut client: DuplexStream, every: u64, times: u32) -> DuplexStream {
        for _ in 0..times {
            sleep(Duration::from_millis(every)).await;
            if client.write_all(b"x").await.is_err() {
                break;
            }
        }
        client
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_lingers_until_its_client_is_done() {
        for (case, every, times, leaves, want) in [
            ("closes at once", 0, 0, true, 0),
            ("sends on, then closes", 900, 10, true, 9_000),
            ("sends nothing", 0, 0, false, 2_000),
            ("stops sending", 900, 10, false, 11_000),
            ("never stops sending", 900, u32::MAX, false, 20_000),
            ("sends too slowly", 2_100, 10, true, 2_000),
        ] {
            let (client, near) = duplex(64);
            let client = tokio::spawn(async move {
                let client = sending(client, every, times).await;
                if !leaves {
                    sleep(Duration::from_secs(3600)).await;
                }
                drop(client);
            });
            let took = lingers(near).await.as_millis();
            assert!((want..=want + 15).contains(&took), "{case}: {took} ms");
            client.abort();
        }
    }
}
