//! A new configuration for a running gateway. Every step that can fail comes first; then the
//! configuration is applied without a pause. A pool's identity is its name: it keeps its queue, its
//! figures and its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::panic::resume_unwind;
use std::sync::Arc;

use arc_swap::ArcSwap;
use forebay_config::{Config, Discovery};
use forebay_discovery::Cluster;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::spawn_blocking;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::control::start_error::{StartError, resolve};
use crate::edge::layers::Edge;
use crate::net::drain::Drain;
use crate::net::tls::Tls;
use crate::pool::Pool;
use crate::pool::directory::{Directory, Source};
use crate::pool::discover::discover;
use crate::pool::upstream_key::UpstreamKey;
use crate::tenant::registry::{PreparedTenants, Tenants};

/// The configured pools, in the configuration's order.
#[derive(Clone, Default)]
pub(crate) struct Pools(Arc<ArcSwap<Vec<Arc<Pool>>>>);

impl Pools {
    pub(crate) fn all(&self) -> Arc<Vec<Arc<Pool>>> {
        self.0.load_full()
    }

    fn named(&self, name: &str) -> Option<Arc<Pool>> {
        self.all().iter().find(|pool| *pool.name == *name).cloned()
    }
}

/// The parts of the gateway that follow the configuration.
pub(crate) struct LiveConfig {
    pub(crate) pools: Pools,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) directory: Arc<Directory>,
    /// Notified when something changes that the scaler should know at once.
    pub(crate) changed: Arc<Notify>,
    drain: Drain,
    cluster: Option<Cluster>,
    /// The settings that the process began with. Some of them are in force until it ends.
    begun_with: forebay_config::Gateway,
    applied: Mutex<AppliedConfig>,
}

/// The configuration that is in force.
struct AppliedConfig {
    config: Config,
    endpoints: BTreeMap<String, BTreeSet<SocketAddr>>,
    /// By pool.
    discoveries: BTreeMap<String, RunningDiscovery>,
}

/// A pool's discovery.
struct RunningDiscovery {
    as_configured: Discovery,
    stop: CancellationToken,
    /// Cancelled at its end.
    ended: CancellationToken,
}

/// A configuration whose files are read and whose names are resolved.
pub(crate) struct PreparedConfig {
    config: Config,
    endpoints: BTreeMap<String, BTreeSet<SocketAddr>>,
    keys: BTreeMap<String, UpstreamKey>,
    tenants: PreparedTenants,
}

impl PreparedConfig {
    /// Takes every step that can fail.
    pub(crate) fn new(config: &Config) -> Result<Self, StartError> {
        let (mut endpoints, mut keys) = (BTreeMap::new(), BTreeMap::new());
        for pool in &config.pools {
            if let Some(file) = &pool.api_key_file {
                let key = UpstreamKey::default();
                let read = std::fs::read_to_string(file).and_then(|text| key.set(&text));
                read.map_err(|source| StartError::Key {
                    pool: pool.name.clone(),
                    file: file.clone(),
                    source,
                })?;
                keys.insert(pool.name.clone(), key);
            }
            let mut resolved = BTreeSet::new();
            for endpoint in &pool.endpoints {
                let address = resolve(endpoint).map_err(|reason| StartError::Endpoint {
                    pool: pool.name.clone(),
                    endpoint: endpoint.clone(),
                    reason,
                })?;
                resolved.insert(address);
            }
            endpoints.insert(pool.name.clone(), resolved);
        }
        let tenants = Tenants::prepare(&config.gateway).map_err(StartError::Keys)?;
        Ok(Self { config: config.clone(), endpoints, keys, tenants })
    }
}

impl LiveConfig {
    /// The first configuration.
    pub(crate) fn begin(
        prepared: PreparedConfig,
        drain: &Drain,
        cluster: Option<&Cluster>,
    ) -> Self {
        let PreparedConfig { config, endpoints, keys, tenants } = prepared;
        let live = Self {
            pools: Pools::default(),
            tenants: Tenants::new(tenants, Instant::now()),
            directory: Arc::default(),
            changed: Arc::default(),
            drain: drain.clone(),
            cluster: cluster.cloned(),
            begun_with: config.gateway.clone(),
            applied: Mutex::new(AppliedConfig {
                config: Config::default(),
                endpoints: BTreeMap::new(),
                discoveries: BTreeMap::new(),
            }),
        };
        live.arrange(config, endpoints, &keys);
        live
    }

