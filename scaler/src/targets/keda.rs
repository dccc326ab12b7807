//! A workload that KEDA scales: it asks, and is told (`crate::keda`). Nothing is written here.

use super::{Drains, Target};

/// A KEDA ScaledObject's workload.
#[derive(Debug)]
pub(crate) struct KedaTarget;

impl Target for KedaTarget {
    fn ensure(&self, _count: u32) {}
    fn stop(&self, _id: &str) {}
    fn drains(&self) -> Drains {
        Drains::All
    }
}
