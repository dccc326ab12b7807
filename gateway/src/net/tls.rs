//! TLS for clients: one `rustls` configuration, made anew when its files change.
//!
//! The files are read again every few seconds and compared by content, so that it does not matter
//! how they were replaced: written over, moved in, or by the symbolic links of a Kubernetes volume.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_config::TlsVersion;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::figures;

/// How often the files are read.
pub(crate) const POLL: Duration = Duration::from_secs(5);

/// What new connections are greeted with.
pub(crate) struct Tls {
    settings: forebay_config::Tls,
    current: ArcSwap<ServerConfig>,
    seen: parking_lot::Mutex<Seen>,
}

/// Contents by which a change is known.
struct Seen {
    used: Files,
    /// Refused, and whether that was told.
    refused: Option<(Files, bool)>,
}

#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// Which field's file can't be used, and why.
#[derive(Debug, thiserror::Error)]
#[error("gateway.tls.{field}: {reason}")]
pub struct TlsError {
    field: &'static str,
    reason: String,
}

impl Tls {
    /// Reads the files.
    pub(crate) fn load(settings: &forebay_config::Tls) -> Result<Arc<Self>, TlsError> {
        let files = Files::read(settings)?;
        let current = ArcSwap::from_pointee(files.configuration(settings.min_version)?);
        let seen = parking_lot::Mutex::new(Seen { used: files, refused: None });
        Ok(Arc::new(Self { settings: settings.clone(), current, seen }))
    }

    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    /// Takes changed files, if they are right. Others are told once, and only when they were there
    /// twice: certificate and key may be replaced one after the other.
    pub(crate) fn poll(&self) {
        let mut seen = self.seen.lock();
        let outcome = Files::read(&self.settings).and_then(|files| {
            if files == seen.used {
                return Ok(None);
            }
            match files.configuration(self.settings.min_version) {
                Ok(configuration) => Ok(Some((files, configuration))),
                Err(error) => {
                    match &mut seen.refused {
                        Some((refused, true)) if *refused == files => return Ok(None),
                        Some((refused, told @ false)) if *refused == files => *told = true,
                        refused => {
                            *refused = Some((files, false));
                            return Ok(None);
                        }
                    }
                    Err(error)
                }
            }
        });
        match outcome {
            Ok(None) => {}
            Ok(Some((files, configuration))) => {
                self.current.store(Arc::new(configuration));
                *seen = Seen { used: files, refused: None };
                figures::reload("tls", true);
                tracing::info!("new TLS files are in use");
            }
            Err(error) => {
                figures::reload("tls", false);
                tracing::warn!("{error}; the files read before stay in use");
            }
        }
    }
}

impl Files {
    fn read(settings: &forebay_config::Tls) -> Result<Self, TlsError> {
        let read = |field, path: &Path| {
            let unreadable = |error| TlsError {
                field,
                reason: format!("cannot read {}: {error}", path.display()),
            };
            std::fs::read(path).map_err(unreadable)
        };
        let client_ca = settings.client_ca_file.as_deref();
        Ok(Self {
            cert: read("certFile", &settings.cert_file)?,
            key: read("keyFile", &settings.key_file)?,
            client_ca: client_ca.map(|path| read("clientCaFile", path)).transpose()?,
        })
    }

    fn configuration(&self, lowest: TlsVersion) -> Result<ServerConfig, TlsError> {
        let error = |field| move |reason: String| TlsError { field, reason };
        let chain = certificates(&self.cert).map_err(error("certFile"))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|broken| TlsError {
            field: "keyFile",
            reason: format!("holds no private key in PEM (PKCS#8, PKCS#1 or SEC1): {broken}"),
        })?;
        let versions: &[_] = match lowest {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(|broken| error("minVersion")(broken.to_string()))?;
        let builder = match &self.client_ca {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(pem).map_err(error("clientCaFile"))? {
                    roots
                        .add(authority)
                        .map_err(|broken| error("clientCaFile")(broken.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .build()
                        .map_err(|broken| error("clientCaFile")(broken.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut configuration =
            builder.with_single_cert(chain, key).map_err(|broken| match broken {
                rustls::Error::InconsistentKeys(_) => {
                    error("keyFile")("is not the key of the certificate in certFile".to_owned())
                }
                broken => error("certFile")(broken.to_string()),
            })?;
        configuration.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(configuration)
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|broken| format!("is not valid PEM: {broken}"))?;
    if chain.is_empty() {
        return Err("holds no certificate in PEM".to_owned());
    }
    Ok(chain)
}

#[cfg(test)]
mod tests;
