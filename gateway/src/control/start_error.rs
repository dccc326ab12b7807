//! The errors of starting and reloading a gateway, and the resolution of endpoints, which can fail
//! with one of them.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};

use crate::net::tls::TlsError;
use crate::tenant::api_keys::KeysError;

/// A gateway can't start, or can't use a new configuration.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The address can't be used; most often the port is taken.
    #[error("gateway.listen: cannot listen on {address}: {source}")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The files of `gateway.tls` can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The file with the replicas' key can't be read, or has no key.
    #[error("pools: apiKeyFile of pool `{pool}`: {}: {source}", file.display())]
    Key {
        /// Its pool.
        pool: String,
        /// As configured.
        file: std::path::PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file for arrivals can't be written.
    #[error("gateway.recordArrivals.file: {}: {source}", file.display())]
    Arrivals {
        /// As configured.
        file: std::path::PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The API keys' file can't be read, or is not valid.
    #[error("gateway.keys.file: {0}")]
    Keys(KeysError),
    /// An endpoint is neither an address nor a name that resolves.
    #[error("pools: endpoint `{endpoint}` of pool `{pool}`: {reason}")]
    Endpoint {
        /// Its pool.
        pool: String,
        /// As configured.
        endpoint: String,
        /// The reason.
        reason: String,
    },
}

/// The first address of an endpoint, `HOST:PORT` or `http://HOST:PORT`.
pub(crate) fn resolve(endpoint: &str) -> Result<SocketAddr, String> {
    let bare = endpoint.strip_prefix("http://").unwrap_or(endpoint).trim_end_matches('/');
    let mut addresses = bare.to_socket_addrs().map_err(|error| error.to_string())?;
    addresses.next().ok_or_else(|| "no address".to_owned())
}
