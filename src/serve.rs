//! Starts the parts of this process, and stops them in order.

use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use forebay_base::open_files;
use forebay_config::{Config, Discovery, Target};
use forebay_discovery::Cluster;
use forebay_gateway::{Busy, Gateway, ProcessParts};
use forebay_scaler::{Gateways, Scaler};
use forebay_signals::Token;
use forebay_telemetry::Exporter;
use sd_notify::NotifyState;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::addresses::{advertised, url};
use crate::admin::{self, Access, Port, Scrape};
use crate::console;
use crate::logging::Log;
use crate::reload::{CONFIGURATION, ConfigFile};
use crate::stop_signals::Signals;
use crate::telemetry;
use crate::upgrade::new::{Inherited, Predecessor};
use crate::upgrade::old::{Candidate, Estate, Successor};
use crate::upgrade::{Order, Orders, Program, Role};

/// The parts that run in this process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Parts {
    Gateway,
    Scaler,
    Both,
}

impl Parts {
    /// The name of this process among the services of OpenTelemetry.
    fn service(self) -> &'static str {
        match self {
            Self::Gateway => "forebay-gateway",
            Self::Scaler => "forebay-scaler",
            Self::Both => "forebay",
        }
    }
}

/// Runs until SIGTERM or Ctrl-C, or until `program` has taken over. Follows `file`, if there is one.
/// `inherited` is the channel to the process that this one takes over from.
pub(crate) async fn serve(
    config: Config,
    parts: Parts,
    mut file: Option<ConfigFile>,
    log: &Log,
    program: &Program,
    inherited: Option<&Inherited>,
) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let (mut orders, upgrade) = Orders::new()?;
    let predecessor = match inherited {
        Some(inherited) => Some(inherited.meet().await?),
        None => None,
    };
    let mut config = Arc::new(config);
    let begun_with = Arc::clone(&config);
    let running = Running::start(&config, parts, log, upgrade, predecessor).await?;
    running.announce(&config);
    // For systemd, if it started us, this process is the service from now on.
    let serving = [NotifyState::MainPid(std::process::id()), NotifyState::Ready];
    if let Err(error) = sd_notify::notify(&serving) {
        tracing::warn!("NOTIFY_SOCKET: cannot report this process to the service manager: {error}");
    }
    loop {
        let following =
            follow(&mut config, &begun_with, file.as_mut(), &mut signals, &mut orders, &running);
        let end = following.await;
        let End::Upgrade(order) = end else { break };
        match running.replace(program, order.within, &mut signals).await {
            UpgradeOutcome::Succeeded(successor) => {
                // Before the answer: an operator who sees it may send more requests.
                running.admin.port.retire();
                let (new, old) = (successor.process, std::process::id());
                order
                    .done(Ok(format!("process {new} serves, process {old} finishes its requests")));
                return Ok(running.retire(successor, &config, signals, log).await);
            }
            UpgradeOutcome::Failed(error) => order.done(Err(format!("{error:#}"))),
            UpgradeOutcome::Stopped => {
                order.done(Err("this process is stopping".to_owned()));
                break;
            }
        }
    }
    Ok(running.shut_down(&config, signals, log).await)
}

/// The running parts.
struct Running {
    gateway: Option<Gateway>,
    /// The clients' address, as configured at the start.
    clients: SocketAddr,
    scaler: Option<Scaler>,
    admin: AdminPort,
    predecessor: Retirement,
    /// Exports traces and metrics, if that is configured.
    exporter: Option<Exporter>,
}

struct AdminPort {
    /// As configured at the start.
    configured: SocketAddr,
    /// A copy, for a process that takes over.
    socket: TcpListener,
    /// Served until the end, so that a process that stops can report it.
    port: Port,
    _beating: AbortOnDropHandle<()>,
}

/// The process before this one, while it finishes its requests.
#[derive(Default)]
struct Retirement {
    stop: CancellationToken,
    gone: CancellationToken,
    /// Follows it to its end.
    task: Option<AbortOnDropHandle<()>>,
}

/// The outcome of an upgrade.
enum UpgradeOutcome {
    Succeeded(Successor),
    Failed(anyhow::Error),
    /// This process has to stop meanwhile.
    Stopped,
}

