//! The pool's lock. In tests it counts how often it is taken.

#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use parking_lot::{Mutex, MutexGuard};

/// In cache lines of its own (128 bytes: processors fetch them in pairs), apart from what threads
/// only read and from the reference count of the pool.
#[repr(align(128))]
pub(super) struct Lock<T> {
    inner: Mutex<T>,
    #[cfg(test)]
    taken: AtomicUsize,
}

impl<T> Lock<T> {
    pub(super) fn new(inner: T) -> Self {
        Self {
            inner: Mutex::new(inner),
            #[cfg(test)]
            taken: AtomicUsize::new(0),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, T> {
        #[cfg(test)]
        self.taken.fetch_add(1, Relaxed);
        self.inner.lock()
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
