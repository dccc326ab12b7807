//! Deletes the pods of replicas that hang, so that their workload replaces them.
//!
//! Pods are deleted rather than evicted. A disruption budget protects capacity, of which such a pod
//! has none; and since its kubelet finds it ready, the only pod's eviction would be refused for ever.

use forebay_signals::PodPhase;

use super::super::events::{Events, Note};
use super::super::pods::PodTimes;
use super::super::workload::Workload;
use super::{Subject, Worker};
use crate::act::targets::Hung;

impl Worker {
    pub(super) async fn replace(&mut self, workload: &Workload, events: &Events) {
        let hung = self.orders.borrow().hung.clone();
        let pods = &self.pods.all;
        self.pods.deleted.retain(|uid| pods.values().any(|pod| pod.uid == *uid));
        for (name, hung) in hung {
            let Some(uid) = self.is_meant(&name, &hung) else { continue };
            if let Err(why) = workload.delete(&name, &uid).await {
                // Tried again at the next change, and at each read of the scale.
                return self.complain(Subject::Replacement, why);
            }
            self.pods.deleted.insert(uid);
            let regarding = self.scaled.as_ref().and_then(|scaled| scaled.uid.clone());
            events.write(Note {
                regarding: workload.reference(regarding),
                reason: "Replaced",
                warning: true,
                note: format!("pod {name} {}, and is deleted to be replaced", hung.why),
            });
        }
        self.calm(Subject::Replacement);
    }

    /// The pod's UID, if it is the one that hung and was not deleted yet.
    fn is_meant(&self, name: &str, hung: &Hung) -> Option<String> {
        let pod = self.pods.all.get(name).filter(|pod| pod.phase != PodPhase::Draining)?;
        let started_at = self.pods.times.get(name).and_then(PodTimes::started_at);
        let meant = started_at == hung.started_at && !self.pods.deleted.contains(&pod.uid);
        meant.then(|| pod.uid.clone())
    }
}
