//! The pool's lock. It notes that something may have changed under it. In tests it counts how often it
//! is taken.

#[cfg(test)]
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

/// In cache lines of its own (128 bytes: processors fetch them in pairs), apart from what threads
/// only read and from the reference count of the pool.
#[repr(align(128))]
pub(super) struct Lock<T> {
    inner: Mutex<T>,
    /// Something may have changed that reports show.
    changed: AtomicBool,
    #[cfg(test)]
    taken: AtomicUsize,
}

impl<T> Lock<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner: Mutex::new(inner),
            changed: AtomicBool::new(true),
            #[cfg(test)]
            taken: AtomicUsize::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        let guard = self.peek();
        // Whoever clears this takes the lock afterwards, and so sees the change.
        self.changed.store(true, Relaxed);
        guard
    }

    /// Takes it for a look, or for a change that no report shows.
    pub(super) fn peek(&self) -> MutexGuard<'_, T> {
        #[cfg(test)]
        self.taken.fetch_add(1, Relaxed);
        self.inner.lock()
    }

    /// Whether something may have changed since [`Lock::clear_changed`].
    pub(super) fn changed(&self) -> bool {
        self.changed.load(Relaxed)
    }

    pub(super) fn clear_changed(&self) {
        self.changed.store(false, Relaxed);
    }

    #[cfg(test)]
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }

    #[cfg(test)]
    pub(super) fn is_locked(&self) -> bool {
        self.inner.is_locked()
    }
}
