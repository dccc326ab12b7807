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

/// A GPU that one replica uses until this is dropped.
#[derive(Debug)]
pub(super) struct GpuLease {
    name: String,
    /// `None` if the GPU is not to be leased again.
    free: Option<Arc<Mutex<VecDeque<String>>>>,
}

impl Gpus {
    pub(super) fn new(all: &[String]) -> Self {
        Self { all: all.to_vec(), free: Arc::new(Mutex::new(all.iter().cloned().collect())) }
    }

    /// Leases a GPU; `None` if the pool has none configured.
    ///
    /// # Errors
    /// All are leased.
    pub(super) fn lease(&self) -> io::Result<Option<GpuLease>> {
        if self.all.is_empty() {
            return Ok(None);
        }
        match self.free.lock().pop_front() {
            Some(name) => Ok(Some(GpuLease { name, free: Some(self.free.clone()) })),
            None => Err(io::Error::other(format!("no GPU of {} is free", self.all.join(", ")))),
        }
    }

    /// Leases the GPU of a replica that another process started. A GPU that is no longer the
    /// pool's is not leased again.
    pub(super) fn adopt(&self, name: String) -> GpuLease {
        self.free.lock().retain(|free| *free != name);
        let free = self.all.contains(&name).then(|| self.free.clone());
        GpuLease { name, free }
    }
}

impl GpuLease {
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for GpuLease {
    fn drop(&mut self) {
        if let Some(free) = &self.free {
            free.lock().push_back(std::mem::take(&mut self.name));
        }
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
    fn an_adopted_gpu_is_leased_again_if_it_is_still_the_pools() {
        let gpus = Gpus::new(&["0".into(), "1".into()]);
        let (known, unknown) = (gpus.adopt("0".into()), gpus.adopt("7".into()));
        let other = gpus.lease().unwrap().unwrap();
        assert_eq!(other.name(), "1");
        drop(unknown);
        assert!(gpus.lease().is_err());
        drop(known);
        assert_eq!(gpus.lease().unwrap().unwrap().name(), "0");
    }

    #[test]
    fn without_configured_gpus_none_is_leased() {
        assert!(Gpus::new(&[]).lease().unwrap().is_none());
    }
}
