//! TLS of a client: whom it trusts, and how it shows who it is.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use rustls::{ClientConfig, RootCertStore};

use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// The files of a certificate, with those that it was issued by, and of its key; both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The certificate's.
    pub certificate: PathBuf,
    /// The key's.
    pub key: PathBuf,
}

/// TLS that verifies servers against the certificates in `ca_file`, by default against the system's. It
/// presents the certificate `own` to a server that asks for one.
///
/// # Errors
/// Why a file can't be used.
pub fn client_config(
    ca_file: Option<&Path>,
    own: Option<&ClientCertificate>,
) -> Result<ClientConfig, String> {
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
    let Some(ClientCertificate { certificate, key }) = own else {
        return Ok(config.with_no_client_auth());
    };
    let chain = certificates(certificate)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| wrong(key, &error))?;
    config.with_client_auth_cert(chain, private).map_err(|error| wrong(key, &error))
}

fn wrong(file: &Path, error: &dyn Display) -> String {
    format!("{}: {error}", file.display())
}

/// The certificates in a file, at least one.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_file_iter(file).and_then(Iterator::collect);
    let all: Vec<_> = all.map_err(|error| wrong(file, &error))?;
    match all.is_empty() {
        true => Err(wrong(file, &"no certificate in PEM")),
        false => Ok(all),
    }
}

fn authorities(file: &Path) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file)? {
        roots.add(certificate).map_err(|error| wrong(file, &error))?;
    }
    Ok(roots)
}
