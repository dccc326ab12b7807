//! The rules for what is found and scaled in Kubernetes.

use super::Findings;
use crate::yaml::problem::Path;
use crate::{Discovery, Keda, Kubernetes, LeaderElection, Pool};

pub(super) fn discovery(it: &Discovery, path: &Path, found: &mut Findings) {
    match it {
        Discovery::Pods(pods) => {
            let path = path.key("pods");
            namespace(pods.namespace.as_deref(), &path, found);
            port(pods.port, &path, found);
            match (&pods.selector, &pods.service) {
                (Some(selector), None) if selector.trim().is_empty() => {
                    let message = "empty, which is every pod; write for example app=vllm";
                    found.error(path.key("selector"), message);
                }
                (Some(_), None) => {}
                (None, Some(service)) => name(service, path.key("service"), found),
                (Some(_), Some(_)) => {
                    let message = "a selector is given too; remove one of the two";
                    found.error(path.key("service"), message);
                }
                (None, None) => {
                    let message = "which pods? Give a selector, such as app=vllm, or a service";
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
                let message =
                    format!("`{}` is no name; write vllm.models.svc, without a port", dns.host);
                found.error(path.key("host"), message);
            }
            found.above_zero(&path, "interval", dns.interval);
        }
    }
}

pub(super) fn target(it: &Kubernetes, path: &Path, found: &mut Findings) {
    namespace(it.namespace.as_deref(), path, found);
    name(&it.name, path.key("name"), found);
    if it.port == Some(0) {
        port(0, path, found);
    }
    if it.kind.is_empty() || !it.kind.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        let message = format!("`{}` is no kind; write for example Deployment", it.kind);
        found.error(path.key("kind"), message);
    }
    let parts: Vec<_> = it.api_version.split('/').collect();
    if parts.len() > 2 || parts.iter().any(|part| part.trim().is_empty()) {
        let message =
            format!("`{}` is no GROUP/VERSION; write for example apps/v1", it.api_version);
        found.error(path.key("apiVersion"), message);
    }
    found.above_zero(path, "hungAfter", it.hung_after);
    found.above_zero(path, "startTimeout", it.start_timeout);
}

pub(super) fn keda(pool: &Pool, it: &Keda, path: &Path, found: &mut Findings) {
    let target = path.key("target").key("keda");
    namespace(it.namespace.as_deref(), &target, found);
    name(&it.scaled_object, target.key("scaledObject"), found);
    if pool.discovery.is_none() && pool.endpoints.is_empty() {
        let message = "KEDA starts replicas and tells nobody where; give discovery, such as the \
                       pods' labels";
        found.error(path.key("discovery"), message);
    }
}

pub(super) fn leader_election(it: &LeaderElection, path: &Path, found: &mut Findings) {
    namespace(it.namespace.as_deref(), path, found);
    name(&it.lease, path.key("lease"), found);
    if it.lease_duration < std::time::Duration::from_secs(2) {
        let message = "less than 2s, in which a busy API server may not answer once";
        found.error(path.key("leaseDuration"), message);
    }
    if let Some(address) = &it.advertise {
        found.address(path.key("advertise"), address);
    }
}

fn namespace(given: Option<&str>, path: &Path, found: &mut Findings) {
    if let Some(given) = given {
        name(given, path.key("namespace"), found);
    }
}

/// A DNS label or subdomain, as Kubernetes takes it.
fn name(name: &str, path: Path, found: &mut Findings) {
    let inner =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(&byte);
    let ends = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
    let fits = name.len() <= 253 && name.bytes().all(inner);
    if !fits || !ends(name.bytes().next()) || !ends(name.bytes().last()) {
        let message =
            format!("`{name}` is no name in Kubernetes: lower case letters, digits, - and .");
        found.error(path, message);
    }
}

fn port(port: u16, path: &Path, found: &mut Findings) {
    if port == 0 {
        found.error(path.key("port"), "must be from 1 to 65535");
    }
}
