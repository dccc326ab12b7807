//! GPUs, leased one to each replica.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

/// The GPUs of a pool.
#[derive(Clone, Debug)]
pub(super) struct Gpus {
    all: Vec<String>,
    free: Arc<Mutex<VecDeque<String>>>,
}

/// A GPU that is one replica's until this is dropped.
#[derive(Debug)]
pub(super) struct Lease {
    name: String,
    free: Arc<Mutex<VecDeque<String>>>,
}

impl Gpus {
    pub(super) fn new(all: &[String]) -> Self {
        Self { all: all.to_vec(), free: Arc::new(Mutex::new(all.iter().cloned().collect())) }
    }

    /// A GPU, or `None` where none are to be leased.
    ///
    /// # Errors
    /// All are leased.
    pub(super) fn lease(&self) -> io::Result<Option<Lease>> {
        if self.all.is_empty() {
            return Ok(None);
        }
        match self.free.lock().pop_front() {
            Some(name) => Ok(Some(Lease { name, free: self.free.clone() })),
            None => Err(io::Error::other(format!("no GPU of {} is free", self.all.join(", ")))),
        }
    }
}

impl Lease {
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.free.lock().push_back(std::mem::take(&mut self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_gpu_is_leased_to_one_replica_at_a_time() {
        let gpus = Gpus::new(&["0".into(), "1".into()]);
        let first = gpus.lease().unwrap().unwrap();
        let second = gpus.lease().unwrap().unwrap();
        assert_eq!((first.name(), second.name()), ("0", "1"));
        assert_eq!(gpus.lease().unwrap_err().to_string(), "no GPU of 0, 1 is free");
        drop(first);
        assert_eq!(gpus.lease().unwrap().unwrap().name(), "0");
    }

    #[test]
    fn without_gpus_there_is_none_to_wait_for() {
        assert!(Gpus::new(&[]).lease().unwrap().is_none());
    }
}
