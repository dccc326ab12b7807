//! The rules of a pool's triggers and behavior, and of the Prometheus server that they query.

use std::collections::HashMap;

use super::Findings;
use crate::lint::{Context, TriggerReader, lint};
use crate::types::behavior::{Advanced, Behavior, ScalingRules};
use crate::types::trigger::{TRIGGER_TYPES, Trigger};
use crate::yaml::problem::Path;
use crate::{Pool, Prometheus, Scaling, base_url};

/// Triggers of a pool's `scaling` that can't work as their author means.
pub(super) fn triggers_meaning(pool: &Pool, server: bool, path: &Path, found: &mut Findings) {
    let path = path.key("triggers");
    let scaling = &pool.scaling;
    let concurrency = pool.target_concurrency();
    let rules: Vec<_> =
        scaling.triggers.iter().map(|trigger| trigger.rule(concurrency).0).collect();
    let context = Context {
        triggers: &scaling.triggers,
        rules: &rules,
        idle: scaling.idle_replica_count,
        min: Some(scaling.min_replica_count),
        max: Some(scaling.max_replica_count),
        reader: TriggerReader::Forebay { server },
    };
    for remark in lint(&context) {
        let path = path.join(&remark.path);
        if remark.error {
            found.error(path, remark.message);
        } else {
            found.warn(path, remark.message);
        }
    }
}

/// The fields of `scaling` that KEDA and the HPA have too.
pub(super) fn check(scaling: &Scaling, target_concurrency: u32, path: &Path, found: &mut Findings) {
    found.above_zero(path, "pollingInterval", scaling.polling_interval);
    triggers(&scaling.triggers, target_concurrency, &path.key("triggers"), found);
    if let Some(own) = &scaling.behavior {
        for (path, message) in behavior(own, &path.key("behavior")) {
            found.error(path, message);
        }
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

fn advanced(advanced: &Advanced, given: bool, path: &Path, found: &mut Findings) {
    if advanced.restore_to_original_replica_count == Some(true) {
        let message = "has no effect: replicas of a removed pool are left as its target has them";
        found.warn(path.key("restoreToOriginalReplicaCount"), message);
    }
    let Some(hpa) = &advanced.horizontal_pod_autoscaler_config else { return };
    let Some(pasted) = &hpa.behavior else { return };
    let path = path.key("horizontalPodAutoscalerConfig").key("behavior");
    if given {
        found.error(path, "scaling.behavior is given too; keep one of the two");
    } else {
        for (path, message) in behavior(pasted, &path) {
            found.error(path, message);
        }
    }
}

/// The HPA's own bounds.
fn behavior(behavior: &Behavior, path: &Path) -> Vec<(Path, String)> {
    let mut found = Vec::new();
    for (name, rules) in [("scaleUp", &behavior.scale_up), ("scaleDown", &behavior.scale_down)] {
        if let Some(rules) = rules {
            self::rules(rules, &path.key(name), &mut found);
        }
    }
    found
}

fn rules(rules: &ScalingRules, path: &Path, found: &mut Vec<(Path, String)>) {
    let mut error = |path: Path, message: String| found.push((path, message));
    if let Some(seconds) = rules.stabilization_window_seconds.filter(|seconds| *seconds > 3600) {
        let message = format!("{seconds} is more than the HPA takes; write 3600 or less");
        error(path.key("stabilizationWindowSeconds"), message);
    }
    if let Some(tolerance) =
        rules.tolerance.filter(|tolerance| tolerance.is_nan() || *tolerance < 0.0)
    {
        error(path.key("tolerance"), format!("{tolerance} is negative; write a share such as 0.1"));
    }
    if rules.policies.as_ref().is_some_and(Vec::is_empty) {
        let message = "empty, so nothing could change; leave it out for the HPA's default, or \
                       write selectPolicy: Disabled";
        error(path.key("policies"), message.to_owned());
    }
    for (at, policy) in rules.policies.iter().flatten().enumerate() {
        let path = path.key("policies").index(at);
        if policy.value == 0 {
            let message = "must be at least 1; to change nothing write selectPolicy: Disabled";
            error(path.key("value"), message.to_owned());
        }
        if !(1..=1800).contains(&policy.period_seconds) {
            let message = format!("{} is not between 1 and 1800", policy.period_seconds);
            error(path.key("periodSeconds"), message);
        }
    }
}

pub(super) fn prometheus(prometheus: &Prometheus, path: &Path, found: &mut Findings) {
    if let Some(Err(message)) = prometheus.server_address.as_deref().map(base_url) {
        found.error(path.key("serverAddress"), message);
    }
    found.above_zero(path, "timeout", prometheus.timeout);
    if prometheus.bearer_token_file.is_some() && prometheus.basic_auth.is_some() {
        let message = "bearerTokenFile is given too; keep one of the two";
        found.error(path.key("basicAuth"), message);
    }
}
