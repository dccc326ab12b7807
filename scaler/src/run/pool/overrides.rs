//! An operator's override of a pool, and the wait for one that was saved.

use crate::decide::Override;
use forebay_config::Millis;

/// Time for which a pool counts as paused while its snapshot, which may contain an override, can't be
/// read. Nothing scales down before the snapshot is read, however long that takes.
const PAUSED_UNREAD: Millis = Millis::from_secs(30);

/// An operator's override.
#[derive(Debug, Default)]
pub(super) struct StandingOverride {
    current: Override,
    /// It was set in this process, so a saved one is ignored.
    set_here: bool,
    /// The snapshot was not read yet: it may contain an override.
    unread: bool,
    /// The time since which decisions are made without the snapshot.
    unread_since: Option<Millis>,
}

impl StandingOverride {
    pub(super) fn current(&self) -> Override {
        self.current
    }

    pub(super) fn is_unread(&self) -> bool {
        self.unread
    }

    pub(super) fn set(&mut self, new: Override) {
        (self.current, self.set_here, self.unread) = (new, true, false);
    }

    pub(super) fn await_saved(&mut self) {
        self.unread = true;
    }

    /// Takes the saved override, if there is one.
    pub(super) fn restore(&mut self, saved: Option<Override>) {
        self.unread = false;
        if let Some(saved) = saved.filter(|_| !self.set_here) {
            self.current = saved;
        }
    }

    /// The override to decide by: this one, or else that of the target. While the snapshot is unread,
    /// the pool counts as paused for [`PAUSED_UNREAD`].
    pub(super) fn effective(&mut self, target: Override, now: Millis) -> Override {
        let waits = self.unread.then(|| now.since(*self.unread_since.get_or_insert(now)));
        match self.current {
            Override::None if waits.is_some_and(|span| span < PAUSED_UNREAD) => Override::Paused,
            Override::None => target,
            current => current,
        }
    }
}
