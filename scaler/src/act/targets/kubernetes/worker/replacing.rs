//! Deletes the pods of replicas that hang, for their workload to make others.
//!
//! Deleted, and not evicted: a disruption budget keeps capacity, of which such a pod has none; and
//! as its kubelet finds it ready, an eviction of the only one would be refused for ever.

use forebay_signals::PodPhase;

use super::super::events::{Events, Told as Noted};
use super::super::workload::Workload;
use super::{About, Worker};
use crate::act::targets::Hung;

impl Worker {
    pub(super) async fn replace(&mut self, workload: &Workload, events: &Events) {
        let hung = self.orders.borrow().hung.clone();
        let pods = &self.pods;
        self.deleted.retain(|uid| pods.values().any(|pod| pod.uid == *uid));
        for (name, hung) in hung {
            let Some(uid) = self.is_meant(&name, &hung) else { continue };
            if let Err(why) = workload.delete(&name, &uid).await {
                // Tried again whenever something happens, and with each look at the scale.
                return self.complain(About::Replacement, why);
            }
            self.deleted.insert(uid);
            let regarding = self.scaled.as_ref().and_then(|scaled| scaled.uid.clone());
            events.tell(Noted {
                regarding: workload.reference(regarding),
                reason: "Replaced",
                warning: true,
                note: format!("pod {name} {}, and is deleted for another", hung.why),
            });
        }
        self.calm(About::Replacement);
    }

    /// The pod's UID, where it is the one that hung and was not deleted yet.
    fn is_meant(&self, name: &str, hung: &Hung) -> Option<String> {
        let pod = self.pods.get(name).filter(|pod| pod.phase != PodPhase::Draining)?;
        let started_ms = self.times.get(name).map_or(0, |times| times.started_ms());
        let meant = started_ms == hung.started_ms && !self.deleted.contains(&pod.uid);
        meant.then(|| pod.uid.clone())
    }
}
