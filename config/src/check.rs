//! The rules that types can't express: between fields, between pools, and against slips that
//! would only show when a replica is to start.
//!
//! Pure: no file is opened and no name is looked up, so that a configuration can be checked on
//! another machine than the one that it is for.

use std::time::Duration;

use crate::address::authority;
use crate::problem::{Path, Problem, Problems};
use crate::{Config, Gateway};

mod across;
mod pool;

/// What a rule found, and about which field.
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
    gateway(&config.gateway, &top.key("gateway"), &mut found);
    admin(config, &top.key("admin"), &mut found);
    let scaler = top.key("scaler");
    found.above_zero(&scaler, "staleAfter", config.scaler.stale_after);
    for (at, gateway) in config.scaler.gateways.iter().enumerate() {
        found.address(scaler.key("gateways").index(at), gateway);
    }
    if config.pools.is_empty() {
        found.error(top.key("pools"), "no pools; give at least one, with a name and a target");
    }
    for (at, pool) in config.pools.iter().enumerate() {
        pool::check(pool, &top.key("pools").index(at), &mut found);
    }
    across::check(config, &mut found);
    found
}

fn gateway(gateway: &Gateway, path: &Path, found: &mut Findings) {
    if gateway.threads == Some(0) {
        found.error(path.key("threads"), "0 threads serve nobody; leave it out for one per core");
    }
    if let Some(scaler) = &gateway.scaler {
        found.address(path.key("scaler"), scaler);
    }
    let (limits, path) = (&gateway.limits, path.key("limits"));
    if limits.body_size.bytes() == 0 {
        found.error(path.key("bodySize"), "0 refuses every request; write for example 32Mi");
    }
    if limits.header_size.bytes() < 1024 {
        let message = format!(
            "`{}` is less than the head of a plain request; write 1Ki or more",
            limits.header_size
        );
        found.error(path.key("headerSize"), message);
    }
    found.above_zero(&path, "headerTimeout", limits.header_timeout);
    found.above_zero(&path, "bodyTimeout", limits.body_timeout);
    found.above_zero(&path, "writeTimeout", limits.write_timeout);
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
