//! Addresses of admin ports as URLs.

use anyhow::Context;
use forebay_config::Config;

use crate::admin;

/// The admin URL at which other scalers reach this one.
pub(crate) fn advertised(config: &Config, admin: std::net::SocketAddr) -> anyhow::Result<String> {
    let Some(election) = &config.scaler.leader_election else { return Ok(admin::own_url(admin)) };
    if let Some(address) = &election.advertise {
        return url(address);
    }
    match std::env::var("POD_IP") {
        Ok(ip) => {
            let ip: std::net::IpAddr =
                ip.parse().with_context(|| format!("POD_IP: `{ip}` is not an IP address"))?;
            Ok(format!("http://{}", std::net::SocketAddr::new(ip, admin.port())))
        }
        Err(_) if admin.ip().is_unspecified() => anyhow::bail!(
            "scaler.leaderElection.advertise: other scalers must reach this one; give an address, \
             or set POD_IP from the downward API"
        ),
        Err(_) => Ok(admin::own_url(admin)),
    }
}

/// An admin address as configured, with or without `http://`, as a base URL.
pub(crate) fn url(address: &str) -> anyhow::Result<String> {
    Ok(format!("http://{}", forebay_config::authority(address)?))
}
