//! TLS of a client: whom it trusts.

use std::fmt::Display;
use std::path::Path;
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;

/// TLS that verifies servers against the certificates in `ca_file`, by default against the system's.
///
/// # Errors
/// Why `ca_file` can't be used.
pub fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = match ca_file {
        Some(file) => config.with_root_certificates(authorities(file)?),
        // Without certificates on this machine https fails when it is used; http works.
        None => match config.clone().with_native_roots() {
            Ok(config) => config,
            Err(_) => config.with_root_certificates(RootCertStore::empty()),
        },
    };
    Ok(config.with_no_client_auth())
}

fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let wrong = |error: &dyn Display| format!("{}: {error}", file.display());
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(file).map_err(|error| wrong(&error))? {
        let certificate = certificate.map_err(|error| wrong(&error))?;
        roots.add(certificate).map_err(|error| wrong(&error))?;
    }
    match roots.is_empty() {
        true => Err(wrong(&"no certificate in PEM")),
        false => Ok(roots),
    }
}
