//! Puts the parts together, and takes them down in order.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use forebay_config::{Config, Discovery, Target};
use forebay_discovery::Cluster;
use forebay_gateway::Gateway;
use forebay_scaler::{Gateways, Scaler};
use forebay_signals::Token;
use forebay_system::files;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;

use crate::admin::{self, Access, Port, Scrape};
use crate::logging::Log;
use crate::reload::ConfigFile;

/// What runs in this process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    Gateway,
    Scaler,
    Both,
}

/// Runs until SIGTERM or Ctrl-C, by what `file` holds where there is one.
pub(crate) async fn serve(
    config: Config,
    parts: Parts,
    file: Option<ConfigFile>,
    log: &Log,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let mut config = Arc::new(config);
    let token = config.admin.token_file.as_ref().map(|file| {
        let token = Token::read(file);
        token.with_context(|| format!("admin.tokenFile: cannot read {}", file.display()))
    });
    let token = token.transpose()?;
    let cluster = if needs_cluster(&config) { Some(Cluster::infer().await?) } else { None };
    let metrics = admin::install_metrics()?;
    log.show();
    let listener = admin::bind(config.admin.listen).with_context(|| {
        format!(
            "admin.listen: cannot listen on {}; is Forebay running already?",
            config.admin.listen
        )
    })?;
    let admin_address = listener.local_addr()?;
    let own = admin::own_url(admin_address);

    let mut routes = Router::new();
    let gateway = if parts == Parts::Scaler {
        None
    } else {
        let configured = config.gateway.scaler.as_deref().map(url).transpose()?;
        let scaler = (parts == Parts::Both).then(|| own.clone()).or(configured);
        let gateway = Gateway::start(&config, scaler, token.clone(), cluster.as_ref())?;
        routes = routes.merge(gateway.routes());
        Some(gateway)
    };
    let scaler = if parts == Parts::Gateway {
        None
    } else {
        let mut fixed: Vec<_> =
            config.scaler.gateways.iter().map(|it| url(it)).collect::<anyhow::Result<_>>()?;
        if parts == Parts::Both {
            fixed.insert(0, own.clone());
        }
        let discovery = config.scaler.gateway_discovery.as_ref();
        let found = discovery.map(|it| forebay_discovery::discover(it, cluster.as_ref()));
        let gateways = Gateways { fixed, found, token: token.clone() };
        let advertised = advertised(&config, admin_address)?;
        let scaler = Scaler::start(Arc::clone(&config), gateways, &advertised, cluster.as_ref())?;
        routes = routes.merge(scaler.routes());
        Some(scaler)
    };
    let endpoints = gateway.as_ref().map(Gateway::endpoint_metrics);
    let scrape =
        Scrape::new(metrics, move || endpoints.as_ref().map_or_else(String::new, |it| it()));
    let loopback = admin_address.ip().to_canonical().is_loopback();
    let heartbeats = gateway.as_ref().map(Gateway::heartbeats).unwrap_or_default();
    let _beating = AbortOnDropHandle::new(tokio::spawn(heartbeats.beat("main")));
    let router = admin::router(admin::Parts {
        routes,
        scrape: scrape.clone(),
        access: Access { token, loopback },
        drain: gateway.as_ref().map(Gateway::draining),
        scaler: scaler.as_ref().filter(|_| gateway.is_none()).map(Scaler::readiness),
        heartbeats: heartbeats.clone(),
    });
    // Served until the end: what is stopping says so.
    let _port = Port::serve(listener, router, scrape, heartbeats).context("the admin port")?;
    announce(&config, gateway.as_ref(), &own);

    follow(&mut config, file, &mut signals, gateway.as_ref(), scaler.as_ref()).await;
    tracing::info!(
        "shutting down: finishing what is in flight and held (once more to leave at once)"
    );
    let orderly = async {
        let mut code = ExitCode::SUCCESS;
        if let Some(gateway) = gateway
            && let Err(cut) = gateway.shutdown(config.gateway.shutdown_timeout).await
        {
            tracing::warn!(
                "{cut} connections were cut off after {:?}",
                config.gateway.shutdown_timeout
            );
            code = ExitCode::FAILURE;
        }
        if let Some(scaler) = scaler {
            scaler.shutdown().await;
        }
        code
    };
    let code = tokio::select! {
        code = orderly => code,
        () = signals.next() => {
            tracing::warn!("left at once");
            log.finish();
            // Supervisors end the replicas: their pipe ends with this process.
            std::process::exit(1);
        }
    };
    tracing::info!("stopped");
    Ok(code)
}

