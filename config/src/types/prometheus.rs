//! The Prometheus server that triggers query.

use std::path::PathBuf;
use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units;
use crate::units::redact::redacted;

/// The Prometheus server, or one with its API, for triggers that name none of their own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Prometheus {
    /// Base URL, such as `http://prometheus.monitoring:9090`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_address: Option<String>,
    /// Longest time for one query; then its figure is unknown until the next.
    #[serde(with = "units::duration")]
    #[schemars(with = "units::duration::DurationSchema")]
    pub timeout: Duration,
    /// File with the token that is sent to this server alone, as `Bearer`; read anew for each query.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer_token_file: Option<PathBuf>,
    /// A name and a password, instead of a token; sent to this server alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub basic_auth: Option<BasicAuth>,
    /// File with the certificates, in PEM, of the authorities for `https` servers; by default the
    /// system's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// A name and a password.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct BasicAuth {
    /// The name.
    pub username: String,
    /// File with the password; read anew for each query.
    pub password_file: PathBuf,
}

impl Default for Prometheus {
    fn default() -> Self {
        Self {
            server_address: None,
            timeout: Duration::from_secs(3),
            bearer_token_file: None,
            basic_auth: None,
            ca_file: None,
        }
    }
}

/// Reads `text` as a base URL, and returns it without a `/` at its end.
///
/// # Errors
/// The text is not such a URL; the message says why.
pub fn base_url(text: &str) -> Result<&str, String> {
    check_server_url(text)?;
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    if rest.contains('@') {
        return Err(format!("`{}` holds a name or password; give them in files", redacted(text)));
    }
    if rest.contains(['?', '#']) {
        return Err(not_a_server(text));
    }
    Ok(text.trim_end_matches('/'))
}

/// Checks that `text` is the URL of a server.
///
/// # Errors
/// The text is not such a URL; the message says why.
pub(crate) fn check_server_url(text: &str) -> Result<(), String> {
    let wrong = |what: &str| {
        format!("`{}` {what}; write for example http://prometheus:9090", redacted(text))
    };
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(wrong("has no http:// or https:// at its beginning"));
    };
    if !["http", "https"].contains(&scheme.to_ascii_lowercase().as_str()) {
        return Err(wrong("is neither http nor https"));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) if !host.ends_with(']') => (name, Some(port)),
        _ => (host, None),
    };
    let port = port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0));
    if !rest.chars().all(|c| c.is_ascii_graphic()) || name.is_empty() || !port {
        return Err(not_a_server(text));
    }
    Ok(())
}

fn not_a_server(text: &str) -> String {
    format!(
        "`{}` is not the URL of a server; write for example http://prometheus:9090",
        redacted(text)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_base_url_has_a_scheme_and_a_host_and_may_have_a_path() {
        for text in [
            "http://prometheus.monitoring:9090",
            "https://metrics.example/select/0/prometheus",
            "http://[::1]:9090",
            "http://127.0.0.1",
        ] {
            assert_eq!(base_url(text), Ok(text));
        }
        assert_eq!(base_url("http://p:1/"), Ok("http://p:1"));
        for text in [
            "",
            "prometheus:9090",
            "ftp://p:1",
            "http://",
            "http://p:0",
            "http://p:1?a=b",
            "http://a:b@p:1",
            "http://a b",
        ] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }
}