    /// Applies a configuration. Returns the fields that need a restart and differ from what is in force.
    pub(crate) async fn reload(
        &self,
        edge: &Edge,
        config: &Config,
    ) -> Result<Vec<String>, StartError> {
        let (new, tls_before) = (config.clone(), self.applied.lock().config.gateway.tls.clone());
        // This reads files and resolves names, which may block.
        let prepare = spawn_blocking(move || {
            let tls = match &new.gateway.tls {
                same if *same == tls_before => None,
                None => Some(None),
                Some(tls) => Some(Some(Tls::load(tls)?)),
            };
            Ok::<_, StartError>((PreparedConfig::new(&new)?, tls))
        });
        let (prepared, tls) =
            prepare.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))?;
        let PreparedConfig { config, endpoints, keys, tenants } = prepared;
        let fixed = &self.begun_with;
        let unchangeable = [
            ("gateway.listen", fixed.listen != config.gateway.listen),
            ("gateway.threads", fixed.threads != config.gateway.threads),
            ("gateway.scaler", fixed.scaler != config.gateway.scaler),
            ("gateway.recordArrivals", fixed.record_arrivals != config.gateway.record_arrivals),
            (
                "gateway.limits.writeTimeout",
                fixed.limits.write_timeout != config.gateway.limits.write_timeout,
            ),
        ];
        // Tenants first: otherwise a new pool would be open to tenants that may not use it.
        self.tenants.apply(tenants, Instant::now());
        let gone = self.arrange(config.clone(), endpoints, &keys);
        edge.apply(&config, self.pools.all(), tls);
        // Last, since requests were routed to these pools until now.
        for pool in gone {
            pool.close();
        }
        let changed = unchangeable.into_iter().filter(|(_, changed)| *changed);
        Ok(changed.map(|(field, _)| field.to_owned()).collect())
    }

    /// Adds, changes and removes pools and their endpoints as configured. Returns the removed pools.
    fn arrange(
        &self,
        config: Config,
        endpoints: BTreeMap<String, BTreeSet<SocketAddr>>,
        keys: &BTreeMap<String, UpstreamKey>,
    ) -> Vec<Arc<Pool>> {
        let mut applied = self.applied.lock();
        let none = BTreeSet::new();
        let mut pools = Vec::new();
        for settings in &config.pools {
            let pool = match self.pools.named(&settings.name) {
                Some(pool) => {
                    if *pool.settings() != *settings {
                        pool.reconfigure(settings.clone());
                    }
                    pool
                }
                None => {
                    let pool = Pool::new(settings.clone(), Arc::clone(&self.changed));
                    self.directory.open(&pool);
                    pool
                }
            };
            pool.key.copy(keys.get(&settings.name));
            let before = applied.endpoints.get(&settings.name).unwrap_or(&none);
            let after = endpoints.get(&settings.name).unwrap_or(&none);
            // Added first: otherwise a pool could be without endpoints for a moment.
            for address in after.difference(before) {
                self.directory.add(&pool, Source::Fixed, *address);
            }
            for address in before.difference(after) {
                self.directory.remove(&pool, Source::Fixed, *address);
            }
            pools.push(pool);
        }
        let is_configured = |name: &str| config.pools.iter().any(|pool| pool.name == name);
        let all = self.pools.all();
        let gone: Vec<_> = all.iter().filter(|pool| !is_configured(&pool.name)).cloned().collect();
        for pool in &gone {
            if let Some(running) = applied.discoveries.remove(&*pool.name) {
                running.stop.cancel();
            }
            self.directory.close(pool);
        }
        for pool in &pools {
            self.discover(pool, &mut applied.discoveries);
        }
        self.pools.0.store(Arc::new(pools));
        applied.endpoints = endpoints;
        applied.config = config;
        self.changed.notify_one();
        gone
    }

    /// Starts and stops a pool's discovery as configured.
    fn discover(&self, pool: &Arc<Pool>, running: &mut BTreeMap<String, RunningDiscovery>) {
        let settings = pool.settings();
        let name = &*pool.name;
        if running.get(name).map(|discovery| &discovery.as_configured)
            == settings.discovery.as_ref()
        {
            return;
        }
        let before = running.remove(name).map(|running| {
            running.stop.cancel();
            running.ended
        });
        let Some(discovery) = &settings.discovery else { return };
        let changes = forebay_discovery::discover(discovery, self.cluster.as_ref());
        let (stop, ended) = (CancellationToken::new(), CancellationToken::new());
        let directory = Arc::clone(&self.directory);
        let finding = discover(Arc::clone(pool), changes, directory, stop.clone());
        let ends = ended.clone().drop_guard();
        self.drain.spawn(async move {
            let _ends = ends;
            // Otherwise the old discovery could remove endpoints that the new one finds.
            if let Some(before) = before {
                before.cancelled().await;
            }
            finding.await;
        });
        let as_configured = discovery.clone();
        running.insert(name.to_owned(), RunningDiscovery { as_configured, stop, ended });
    }
}
