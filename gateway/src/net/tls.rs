//! TLS for clients: one `rustls` configuration, replaced when its files change.
//!
//! The files are read every few seconds and compared by content, so any way to replace them works:
//! writing, moving, or the symbolic links of a Kubernetes volume.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use forebay_base::file_watch::FileWatch;
use forebay_base::trouble::Trouble;
use forebay_config::TlsVersion;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// How often the files are read.
const POLL: Duration = Duration::from_secs(5);

/// The TLS configuration for new connections, and the files behind it.
pub(crate) struct Tls {
    settings: forebay_config::Tls,
    current: ArcSwap<ServerConfig>,
    known: parking_lot::Mutex<KnownFiles>,
}

/// The contents that were read last, by which a change is noticed.
struct KnownFiles {
    used: Files,
    /// Contents that could not be used.
    refused: Option<Files>,
}

#[derive(Clone, PartialEq, Eq)]
struct Files {
    cert: Vec<u8>,
    key: Vec<u8>,
    client_ca: Option<Vec<u8>>,
}

/// A file that can't be used: its field, and the reason.
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
        let known = parking_lot::Mutex::new(KnownFiles { used: files, refused: None });
        Ok(Arc::new(Self { settings: settings.clone(), current, known }))
    }

    pub(crate) fn current(&self) -> Arc<ServerConfig> {
        self.current.load_full()
    }

    fn read(self: &Arc<Self>) -> Result<Reading, TlsError> {
        Files::read(&self.settings).map(|files| Reading { tls: Arc::clone(self), files })
    }

    /// Applies files that have changed, if they are valid.
    fn apply(&self, files: Files) -> Result<FileChange, TlsError> {
        let mut known = self.known.lock();
        if files == known.used {
            return Ok(FileChange::None);
        }
        match files.configuration(self.settings.min_version) {
            Ok(configuration) => {
                self.current.store(Arc::new(configuration));
                *known = KnownFiles { used: files, refused: None };
                Ok(FileChange::Applied)
            }
            Err(error) if known.refused.as_ref() == Some(&files) => Err(error),
            Err(_) => {
                known.refused = Some(files);
                Ok(FileChange::Unconfirmed)
            }
        }
    }
}

/// Follows the files of the `current` TLS, while it is polled. Files that can't be used are
/// reported, and the earlier ones stay in use.
pub(crate) async fn follow(current: impl Fn() -> Option<Arc<Tls>> + Send + Sync + 'static) {
    let mut readings =
        FileWatch::new(POLL, None, move || current().map(|tls| tls.read()).transpose());
    let mut trouble = Trouble::default();
    loop {
        let change = match readings.next().await {
            Ok(None) => continue,
            Ok(Some(Reading { tls, files })) => tls.apply(files),
            Err(error) => Err(error),
        };
        match change {
            Ok(FileChange::Unconfirmed) => readings.read_again(),
            Ok(FileChange::None) => {
                trouble.ends();
            }
            Ok(FileChange::Applied) => {
                trouble.ends();
                forebay_base::reloaded("tls", true);
                tracing::info!("new TLS files are in use");
            }
            Err(error) => {
                forebay_base::reloaded("tls", false);
                let error = error.to_string();
                if trouble.begins(error.as_str()) {
                    tracing::warn!("{error}; the earlier files stay in use");
                }
            }
        }
    }
}

/// Files that were read for one TLS configuration.
#[derive(Clone)]
struct Reading {
    tls: Arc<Tls>,
    files: Files,
}

impl PartialEq for Reading {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.tls, &other.tls) && self.files == other.files
    }
}

/// The change that reading the files has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileChange {
    /// The files are those in use.
    None,
    /// The files are in use from now on.
    Applied,
    /// The files can't be used. Certificate and key may be replaced one after the other, so they
    /// are read once more before anything is reported.
    Unconfirmed,
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
