//! A workload's `/scale`, for any kind of workload.

use std::time::Duration;

use forebay_config as config;
use forebay_discovery::error::{Rule, explain};
use forebay_discovery::pod::DELETION_COST;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, Preconditions};
use kube::core::{ApiResource, GroupVersionKind, PartialObjectMeta};
use kube::{Api, Client, discovery};
use serde_json::json;
use tokio::time::timeout;

use crate::decide::Override;

/// An operator's annotation: exactly this many replicas, until it is removed.
pub(super) const PAUSED_REPLICAS: &str = "forebay.io/paused-replicas";
/// An operator's annotation: if `true`, the count belongs to another client until it is removed.
pub(super) const PAUSED: &str = "forebay.io/paused";
/// The [`DELETION_COST`] of pods that are to stop.
pub(super) const FIRST_TO_GO: i32 = -1_000_000;
const CALL_TIMEOUT: Duration = Duration::from_secs(5);
const FIELD_MANAGER: &str = "forebay-scaler";
/// Time from SIGTERM to SIGKILL for a pod that hangs: it has nothing to finish.
const GRACE_SECONDS: u32 = 30;

/// A workload that was found.
pub(in crate::act::targets) struct Workload {
    client: Client,
    resource: ApiResource,
    api: Api<DynamicObject>,
    pub(super) metadata: Api<PartialObjectMeta<DynamicObject>>,
    pods: Api<Pod>,
    namespace: String,
    name: String,
}

/// The state of its `/scale`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::act::targets) struct Scaled {
    pub(in crate::act::targets) replicas: u32,
    pub(in crate::act::targets) version: String,
    pub(super) uid: Option<String>,
    /// Label selector of its pods; empty if the kind reports none.
    pub(super) selector: String,
}

/// The reason why a workload was not found.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::act::targets) enum Unfound {
    /// The API server refuses it.
    #[error("{0}")]
    Refused(String),
    /// The API server did not answer.
    #[error("{0}")]
    Unanswered(String),
}

/// The reason why a call failed.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::act::targets) enum Failed {
    /// Another client wrote in between.
    Conflict,
    /// Any other reason, in words.
    For(String),
}

impl Workload {
    /// Looks the kind up at the API server.
    pub(in crate::act::targets) async fn find(
        client: Client,
        namespace: &str,
        settings: &config::Kubernetes,
    ) -> Result<Self, Unfound> {
        let (group, version) =
            settings.api_version.rsplit_once('/').unwrap_or(("", &settings.api_version));
        let gvk = GroupVersionKind::gvk(group, version, &settings.kind);
        let found = timeout(CALL_TIMEOUT, discovery::pinned_kind(&client, &gvk)).await;
        let found =
            found.map_err(|_| Unfound::Unanswered("the API server does not answer".to_owned()))?;
        let (resource, capabilities) = found.map_err(|error| match &error {
            kube::Error::Discovery(_) => Unfound::Refused(format!(
                "the cluster has no kind {} in {}",
                settings.kind, settings.api_version
            )),
            kube::Error::Api(status) if status.code == 404 => {
                Unfound::Refused(format!("the cluster does not serve {}", settings.api_version))
            }
            error => {
                let rule = Rule { group, resource: "", verbs: &["get"], namespace };
                let why = explain(error, &rule);
                let refused = matches!(error, kube::Error::Api(_));
                if refused { Unfound::Refused(why) } else { Unfound::Unanswered(why) }
            }
        })?;
        let scales = capabilities.subresources.iter().any(|(kind, _)| kind.plural == "scale");
        if !scales {
            return Err(Unfound::Refused(format!("{} has no /scale subresource", settings.kind)));
        }
        Ok(Self {
            api: Api::namespaced_with(client.clone(), namespace, &resource),
            metadata: Api::namespaced_with(client.clone(), namespace, &resource),
            pods: Api::namespaced(client.clone(), namespace),
            client,
            resource,
            namespace: namespace.to_owned(),
            name: settings.name.clone(),
        })
    }

    pub(super) fn client(&self) -> Client {
        self.client.clone()
    }

