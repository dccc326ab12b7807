//! The API server's audit log: the calls of each account.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::Value;

use super::Plane;

/// An audit policy that records each call of a service account, except for the control plane's own.
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

/// The calls of one account.
#[derive(Debug, Default)]
pub struct Calls {
    pub allowed: BTreeSet<Right>,
    pub denied: BTreeSet<Right>,
}

impl Plane {
    pub(super) fn audit_log(&self) -> PathBuf {
        self.folder.join("audit.log")
    }

    /// The calls of a service account so far.
    pub fn calls(&self, namespace: &str, account: &str) -> Calls {
        let user = format!("system:serviceaccount:{namespace}:{account}");
        let log = std::fs::read_to_string(self.audit_log()).unwrap_or_default();
        let mut calls = Calls::default();
        // The last line may be incomplete.
        let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        for event in events.filter(|event| event["user"]["username"] == user) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            // A call without an object is open to every account: it lists the kinds.
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
