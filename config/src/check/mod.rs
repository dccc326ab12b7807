//! The rules that types can't express: between fields, between pools, and against mistakes that
//! would only show when a replica starts.
//!
//! Pure: no file is opened and no name is looked up, so a configuration can be checked on a machine
//! other than its own.

use std::time::Duration;

use crate::Config;
use crate::units::authority::authority;
use crate::yaml::problem::{Path, Problem, Problems};

mod across;
mod edge;
mod gateway;
mod kubernetes;
mod open_telemetry;
mod pool;
mod replay;
mod routes;
mod scaling;

/// A problem that a rule found, and its field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) path: Path,
    pub(crate) message: String,
}

/// All that the rules found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Findings {
    pub(crate) errors: Vec<Finding>,
    pub(crate) warnings: Vec<Finding>,
}

/// Applies every rule.
pub(crate) fn check(config: &Config) -> Findings {
    let mut found = Findings::default();
    let top = Path::default();
    gateway::check(config, &top.key("gateway"), &mut found);
    admin(config, &top.key("admin"), &mut found);
    open_telemetry::check(&config.open_telemetry, &top.key("openTelemetry"), &mut found);
    let scaler = top.key("scaler");
    found.above_zero(&scaler, "staleAfter", config.scaler.stale_after);
    for (at, gateway) in config.scaler.gateways.iter().enumerate() {
        found.address(scaler.key("gateways").index(at), gateway);
    }
    if let Some(address) = &config.scaler.gateway_address {
        found.address(scaler.key("gatewayAddress"), address);
    }
    if let Some(discovery) = &config.scaler.gateway_discovery {
        kubernetes::discovery(discovery, &scaler.key("gatewayDiscovery"), &mut found);
    }
    if let Some(election) = &config.scaler.leader_election {
        kubernetes::leader_election(election, &scaler.key("leaderElection"), &mut found);
    }
    scaling::prometheus(&config.prometheus, &top.key("prometheus"), &mut found);
    if config.pools.is_empty() {
        found.error(top.key("pools"), "no pools; give at least one, with a name and a target");
    }
    for (at, pool) in config.pools.iter().enumerate() {
        let path = top.key("pools").index(at);
        pool::check(pool, &path, &mut found);
        let server = config.prometheus.server_address.is_some();
        scaling::triggers_meaning(pool, server, &path.key("scaling"), &mut found);
    }
    if let Some(model) = &config.replay {
        replay::check(model, &top.key("replay"), &mut found);
    }
    across::check(config, &mut found);
    routes::check(config, &mut found);
    found
}

fn admin(config: &Config, path: &Path, found: &mut Findings) {
    let (listen, clients) = (config.admin.listen, config.gateway.listen);
    if !listen.ip().to_canonical().is_loopback() && config.admin.token_file.is_none() {
        let message = format!(
            "{listen} can be reached from outside, and no tokenFile is given; give one, or listen \
             on 127.0.0.1:{}",
            listen.port()
        );
        found.error(path.key("listen"), message);
    }
    // An address of all interfaces meets every other one; v6's takes v4's too on most systems.
    let meet = listen.ip() == clients.ip()
        || listen.ip().is_unspecified()
        || clients.ip().is_unspecified();
    if listen.port() != 0 && listen.port() == clients.port() && meet {
        let message = format!(
            "port {} is the one of gateway.listen ({clients}); give each its own",
            listen.port()
        );
        found.error(path.key("listen"), message);
    }
}

/// A name that is a metric's label, a file's name and a key in the feeds.
fn name(name: &str, what: &str, path: &Path, found: &mut Findings) {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let first = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if !first || name.len() > 63 || !name.bytes().all(inner) {
        let message = format!(
            "`{name}` is not {what}: up to 63 letters, digits, `-`, `_` and `.`, beginning with a \
             letter or digit"
        );
        found.error(path.clone(), message);
    }
}

impl Findings {
    pub(crate) fn problems(self) -> Problems {
        without_places(self.errors)
    }

    pub(crate) fn warnings(self) -> Problems {
        without_places(self.warnings)
    }

    fn error(&mut self, path: Path, message: impl Into<String>) {
        self.errors.push(Finding { path, message: message.into() });
    }

    fn warn(&mut self, path: Path, message: impl Into<String>) {
        self.warnings.push(Finding { path, message: message.into() });
    }

    fn above_zero(&mut self, path: &Path, name: &str, duration: Duration) {
        if duration.is_zero() {
            self.error(path.key(name), "must be longer than 0s");
        }
    }

    fn address(&mut self, path: Path, text: &str) {
        if let Err(error) = authority(text) {
            self.error(path, error.to_string());
        }
    }
}

fn without_places(findings: Vec<Finding>) -> Problems {
    let problems = findings.into_iter().map(|finding| Problem {
        source: String::new(),
        place: None,
        field: finding.path.to_string(),
        message: finding.message,
    });
    Problems::sorted(problems.collect())
}
