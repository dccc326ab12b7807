//! Pods that fit on no node: whether a node is being added for them.
//!
//! The cluster autoscaler and Karpenter write Events on such a pod. Without one, a pod that has been
//! unschedulable for a while stays so. If the Events can't be read, a node counts as being added: an
//! unknown is not a failure.

use forebay_config::Millis;
use forebay_discovery::error::{Rule, explain};
use forebay_discovery::pod::Pod;
use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;

use super::Worker;
use crate::act::targets::epoch_time;

/// How often a pod is seen without a node, once with each read of the scale, before its Events are
/// read: an autoscaler has 30 s to notice it.
const LOOKS: u32 = 3;
/// How long adding a node may take: the cluster autoscaler's own limit
/// (`--max-node-provision-time`).
const ADDED: Millis = Millis::from_secs(15 * 60);
/// Reasons of Events for a node that is being added: the cluster autoscaler's and Karpenter's.
const COMES: [&str; 2] = ["TriggeredScaleUp", "Nominated"];
/// The reason of the cluster autoscaler's Event for a pod that no new node would fit.
const STAYS: &str = "NotTriggerScaleUp";

/// Whether a node is being added, by the Events on a pod: their reasons, with the time of each.
fn is_coming(events: &[(String, Millis)], now: Millis) -> bool {
    let last = |test: &dyn Fn(&str) -> bool| {
        events.iter().filter(|(reason, _)| test(reason)).map(|(_, at)| *at).max()
    };
    let (comes, stays) = (last(&|reason| COMES.contains(&reason)), last(&|reason| reason == STAYS));
    comes.is_some_and(|at| now.since(at) < ADDED && stays.is_none_or(|stays| stays <= at))
}

fn read(event: &Event) -> Option<(String, Millis)> {
    let times = [
        event.last_timestamp.as_ref().map(|time| time.0),
        event.event_time.as_ref().map(|time| time.0),
        event.metadata.creation_timestamp.as_ref().map(|time| time.0),
    ];
    let at = times.into_iter().flatten().next()?.as_millisecond();
    Some((event.reason.clone()?, Millis::new(u64::try_from(at).ok()?)))
}

impl Worker {
    /// Notes for each pod that fits on no node whether one is being added.
    pub(super) async fn look_for_nodes(&mut self) {
        let now = epoch_time();
        let times = &mut self.pods.times;
        let waits = |(name, pod): (&String, &Pod)| {
            let looks = times.get_mut(name)?.look()?;
            (looks > LOOKS).then(|| (name.clone(), pod.uid.clone()))
        };
        let waiting: Vec<_> = self.pods.all.iter().filter_map(waits).collect();
        let mut changed = false;
        for (name, uid) in waiting {
            let stays = match self.events_on(&uid).await {
                Ok(events) => {
                    if self.scale_ups.ends() {
                        tracing::info!("{}: Events can be read again", self.scope.pool);
                    }
                    !is_coming(&events, now)
                }
                Err(why) => {
                    if self.scale_ups.begins(why.as_str()) {
                        tracing::warn!(
                            "{}: can't see whether a node is being added for pod {name}: {why}",
                            self.scope.pool
                        );
                    }
                    false
                }
            };
            if let Some(times) = self.pods.times.get_mut(&name) {
                changed |= times.set_stays_unscheduled(stays);
            }
        }
        if changed {
            self.publish();
        }
    }

    /// The Events on a pod: reasons and times.
    async fn events_on(&self, uid: &str) -> Result<Vec<(String, Millis)>, String> {
        let namespace = &self.scope.namespace;
        let api = Api::<Event>::namespaced(self.scope.cluster.client.clone(), namespace);
        let fields = format!("involvedObject.uid={uid}");
        let events = api.list(&ListParams::default().fields(&fields)).await;
        let rule = Rule { group: "", resource: "events", verbs: &["list"], namespace };
        let events = events.map_err(|error| explain(&error, &rule))?;
        Ok(events.iter().filter_map(read).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_being_added_if_the_last_event_says_so_and_is_not_too_old() {
        let now = Millis::from_secs(10_000);
        for (case, events, coming) in [
            ("no autoscaler", &[][..], false),
            ("other events", &[("FailedScheduling", 9_990)], false),
            ("a scale-up", &[("TriggeredScaleUp", 9_900)], true),
            ("Karpenter's", &[("Nominated", 9_900)], true),
            ("it took too long", &[("TriggeredScaleUp", 9_000)], false),
            ("no node would fit", &[("NotTriggerScaleUp", 9_900)], false),
            ("it gave up", &[("TriggeredScaleUp", 9_900), ("NotTriggerScaleUp", 9_950)], false),
            ("it tries again", &[("NotTriggerScaleUp", 9_900), ("TriggeredScaleUp", 9_950)], true),
        ] {
            let events: Vec<_> = events
                .iter()
                .map(|(reason, at)| ((*reason).to_owned(), Millis::from_secs(*at)))
                .collect();
            assert_eq!(is_coming(&events, now), coming, "{case}");
        }
    }
}
