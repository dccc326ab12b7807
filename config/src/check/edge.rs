//! The rules of the gateway's client side.

use super::Findings;
use crate::types::edge::{Cors, PATHS, Tls};
use crate::types::gateway::Limits;
use crate::yaml::problem::Path;

/// Paths that the gateway knows. For a misspelt one the nearest is named: the whole list is long.
pub(super) fn paths(paths: &[String], path: &Path, found: &mut Findings) {
    for (at, given) in paths.iter().enumerate() {
        let here = path.index(at);
        if paths[..at].contains(given) {
            found.error(here, format!("`{given}` is listed twice"));
        } else if !PATHS.contains(&given.as_str()) {
            let like = |known: &&&str| strsim::jaro_winkler(known, given) > 0.85;
            let score = |known: &&str| (strsim::jaro_winkler(known, given) * 1e6) as u64;
            let hint = match PATHS.iter().filter(like).max_by_key(|known| score(known)) {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => format!("known: {}", PATHS.join(", ")),
            };
            found
                .error(here, format!("`{given}` is not a path that the gateway can serve; {hint}"));
        }
    }
    if paths.is_empty() {
        found.error(
            path.clone(),
            "no path is exposed, so every request would be refused; leave it out for all",
        );
    }
}

pub(super) fn tls(tls: &Tls, path: &Path, found: &mut Findings) {
    let files = [("certFile", Some(&tls.cert_file)), ("keyFile", Some(&tls.key_file))];
    for (name, file) in files.into_iter().chain([("clientCaFile", tls.client_ca_file.as_ref())]) {
        if file.is_some_and(|file| file.as_os_str().is_empty()) {
            found.error(path.key(name), "is empty; give the path of a PEM file");
        }
    }
}

pub(super) fn cors(cors: &Cors, path: &Path, found: &mut Findings) {
    if cors.origins.is_empty() {
        found.error(path.key("origins"), "no origin is allowed; give one, or leave `cors` out");
    }
    for (at, origin) in cors.origins.iter().enumerate() {
        let here = path.key("origins").index(at);
        if origin == "*" {
            if cors.credentials {
                let message = "`*` does not go with credentials: browsers refuse it; list the \
                               origins";
                found.error(here, message);
            }
        } else if !is_origin(origin) {
            let message =
                format!("`{origin}` is not an origin; write https://HOST or https://HOST:PORT");
            found.error(here, message);
        }
    }
    let fields = [
        ("methods", &cors.methods),
        ("headers", &cors.headers),
        ("exposeHeaders", &cors.expose_headers),
    ];
    for (name, words) in fields {
        for (at, word) in words.iter().enumerate() {
            if !is_token(word) {
                let here = path.key(name).index(at);
                found.error(
                    here,
                    format!(
                        "`{word}` is not a token: HTTP allows letters, digits and some signs here"
                    ),
                );
            }
        }
    }
}

fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let letters = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let host = |byte: u8| letters(byte) || matches!(byte, b'.' | b':' | b'[' | b']' | b'_');
    !scheme.is_empty() && scheme.bytes().all(letters) && !rest.is_empty() && rest.bytes().all(host)
}

fn is_token(text: &str) -> bool {
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !text.is_empty() && text.bytes().all(token)
}

pub(super) fn limits(limits: &Limits, path: &Path, found: &mut Findings) {
    if limits.body_size.bytes() == 0 {
        found.error(path.key("bodySize"), "0 refuses every request; write for example 32Mi");
    }
    if let Some(all) = limits.bodies_size.filter(|all| *all < limits.body_size) {
        let message = format!(
            "{all} is less than one body may have (bodySize is {}); write more",
            limits.body_size
        );
        found.error(path.key("bodiesSize"), message);
    }
    if limits.header_size.bytes() < 1024 {
        let message = format!(
            "`{}` is less than the head of a plain request; write 1Ki or more",
            limits.header_size
        );
        found.error(path.key("headerSize"), message);
    }
    if limits.header_count < 16 {
        let message = format!(
            "{} is less than a browser or SDK sends; write 16 or more",
            limits.header_count
        );
        found.error(path.key("headerCount"), message);
    }
    for (name, duration) in [
        ("headerTimeout", limits.header_timeout),
        ("bodyTimeout", limits.body_timeout),
        ("writeTimeout", limits.write_timeout),
        ("idleTimeout", limits.idle_timeout),
        ("totalTimeout", limits.total_timeout),
        ("sessionTimeout", limits.session_timeout),
        ("sessionIdleTimeout", limits.session_idle_timeout),
    ] {
        found.above_zero(path, name, duration);
    }
    for (name, count) in [
        ("connections", limits.connections),
        ("connectionsPerClient", limits.connections_per_client),
        ("streamsPerConnection", limits.streams_per_connection),
    ] {
        if count == 0 {
            found.error(path.key(name), "0 refuses every connection; write 1 or more");
        }
    }
}