impl Running {
    async fn start(
        config: &Arc<Config>,
        parts: Parts,
        log: &Log,
        upgrade: Router,
        mut predecessor: Option<Predecessor>,
    ) -> anyhow::Result<Self> {
        let token = config.admin.token_file.as_ref().map(|file| {
            let token = Token::read(file);
            token.with_context(|| format!("admin.tokenFile: cannot read {}", file.display()))
        });
        let token = token.transpose()?;
        let cluster = if needs_cluster(config) { Some(Cluster::infer().await?) } else { None };
        let metrics = admin::install_metrics()?;
        log.show();
        let exporter = telemetry::start(config, parts.service(), &metrics)?;
        let exported = exporter.as_ref().map(Exporter::telemetry);
        let configured = config.admin.listen;
        let inherited = predecessor
            .as_mut()
            .and_then(|predecessor| predecessor.socket(Role::Admin, configured));
        let socket = inherited.map_or_else(|| admin::bind(configured), Ok);
        let socket = socket.with_context(|| {
            format!("admin.listen: cannot listen on {configured}; is Forebay running already?")
        })?;
        let address = socket.local_addr()?;
        let own = admin::own_url(address);

        let mut routes = upgrade;
        let clients = config.gateway.listen;
        let gateway = if parts == Parts::Scaler {
            None
        } else {
            let configured = config.gateway.scaler.as_deref().map(url).transpose()?;
            let scaler = (parts == Parts::Both).then(|| own.clone()).or(configured);
            let sockets =
                predecessor.as_mut().map(|predecessor| predecessor.sockets(Role::Clients, clients));
            let sockets = sockets.unwrap_or_default();
            let process = ProcessParts { sockets, telemetry: exported.clone() };
            let gateway =
                Gateway::prepare(config, scaler, token.clone(), cluster.as_ref(), process)?;
            metrics.also(gateway.endpoint_figures());
            routes = routes.merge(gateway.routes());
            Some(gateway)
        };
        let scaler = if parts == Parts::Gateway {
            None
        } else {
            let own = (parts == Parts::Both).then_some(own);
            let gateways = gateways(config, own, token.clone(), cluster.as_ref())?;
            let advertised = advertised(config, address)?;
            let way = console::relay::Way::of(config, gateway.as_ref().map(Gateway::address))?;
            let (config, cluster) = (Arc::clone(config), cluster.as_ref());
            let scaler = match &mut predecessor {
                None => Scaler::start(config, gateways, &advertised, cluster)?,
                Some(predecessor) => {
                    let socket = predecessor.socket(Role::Keda, config.scaler.keda.listen);
                    Scaler::prepare(config, gateways, &advertised, cluster, socket)?
                }
            };
            if let Some(exported) = &exported {
                scaler.export_to(exported);
            }
            routes = routes.merge(scaler.routes());
            routes = routes.merge(console::rehearsal::routes(scaler.rehearsable()));
            routes = routes.merge(console::relay::routes(way));
            Some(scaler)
        };
        let endpoints = gateway.as_ref().map(Gateway::endpoint_metrics);
        let scrape = Scrape::new(metrics, move |text| {
            if let Some(render) = &endpoints {
                render(text);
            }
        });
        let heartbeats = gateway.as_ref().map(Gateway::heartbeats).unwrap_or_default();
        let beating = AbortOnDropHandle::new(tokio::spawn(heartbeats.beat("main")));
        let router = admin::router(admin::AdminParts {
            routes,
            scrape,
            access: Access { token, loopback: address.ip().to_canonical().is_loopback() },
            drain: gateway.as_ref().map(Gateway::draining),
            scaler: scaler.as_ref().filter(|_| gateway.is_none()).map(Scaler::readiness),
            console: scaler.as_ref().map(|scaler| Arc::new(scaler.other_leader()) as _),
            heartbeats: heartbeats.clone(),
        });
        let port = Port::prepare(socket.try_clone()?, router, heartbeats);
        let port = port.context("the admin port")?;

        let leaving = match predecessor {
            Some(predecessor) => Retirement::take_over(predecessor, &gateway, &scaler).await?,
            None => Retirement::nothing(),
        };
        if let Some(gateway) = &gateway {
            gateway.accept();
        }
        port.accept();
        let admin = AdminPort { configured, socket, port, _beating: beating };
        Ok(Self { gateway, clients, scaler, admin, predecessor: leaving, exporter })
    }

