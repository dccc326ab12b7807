//! Errors of the API server in words that name the fix.

use std::fmt;

use forebay_base::trouble::first_cause;
use kube::runtime::watcher;

/// The permission that a call needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule<'a> {
    /// API group; empty for the core one.
    pub group: &'a str,
    /// Plural, with the subresource: `deployments/scale`.
    pub resource: &'a str,
    /// Every verb that is needed of it.
    pub verbs: &'a [&'a str],
    /// Where.
    pub namespace: &'a str,
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { group, resource, verbs, namespace } = self;
        write!(
            f,
            "not allowed to {} {resource} in namespace {namespace}; add to a Role there: \
             apiGroups: [\"{group}\"], resources: [{resource}], verbs: [{}]",
            verbs.join(", "),
            verbs.join(", ")
        )
    }
}

/// One sentence on why a call failed; without permission, the missing rule.
#[must_use]
pub fn explain(error: &kube::Error, rule: &Rule<'_>) -> String {
    match error {
        kube::Error::Api(status) if status.code == 403 => rule.to_string(),
        kube::Error::Api(status) if status.code == 401 => {
            "the API server does not know this service account's token".to_owned()
        }
        kube::Error::Api(status) => status.message.clone(),
        other => format!("the API server can't be reached: {}", first_cause(other)),
    }
}

/// As [`explain`], for a watch.
#[must_use]
pub fn explain_watch(error: &watcher::Error, rule: &Rule<'_>) -> String {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => explain(error, rule),
        watcher::Error::WatchError(status) if status.code == 403 => rule.to_string(),
        watcher::Error::WatchError(status) => status.message.clone(),
        watcher::Error::NoResourceVersion => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_permission_names_the_missing_rule() {
        let status =
            kube::core::Status { code: 403, message: "forbidden".into(), ..Default::default() };
        let rule = Rule {
            group: "apps",
            resource: "deployments/scale",
            verbs: &["get", "patch"],
            namespace: "models",
        };
        assert_eq!(
            explain(&kube::Error::Api(Box::new(status)), &rule),
            "not allowed to get, patch deployments/scale in namespace models; add to a Role there: \
             apiGroups: [\"apps\"], resources: [deployments/scale], verbs: [get, patch]"
        );
    }
}