    pub(super) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The permission to watch it.
    pub(super) fn watch_rule(&self) -> Rule<'_> {
        Rule {
            group: &self.resource.group,
            resource: &self.resource.plural,
            verbs: &["list", "watch"],
            namespace: &self.namespace,
        }
    }

    pub(in crate::act::targets) async fn read(&self) -> Result<Scaled, String> {
        let called = timeout(CALL_TIMEOUT, self.api.get_scale(&self.name)).await;
        match self.answer(called, "get") {
            Ok(scaled) => Ok(scaled),
            Err(Failed::For(why)) => Err(why),
            Err(Failed::Conflict) => Err("a conflict".to_owned()),
        }
    }

    /// Sets the count, if the workload still has this `version`.
    pub(in crate::act::targets) async fn write(
        &self,
        replicas: u32,
        version: &str,
    ) -> Result<Scaled, Failed> {
        let patch = json!({
            "metadata": {"resourceVersion": version}, "spec": {"replicas": replicas},
        });
        let params =
            PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..Default::default() };
        let patch = Patch::Merge(patch);
        let call = self.api.patch_scale(&self.name, &params, &patch);
        self.answer(timeout(CALL_TIMEOUT, call).await, "patch")
    }

    fn answer(
        &self,
        called: Result<kube::Result<Scale>, tokio::time::error::Elapsed>,
        verb: &str,
    ) -> Result<Scaled, Failed> {
        let called =
            called.map_err(|_| Failed::For("the API server does not answer".to_owned()))?;
        let scale = called.map_err(|error| match &error {
            kube::Error::Api(status) if status.code == 409 => Failed::Conflict,
            kube::Error::Api(status) if status.code == 404 => Failed::For(format!(
                "there is no {} {} in namespace {}",
                self.resource.kind, self.name, self.namespace
            )),
            error => {
                let resource = format!("{}/scale", self.resource.plural);
                let rule = Rule {
                    group: &self.resource.group,
                    resource: &resource,
                    verbs: &[verb],
                    namespace: &self.namespace,
                };
                Failed::For(explain(error, &rule))
            }
        })?;
        let replicas = scale.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        Ok(Scaled {
            replicas: replicas.max(0).unsigned_abs(),
            version: scale.metadata.resource_version.unwrap_or_default(),
            uid: scale.metadata.uid,
            selector: scale.status.and_then(|status| status.selector).unwrap_or_default(),
        })
    }

    /// Makes a pod the first that its controller takes, or reverts that.
    pub(super) async fn mark(&self, pod: &str, first: bool) -> Result<(), String> {
        let cost = first.then(|| FIRST_TO_GO.to_string());
        let patch = json!({"metadata": {"annotations": {DELETION_COST: cost}}});
        let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
        let called = timeout(CALL_TIMEOUT, self.pods.patch_metadata(pod, &params, &patch)).await;
        match called.map_err(|_| "the API server does not answer".to_owned())? {
            Ok(_) => Ok(()),
            // It is gone already.
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => {
                let namespace = &self.namespace;
                let rule = Rule { group: "", resource: "pods", verbs: &["patch"], namespace };
                Err(explain(&error, &rule))
            }
        }
    }

    /// Deletes a pod, unless another pod has taken its name.
    pub(super) async fn delete(&self, pod: &str, uid: &str) -> Result<(), String> {
        let uid = Some(uid.to_owned()).filter(|uid| !uid.is_empty());
        let params = DeleteParams {
            grace_period_seconds: Some(GRACE_SECONDS),
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        let called = timeout(CALL_TIMEOUT, self.pods.delete(pod, &params)).await;
        match called.map_err(|_| "the API server does not answer".to_owned())? {
            Ok(_) => Ok(()),
            // It is gone already.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
            Err(error) => {
                let namespace = &self.namespace;
                let rule = Rule { group: "", resource: "pods", verbs: &["delete"], namespace };
                Err(explain(&error, &rule))
            }
        }
    }

    pub(super) fn reference(&self, uid: Option<String>) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.resource.api_version.clone()),
            kind: Some(self.resource.kind.clone()),
            name: Some(self.name.clone()),
            namespace: Some(self.namespace.clone()),
            uid,
            ..ObjectReference::default()
        }
    }
}

/// The override in a workload's annotations. `replicas` is its current count.
pub(super) fn annotated_override(
    annotation: impl Fn(&str) -> Option<String>,
    replicas: u32,
) -> Result<Override, String> {
    if let Some(text) = annotation(PAUSED_REPLICAS) {
        return text.trim().parse().map(Override::Fixed).map_err(|_| {
            format!("the annotation {PAUSED_REPLICAS}: `{text}` is not a replica count")
        });
    }
    let paused = annotation(PAUSED).is_some_and(|text| text.trim() == "true");
    Ok(if paused { Override::Fixed(replicas) } else { Override::None })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_take_a_workload_out_of_our_hands() {
        let with = |key: &'static str, value: &'static str| {
            annotated_override(move |name| (name == key).then(|| value.to_owned()), 4)
        };
        assert_eq!(with("else", "true"), Ok(Override::None));
        assert_eq!(with(PAUSED, "true"), Ok(Override::Fixed(4)), "the current count");
        assert_eq!(with(PAUSED, "false"), Ok(Override::None));
        assert_eq!(with(PAUSED_REPLICAS, "2"), Ok(Override::Fixed(2)));
        assert!(with(PAUSED_REPLICAS, "two").is_err());
    }
}
