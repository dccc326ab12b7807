//! The rules of a pool's triggers and behavior, and of the Prometheus server that they ask.

use std::collections::HashMap;

use super::Findings;
use crate::behavior::{Advanced, Behavior, ScalingRules};
use crate::problem::Path;
use crate::trigger::{TRIGGER_TYPES, Trigger};
use crate::{Prometheus, Scaling, base_url};

/// The fields of `scaling` that KEDA and the HPA have too.
pub(super) fn check(scaling: &Scaling, target_concurrency: u32, path: &Path, found: &mut Findings) {
    found.above_zero(path, "pollingInterval", scaling.polling_interval);
    triggers(&scaling.triggers, target_concurrency, &path.key("triggers"), found);
    if let Some(own) = &scaling.behavior {
        behavior(own, &path.key("behavior"), found);
    }
    if let Some(pasted) = &scaling.advanced {
        advanced(pasted, scaling.behavior.is_some(), &path.key("advanced"), found);
    }
}

fn triggers(triggers: &[Trigger], target_concurrency: u32, path: &Path, found: &mut Findings) {
    let mut names = HashMap::new();
    for (at, trigger) in triggers.iter().enumerate() {
        let path = path.index(at);
        if !TRIGGER_TYPES.contains(&trigger.kind.as_str()) {
            let message = match crate::yaml::closest(&trigger.kind, &TRIGGER_TYPES) {
                Some(near) => format!("`{}` is not known; did you mean {near}?", trigger.kind),
                None => {
                    format!(
                        "`{}` is not known; give one of: {}",
                        trigger.kind,
                        TRIGGER_TYPES.join(", ")
                    )
                }
            };
            found.error(path.key("type"), message);
            continue;
        }
        if let Some(name) = trigger.name.as_deref().filter(|name| !name.is_empty()) {
            let first = *names.entry(name).or_insert(at);
            if first != at {
                let message = format!("`{name}` is the name of triggers[{first}] already");
                found.error(path.key("name"), message);
            }
        }
        let (_, faults) = trigger.rule(target_concurrency);
        for fault in faults {
            let path = path.key("metadata").key(&fault.key);
            if fault.error {
                found.error(path, fault.message);
            } else {
                found.warn(path, fault.message);
            }
        }
        if trigger.authentication_ref.is_some() {
            let message = "has no effect: give prometheus.bearerTokenFile or \
                           prometheus.basicAuth, or bearerTokenFile in the trigger's metadata";
            found.warn(path.key("authenticationRef"), message);
        }
    }
}

fn advanced(it: &Advanced, given: bool, path: &Path, found: &mut Findings) {
    if it.restore_to_original_replica_count == Some(true) {
        let message = "has no effect: replicas of a removed pool are left as its target has them";
        found.warn(path.key("restoreToOriginalReplicaCount"), message);
    }
    let Some(hpa) = &it.horizontal_pod_autoscaler_config else { return };
    let Some(pasted) = &hpa.behavior else { return };
    let path = path.key("horizontalPodAutoscalerConfig").key("behavior");
    if given {
        found.error(path, "scaling.behavior is given too; keep one of the two");
    } else {
        behavior(pasted, &path, found);
    }
}

fn behavior(it: &Behavior, path: &Path, found: &mut Findings) {
    for (name, rules) in [("scaleUp", &it.scale_up), ("scaleDown", &it.scale_down)] {
        if let Some(it) = rules {
            self::rules(it, &path.key(name), found);
        }
    }
}

/// The HPA's own bounds.
fn rules(it: &ScalingRules, path: &Path, found: &mut Findings) {
    if let Some(seconds) = it.stabilization_window_seconds.filter(|it| *it > 3600) {
        let message = format!("{seconds} is more than the HPA takes; write 3600 or less");
        found.error(path.key("stabilizationWindowSeconds"), message);
    }
    if it.tolerance.is_some_and(|it| it < 0.0) {
        found.error(path.key("tolerance"), "is negative; write a share such as 0.1");
    }
    if it.policies.as_ref().is_some_and(Vec::is_empty) {
        let message = "empty, so nothing could change; leave it out for the HPA's default, or \
                       write selectPolicy: Disabled";
        found.error(path.key("policies"), message);
    }
    for (at, policy) in it.policies.iter().flatten().enumerate() {
        let path = path.key("policies").index(at);
        if policy.value == 0 {
            let message = "must be at least 1; to change nothing write selectPolicy: Disabled";
            found.error(path.key("value"), message);
        }
        if !(1..=1800).contains(&policy.period_seconds) {
            let message = format!("{} is not between 1 and 1800", policy.period_seconds);
            found.error(path.key("periodSeconds"), message);
        }
    }
}

pub(super) fn prometheus(it: &Prometheus, path: &Path, found: &mut Findings) {
    if let Some(Err(message)) = it.server_address.as_deref().map(base_url) {
        found.error(path.key("serverAddress"), message);
    }
    found.above_zero(path, "timeout", it.timeout);
    if it.bearer_token_file.is_some() && it.basic_auth.is_some() {
        let message = "bearerTokenFile is given too; keep one of the two";
        found.error(path.key("basicAuth"), message);
    }
}