    fn announce(&self, config: &Config) {
        let admin = self.admin.socket.local_addr().map(admin::own_url).unwrap_or_default();
        if let Some(gateway) = &self.gateway {
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
        if self.scaler.is_some() {
            tracing::info!("console on {admin}/");
        }
        if let Some(original) = open_files::for_children() {
            let now = open_files::limit();
            tracing::info!(target: "forebay::bounds", "limit on open files: raised from {original} to {now}");
        }
    }

    /// Lets another process take over.
    async fn replace(
        &self,
        program: &Program,
        within: Duration,
        signals: &mut Signals,
    ) -> UpgradeOutcome {
        let estate = Estate {
            gateway: self.gateway.as_ref(),
            scaler: self.scaler.as_ref(),
            clients: self.clients,
            admin: (self.admin.configured, &self.admin.socket),
        };
        let mut candidate = match Candidate::start(program) {
            Ok(candidate) => candidate,
            Err(error) => return UpgradeOutcome::Failed(error),
        };
        let prepared = tokio::select! {
            prepared = candidate.prepare(&estate, within) => prepared.map_err(UpgradeOutcome::Failed),
            () = signals.next() => Err(UpgradeOutcome::Stopped),
        };
        if let Err(outcome) = prepared {
            candidate.end().await;
            return outcome;
        }
        match candidate.install(&estate).await {
            Ok(successor) => UpgradeOutcome::Succeeded(successor),
            Err(error) => UpgradeOutcome::Failed(error),
        }
    }

    /// Finishes the requests of this process while another one serves.
    async fn retire(
        self,
        mut successor: Successor,
        config: &Config,
        mut signals: Signals,
        log: &Log,
    ) -> ExitCode {
        let Self { gateway, scaler, admin, predecessor, exporter, .. } = self;
        let AdminPort { socket, port, _beating, .. } = admin;
        drop(socket);
        let finish = async {
            let connections = async {
                let Some(gateway) = &gateway else { return };
                gateway.retire().await;
                gateway.deserted().await;
            };
            let place = async {
                let Some(scaler) = scaler else { return };
                scaler.retire().await;
            };
            tokio::join!(connections, place, predecessor.gone.cancelled(), port.ended());
        };
        let busy = || gateway.as_ref().map(Gateway::busy).unwrap_or_default();
        let finished = tokio::select! {
            () = finish => true,
            () = successor.report(busy) => false,
            () = signals.next() => false,
        };
        if !finished {
            predecessor.stop.cancel();
            tracing::info!("shutting down: finishing requests in flight and held");
        }
        let orderly = async {
            let code = shut_down(gateway, config).await;
            telemetry::finish(exporter).await;
            code
        };
        let code = signals.or_at_once(orderly, log).await;
        tracing::info!("process {} has finished its requests", std::process::id());
        code
    }

    /// Finishes the requests of this process, then stops the replicas.
    async fn shut_down(self, config: &Config, mut signals: Signals, log: &Log) -> ExitCode {
        tracing::info!(
            "shutting down: finishing requests in flight and held (signal again to stop at once)"
        );
        let Self { gateway, scaler, admin: _admin, predecessor, exporter, .. } = self;
        let orderly = async {
            predecessor.stop.cancel();
            // Its requests run on the same replicas.
            let other = timeout(config.gateway.shutdown_timeout, predecessor.gone.cancelled());
            let (code, _) = tokio::join!(shut_down(gateway, config), other);
            if let Some(scaler) = scaler {
                scaler.shutdown().await;
            }
            telemetry::finish(exporter).await;
            code
        };
        let code = signals.or_at_once(orderly, log).await;
        tracing::info!("stopped");
        code
    }
}

impl Retirement {
    /// For a process without a predecessor.
    fn nothing() -> Self {
        let leaving = Self::default();
        leaving.gone.cancel();
        leaving
    }

