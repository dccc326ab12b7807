//! The rules of the gateway's own part: bounds, keys, tenants.

use std::collections::HashMap;

use super::{Findings, edge, name};
use crate::types::tenant::{ANONYMOUS, Tenant};
use crate::yaml::problem::Path;
use crate::{Config, Gateway};

pub(super) fn check(config: &Config, path: &Path, found: &mut Findings) {
    let gateway = &config.gateway;
    if gateway.threads == Some(0) {
        found.error(
            path.key("threads"),
            "0 threads serve no request; leave it out for one per core",
        );
    }
    if let Some(scaler) = &gateway.scaler {
        found.address(path.key("scaler"), scaler);
    }
    if let Some(record) = &gateway.record_arrivals {
        let path = path.key("recordArrivals");
        if record.file.as_os_str().is_empty() {
            found.error(path.key("file"), "names no file; write for example arrivals.csv");
        }
        if record.max_size.bytes() < 4096 {
            found.error(path.key("maxSize"), "holds too few requests; write 4Ki or more");
        }
    }
    if let Some(tls) = &gateway.tls {
        edge::tls(tls, &path.key("tls"), found);
    }
    if let Some(cors) = &gateway.cors {
        edge::cors(cors, &path.key("cors"), found);
    }
    edge::paths(&gateway.paths, &path.key("paths"), found);
    edge::limits(&gateway.limits, &path.key("limits"), found);
    keys(gateway, path, found);
    tenants(gateway, &path.key("tenants"), found);
}

fn keys(gateway: &Gateway, path: &Path, found: &mut Findings) {
    let Some(keys) = &gateway.keys else {
        if gateway.tenants.iter().any(|tenant| tenant.name != ANONYMOUS) {
            let message = "without gateway.keys no request belongs to them; give gateway.keys.file";
            found.error(path.key("tenants"), message);
        }
        return;
    };
    let path = path.key("keys");
    if keys.file.as_os_str().is_empty() {
        found.error(path.key("file"), "empty; name the file or folder with the keys' hashes");
    }
    if gateway.tenants.iter().all(|tenant| tenant.name == ANONYMOUS) {
        let message = "no key can be valid: gateway.tenants lists no tenant that has keys";
        found.error(path, message);
    } else if keys.required
        && let Some(at) = gateway.tenants.iter().position(|tenant| tenant.name == ANONYMOUS)
    {
        let message = "has no effect: keys.required refuses requests without a key";
        found.warn(Path::default().key("gateway").key("tenants").index(at), message);
    }
}

fn tenants(gateway: &Gateway, path: &Path, found: &mut Findings) {
    let mut seen = HashMap::new();
    for (at, tenant) in gateway.tenants.iter().enumerate() {
        let path = path.index(at);
        name(&tenant.name, "a tenant's name", &path.key("name"), found);
        let first = *seen.entry(tenant.name.as_str()).or_insert(at);
        if first != at {
            let message =
                format!("`{}` is the name of gateway.tenants[{first}] already", tenant.name);
            found.error(path.key("name"), message);
        }
        tenant_limits(tenant, &path, found);
    }
}

fn tenant_limits(tenant: &Tenant, path: &Path, found: &mut Findings) {
    for (field, zero) in [
        ("requestsPerMinute", tenant.requests_per_minute == Some(0)),
        ("tokensPerMinute", tenant.tokens_per_minute == Some(0)),
        ("maxConcurrent", tenant.max_concurrent == Some(0)),
    ] {
        if zero {
            found.error(path.key(field), "0 admits nothing; leave it out for no limit");
        }
    }
    for (at, model) in tenant.models.iter().enumerate() {
        if model.trim().is_empty() {
            let message = "a model's name must not be empty; write * for all";
            found.error(path.key("models").index(at), message);
        }
    }
}