/// Until a signal to end: takes over what `file` holds, whenever it changes.
async fn follow(
    config: &mut Arc<Config>,
    file: Option<ConfigFile>,
    signals: &mut Signals,
    gateway: Option<&Gateway>,
    scaler: Option<&Scaler>,
) {
    let Some(mut file) = file else { return signals.next().await };
    loop {
        let new = tokio::select! {
            () = signals.next() => return,
            new = file.next() => Arc::new(new),
        };
        let mut later = Vec::new();
        if let Some(gateway) = gateway {
            match gateway.reload(&new).await {
                Ok(fields) => later = fields,
                Err(error) => {
                    tracing::error!("{error}; the configuration before stays in force");
                    continue;
                }
            }
        }
        if let Some(scaler) = scaler {
            scaler.reload(Arc::clone(&new));
            if lasting(config) != lasting(&new) {
                later.push("scaler (all but staleAfter)".to_owned());
            }
        }
        if config.admin != new.admin {
            later.push("admin".to_owned());
        }
        if config.logging != new.logging {
            later.push("logging".to_owned());
        }
        tracing::info!("the new configuration is in force");
        if !later.is_empty() {
            tracing::warn!("takes effect at the next start only: {}", later.join(", "));
        }
        *config = new;
    }
}

/// Of `scaler`: what does not follow a change.
fn lasting(config: &Config) -> forebay_config::Scaler {
    forebay_config::Scaler { stale_after: Duration::ZERO, ..config.scaler.clone() }
}

/// Where other scalers reach this one.
fn advertised(config: &Config, admin: std::net::SocketAddr) -> anyhow::Result<String> {
    let Some(election) = &config.scaler.leader_election else { return Ok(admin::own_url(admin)) };
    if let Some(address) = &election.advertise {
        return url(address);
    }
    match std::env::var("POD_IP") {
        Ok(ip) => {
            let ip: std::net::IpAddr =
                ip.parse().with_context(|| format!("POD_IP: `{ip}` is no address"))?;
            Ok(format!("http://{}", std::net::SocketAddr::new(ip, admin.port())))
        }
        Err(_) if admin.ip().is_unspecified() => anyhow::bail!(
            "scaler.leaderElection.advertise: other scalers must reach this one; give an address, \
             or set POD_IP from the downward API"
        ),
        Err(_) => Ok(admin::own_url(admin)),
    }
}

/// Whether anything is found or scaled in Kubernetes.
fn needs_cluster(config: &Config) -> bool {
    let found = |it: &Option<Discovery>| it.as_ref().is_some_and(forebay_discovery::needs_cluster);
    config.scaler.leader_election.is_some()
        || found(&config.scaler.gateway_discovery)
        || config.pools.iter().any(|pool| {
            let target = match &pool.target {
                Some(Target::Kubernetes(_)) => true,
                Some(Target::Keda(keda)) => keda.boost,
                Some(Target::Processes(_)) | None => false,
            };
            target || found(&pool.discovery)
        })
}

/// An admin address as configured, with or without `http://`, as a base URL.
fn url(address: &str) -> anyhow::Result<String> {
    Ok(format!("http://{}", forebay_config::authority(address)?))
}

fn announce(config: &Config, gateway: Option<&Gateway>, admin: &str) {
    if let Some(gateway) = gateway {
        let names: Vec<_> = config.pools.iter().flat_map(|pool| pool.models.clone()).collect();
        let names = if names.is_empty() { "any".to_owned() } else { names.join(", ") };
        let scheme = if config.gateway.tls.is_some() { "https" } else { "http" };
        tracing::info!(
            "listening on {scheme}://{} (models: {names}); metrics on {admin}/metrics",
            gateway.address()
        );
        gateway.log_bounds();
    } else {
        tracing::info!("scaler running; decisions on {admin}/decisions");
    }
    if let Some(original) = files::for_children() {
        let now = files::limit();
        tracing::info!(target: "forebay::bounds", "limit on open files: raised from {original} to {now}");
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
        Ok(Self { terminate, interrupt })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
