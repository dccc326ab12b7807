//! A Service's selector.

use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};

use crate::error::{Rule, explain};

/// The pods of a Service as a label selector.
///
/// # Errors
/// In words: it is not there, has no selector, or may not be read.
pub(crate) async fn selector(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<String, String> {
    let rule = Rule { group: "", resource: "services", verbs: &["get"], namespace };
    let service = Api::<Service>::namespaced(client.clone(), namespace).get(name).await;
    let service = service.map_err(|error| explain(&error, &rule))?;
    let labels = service.spec.and_then(|spec| spec.selector).unwrap_or_default();
    if labels.is_empty() {
        return Err(format!("the Service {name} in namespace {namespace} has no selector"));
    }
    let pairs: Vec<_> = labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    Ok(pairs.join(","))
}
