//! When a `cron` trigger's window is open.

use jiff::Timestamp;

use super::CronWindow;

impl CronWindow {
    /// Whether it is open at `now_ms`, in milliseconds since the epoch, and until when that is so:
    /// start included, end not. As in KEDA, it is open when the next end comes before the next
    /// start, so that it may cross midnight or a weekend.
    #[must_use]
    pub fn open(&self, now_ms: u64) -> (bool, u64) {
        let start = self.start.next(now_ms, &self.timezone);
        let end = self.end.next(now_ms, &self.timezone);
        let open = match (start, end) {
            (Some(start), Some(end)) => end <= start,
            // As in KEDA, a window that never begins again is open, and one that never ends is not.
            (None, _) => true,
            (Some(_), None) => false,
        };
        (open, [start, end].into_iter().flatten().min().unwrap_or(u64::MAX))
    }

    /// The windows between two times, cut off there, and after `most` starts and ends.
    pub(crate) fn windows(&self, from_ms: u64, until_ms: u64, most: usize) -> Vec<(u64, u64)> {
        let mut windows: Vec<(u64, u64)> = Vec::new();
        let mut now = from_ms;
        for _ in 0..most {
            if now >= until_ms {
                break;
            }
            let (open, until) = self.open(now);
            let until = until.clamp(now + 1, until_ms);
            match windows.last_mut() {
                Some(last) if open && last.1 == now => last.1 = until,
                _ if open => windows.push((now, until)),
                _ => {}
            }
            now = until;
        }
        windows
    }

    /// `Friday 22:00`, in its time zone.
    pub(crate) fn weekday_and_time(&self, ms: u64) -> String {
        let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
        time.map_or_else(String::new, |time| {
            let wall = self.timezone.to_offset(time).to_datetime(time);
            format!("{:?} {:02}:{:02}", wall.weekday(), wall.hour(), wall.minute())
        })
    }
}