    /// Takes over from the predecessor.
    async fn take_over(
        mut predecessor: Predecessor,
        gateway: &Option<Gateway>,
        scaler: &Option<Scaler>,
    ) -> anyhow::Result<Self> {
        let mut leaving = Self::default();
        let (handover, busy) = predecessor.succeed().await?;
        let report: Box<dyn Fn(Busy) + Send> = match gateway {
            Some(gateway) => Box::new(gateway.predecessor()),
            None => Box::new(drop),
        };
        report(busy);
        if let Some(scaler) = scaler {
            scaler.take_over(handover, leaving.gone.clone()).await;
        }
        let follow = predecessor.follow(report, leaving.stop.clone(), leaving.gone.clone());
        leaving.task = Some(AbortOnDropHandle::new(tokio::spawn(follow)));
        Ok(leaving)
    }
}

async fn shut_down(gateway: Option<Gateway>, config: &Config) -> ExitCode {
    let Some(gateway) = gateway else { return ExitCode::SUCCESS };
    let within = config.gateway.shutdown_timeout;
    let Err(cut) = gateway.shutdown(within).await else { return ExitCode::SUCCESS };
    tracing::warn!("{cut} connections were cut off after {within:?}");
    ExitCode::FAILURE
}

/// The gateways that a scaler reads; `own` is this process's.
fn gateways(
    config: &Config,
    own: Option<String>,
    token: Option<Token>,
    cluster: Option<&Cluster>,
) -> anyhow::Result<Gateways> {
    let mut fixed: Vec<_> = own.into_iter().collect();
    for gateway in &config.scaler.gateways {
        fixed.push(url(gateway)?);
    }
    let discovery = config.scaler.gateway_discovery.as_ref();
    let found = discovery.map(|discovery| forebay_discovery::discover(discovery, cluster));
    Ok(Gateways { fixed, found, token })
}

/// The event that ends normal service.
enum End {
    Signal,
    Upgrade(Order),
}

/// Applies each change of `file` until a signal or an upgrade ends it. What the process `begun_with` and
/// can't change stays in force.
async fn follow(
    config: &mut Arc<Config>,
    begun_with: &Config,
    mut file: Option<&mut ConfigFile>,
    signals: &mut Signals,
    orders: &mut Orders,
    running: &Running,
) -> End {
    let (gateway, scaler) = (running.gateway.as_ref(), running.scaler.as_ref());
    loop {
        let changed = async {
            match &mut file {
                Some(file) => file.next().await,
                None => std::future::pending().await,
            }
        };
        let new = tokio::select! {
            () = signals.next() => return End::Signal,
            order = orders.next() => return End::Upgrade(order),
            new = changed => Arc::new(new),
        };
        let mut later = Vec::new();
        if let Some(gateway) = gateway {
            match gateway.reload(&new).await {
                Ok(fields) => later = fields,
                Err(error) => {
                    tracing::error!("{error}; the previous configuration stays in force");
                    forebay_base::reloaded(CONFIGURATION, false);
                    continue;
                }
            }
        }
        if let Some(scaler) = scaler {
            scaler.reload(Arc::clone(&new));
            if lasting(begun_with) != lasting(&new) {
                later.push("scaler (all but staleAfter)".to_owned());
            }
        }
        if begun_with.admin != new.admin {
            later.push("admin".to_owned());
        }
        if begun_with.open_telemetry != new.open_telemetry {
            later.push("openTelemetry".to_owned());
        }
        if begun_with.logging != new.logging {
            later.push("logging".to_owned());
        }
        tracing::info!("the new configuration is in force");
        forebay_base::reloaded(CONFIGURATION, true);
        if !later.is_empty() {
            tracing::warn!("takes effect at the next start only: {}", later.join(", "));
        }
        *config = new;
    }
}

/// The settings of `scaler` that a reload does not change.
fn lasting(config: &Config) -> forebay_config::Scaler {
    forebay_config::Scaler { stale_after: Duration::ZERO, ..config.scaler.clone() }
}

/// Whether discovery or a target needs Kubernetes.
fn needs_cluster(config: &Config) -> bool {
    let found = |discovery: &Option<Discovery>| {
        discovery.as_ref().is_some_and(forebay_discovery::needs_cluster)
    };
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
