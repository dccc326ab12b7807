//! The rules for what is found and scaled in Kubernetes.

use super::Findings;
use crate::yaml::problem::Path;
use crate::{Discovery, Keda, Kubernetes, LeaderElection, Pool};

pub(super) fn discovery(discovery: &Discovery, path: &Path, found: &mut Findings) {
    match discovery {
        Discovery::Pods(pods) => {
            let path = path.key("pods");
            namespace(pods.namespace.as_deref(), &path, found);
            port(pods.port, &path, found);
            match (&pods.selector, &pods.service) {
                (Some(selector), None) if selector.trim().is_empty() => {
                    let message = "empty, which selects every pod; write for example app=vllm";
                    found.error(path.key("selector"), message);
                }
                (Some(_), None) => {}
                (None, Some(service)) => name(service, path.key("service"), found),
                (Some(_), Some(_)) => {
                    let message = "a selector is given too; remove one of the two";
                    found.error(path.key("service"), message);
                }
                (None, None) => {
                    let message =
                        "no pods are selected; give a selector, such as app=vllm, or a service";
                    found.error(path, message);
                }
            }
        }
        Discovery::EndpointSlices(slices) => {
            let path = path.key("endpointSlices");
            namespace(slices.namespace.as_deref(), &path, found);
            name(&slices.service, path.key("service"), found);
        }
        Discovery::Dns(dns) => {
            let path = path.key("dns");
            port(dns.port, &path, found);
            if crate::units::authority::authority(&format!("{}:1", dns.host)).is_err() {
                let message = format!(
                    "`{}` is not a host name; write vllm.models.svc, without a port",
                    dns.host
                );
                found.error(path.key("host"), message);
            }
            found.above_zero(&path, "interval", dns.interval);
        }
    }
}

pub(super) fn target(kubernetes: &Kubernetes, path: &Path, found: &mut Findings) {
    namespace(kubernetes.namespace.as_deref(), path, found);
    name(&kubernetes.name, path.key("name"), found);
    if kubernetes.port == Some(0) {
        port(0, path, found);
    }
    if kubernetes.kind.is_empty()
        || !kubernetes.kind.bytes().all(|byte| byte.is_ascii_alphanumeric())
    {
        let message = format!("`{}` is not a kind; write for example Deployment", kubernetes.kind);
        found.error(path.key("kind"), message);
    }
    let parts: Vec<_> = kubernetes.api_version.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.trim().is_empty()) {
        let message =
            format!("`{}` is not GROUP/VERSION; write for example apps/v1", kubernetes.api_version);
        found.error(path.key("apiVersion"), message);
    }
    found.above_zero(path, "hungAfter", kubernetes.hung_after);
    found.above_zero(path, "startTimeout", kubernetes.start_timeout);
}

pub(super) fn keda(pool: &Pool, keda: &Keda, path: &Path, found: &mut Findings) {
    let target = path.key("target").key("keda");
    namespace(keda.namespace.as_deref(), &target, found);
    name(&keda.scaled_object, target.key("scaledObject"), found);
    if pool.discovery.is_none() && pool.endpoints.is_empty() {
        let message = "KEDA starts replicas and does not report their addresses; give discovery, \
                       such as the pods' labels";
        found.error(path.key("discovery"), message);
    }
}

pub(super) fn leader_election(election: &LeaderElection, path: &Path, found: &mut Findings) {
    namespace(election.namespace.as_deref(), path, found);
    name(&election.lease, path.key("lease"), found);
    if election.lease_duration < std::time::Duration::from_secs(2) {
        let message = "must be 2s or longer: a busy API server may take that long for an answer";
        found.error(path.key("leaseDuration"), message);
    }
    if let Some(address) = &election.advertise {
        found.address(path.key("advertise"), address);
    }
}

fn namespace(given: Option<&str>, path: &Path, found: &mut Findings) {
    if let Some(given) = given {
        name(given, path.key("namespace"), found);
    }
}

/// A DNS label or subdomain, as Kubernetes accepts it.
fn name(name: &str, path: Path, found: &mut Findings) {
    let inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let fits = name.len() <= 253 && name.bytes().all(inner);
    if !fits || !ends(name.bytes().next()) || !ends(name.bytes().last()) {
        let message =
            format!("`{name}` is not a name in Kubernetes: lower case letters, digits, - and .");
        found.error(path, message);
    }
}

fn port(port: u16, path: &Path, found: &mut Findings) {
    if port == 0 {
        found.error(path.key("port"), "must be from 1 to 65535");
    }
}
