//! What the API server writes down of who asked it for what.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::Plane;

/// Service accounts that are not the control plane's own, once for each call.
pub const POLICY: &str = r#"{
  "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
  "omitStages": ["RequestReceived"],
  "rules": [
    {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
    {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
    {"level": "None"}
  ]
}"#;

/// A verb on a resource, as a rule of a Role grants it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Right {
    /// Empty for the core group.
    pub group: String,
    /// With the subresource: `deployments/scale`.
    pub resource: String,
    pub verb: String,
}

/// What one account asked for.
#[derive(Debug, Default)]
pub struct Calls {
    pub allowed: BTreeSet<Right>,
    pub denied: BTreeSet<Right>,
}

impl Plane {
    pub(super) fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// The calls of a service account until now.
    pub fn calls(&self, namespace: &str, account: &str) -> Calls {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let log = std::fs::read_to_string(self.audit_log()).unwrap_or_default();
        let mut calls = Calls::default();
        // One that is being written is not complete yet.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for event in events.filter(|event| event["user"]["username"] == user) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            // Without an object it is what everybody may ask: which kinds there are.
            let Some(object) = event.get("objectRef") else { continue };
            let resource = match (text(&object["resource"]), text(&object["subresource"])) {
                (resource, part) if part.is_empty() => resource,
                (resource, part) => format!("{resource}/{part}"),
            };
            let (group, verb) = (text(&object["apiGroup"]), text(&event["verb"]));
            let right = Right { group, resource, verb };
            let allowed = event["annotations"]["authorization.k8s.io/decision"] == "allow";
            let set = if allowed { &mut calls.allowed } else { &mut calls.denied };
            set.insert(right);
        }
        calls
    }
}
