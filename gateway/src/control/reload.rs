//! A new configuration for a running gateway: all that can fail is done first, then it is applied
//! without a pause. A pool is who it was by its name, and keeps its queue, its books and its
//! connections.

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
use crate::tenant::registry::Tenants;

/// The pools as configured now, in the configuration's order.
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

/// What runs by the configuration.
pub(crate) struct Live {
    pub(crate) pools: Pools,
    pub(crate) tenants: Arc<Tenants>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) news: Arc<Notify>,
    drain: Drain,
    cluster: Option<Cluster>,
    now: Mutex<Now>,
}

/// As of the last configuration.
struct Now {
    config: Config,
    endpoints: BTreeMap<String, BTreeSet<SocketAddr>>,
    /// Of each pool that has one.
    discoveries: BTreeMap<String, Running>,
}

/// A pool's discovery.
struct Running {
    as_configured: Discovery,
    stop: CancellationToken,
    /// Once it does nothing any more.
    ended: CancellationToken,
}

/// All of a configuration that had to be read, resolved or made.
pub(crate) struct Prepared {
    config: Config,
    endpoints: BTreeMap<String, BTreeSet<SocketAddr>>,
    keys: BTreeMap<String, UpstreamKey>,
    tenants: crate::tenant::registry::Prepared,
}

impl Prepared {
    /// Does all that can fail.
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

impl Live {
    /// The first configuration.
    pub(crate) fn begin(prepared: Prepared, drain: &Drain, cluster: Option<&Cluster>) -> Self {
        let Prepared { config, endpoints, keys, tenants } = prepared;
        let live = Self {
            pools: Pools::default(),
            tenants: Tenants::new(tenants, Instant::now()),
            directory: Arc::default(),
            news: Arc::default(),
            drain: drain.clone(),
            cluster: cluster.cloned(),
            now: Mutex::new(Now {
                config: Config::default(),
                endpoints: BTreeMap::new(),
                discoveries: BTreeMap::new(),
            }),
        };
        live.arrange(config, endpoints, &keys);
        live
    }

    /// Takes a configuration over; what can't be changed while the gateway runs is told.
    pub(crate) async fn reload(
        &self,
        edge: &Edge,
        config: &Config,
    ) -> Result<Vec<String>, StartError> {
        let before = self.now.lock().config.gateway.clone();
        let (new, served) = (config.clone(), before.tls.clone());
        // It reads files, and asks for addresses by name.
        let prepare = spawn_blocking(move || {
            let tls = match &new.gateway.tls {
                same if *same == served => None,
                None => Some(None),
                Some(tls) => Some(Some(Tls::load(tls)?)),
            };
            Ok::<_, StartError>((Prepared::new(&new)?, tls))
        });
        let (prepared, tls) =
            prepare.await.unwrap_or_else(|error| resume_unwind(error.into_panic()))?;
        let Prepared { config, endpoints, keys, tenants } = prepared;
        let unchangeable = [
            ("gateway.listen", before.listen != config.gateway.listen),
            ("gateway.threads", before.threads != config.gateway.threads),
            ("gateway.scaler", before.scaler != config.gateway.scaler),
            ("gateway.recordArrivals", before.record_arrivals != config.gateway.record_arrivals),
            (
                "gateway.limits.writeTimeout",
                before.limits.write_timeout != config.gateway.limits.write_timeout,
            ),
        ];
        // Tenants first: a new pool is not to be open to those who may not use it.
        self.tenants.apply(tenants, Instant::now());
        let gone = self.arrange(config.clone(), endpoints, &keys);
        edge.apply(&config, self.pools.all(), tls);
        // Last, since until now requests were routed to them.
        for pool in gone {
            pool.close();
        }
        let changed = unchangeable.into_iter().filter(|(_, changed)| *changed);
        Ok(changed.map(|(field, _)| field.to_owned()).collect())
    }

    /// Makes pools and their endpoints such as they are configured; those that are no longer are
    /// returned.
    fn arrange(
        &self,
        config: Config,
        endpoints: BTreeMap<String, BTreeSet<SocketAddr>>,
        keys: &BTreeMap<String, UpstreamKey>,
    ) -> Vec<Arc<Pool>> {
        let mut now = self.now.lock();
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
                    let pool = Pool::new(settings.clone(), Arc::clone(&self.news));
                    self.directory.open(&pool);
                    pool
                }
            };
            pool.key.copy(keys.get(&settings.name));
            let before = now.endpoints.get(&settings.name).unwrap_or(&none);
            let after = endpoints.get(&settings.name).unwrap_or(&none);
            // New ones first, or a pool could have none for a moment.
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
            if let Some(running) = now.discoveries.remove(&*pool.name) {
                running.stop.cancel();
            }
            self.directory.close(pool);
        }
        for pool in &pools {
            self.discover(pool, &mut now.discoveries);
        }
        self.pools.0.store(Arc::new(pools));
        now.endpoints = endpoints;
        now.config = config;
        self.news.notify_one();
        gone
    }

    /// Begins and ends a pool's discovery as it is configured.
    fn discover(&self, pool: &Arc<Pool>, running: &mut BTreeMap<String, Running>) {
        let settings = pool.settings();
        let name = &*pool.name;
        if running.get(name).map(|it| &it.as_configured) == settings.discovery.as_ref() {
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
            // Or the one before could take away what this one finds.
            if let Some(before) = before {
                before.cancelled().await;
            }
            finding.await;
        });
        let as_configured = discovery.clone();
        running.insert(name.to_owned(), Running { as_configured, stop, ended });
    }
}
