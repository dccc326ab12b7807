//! The pool for a model, and the name by which its replicas know the model. Also the answers that
//! need no pool.
//!
//! The order of the search: the split of a configured route, then the names that the configuration
//! lists for each pool, then those that replicas report. Nothing here waits. Uses `text`, `answer`,
//! `tenant` and `pool`.

pub(crate) mod local_answers;
pub(crate) mod models;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use forebay_config::{Config, Route, SplitBy};
use sha2::{Digest, Sha256};

use crate::answer::refusal::Refusal;
use crate::pool::Pool;

/// The pools in the configuration's order, and the names that lead to them.
#[derive(Clone)]
pub(crate) struct Routes {
    pools: Vec<Arc<Pool>>,
    splits: Vec<Split>,
    /// In order: to hash a name would cost more than to find it, also among thousands.
    names: BTreeMap<String, Destination>,
    /// Whether the policy of any pool reads what a prompt contains.
    pub(crate) read_prompts: bool,
}

/// A pool, with the name to send there if that differs from the client's.
#[derive(Clone)]
pub(crate) struct Destination {
    pub(crate) pool: Arc<Pool>,
    pub(crate) served: Option<Arc<str>>,
}

/// The pools that a request may go to.
pub(crate) struct RoutePlan {
    pub(crate) first: Destination,
    pub(crate) fallback: Option<FallbackRoute>,
    /// The model's own name, if the request gives none.
    pub(crate) model: Option<String>,
}

/// The destination if the first pool can't serve the request in time.
pub(crate) struct FallbackRoute {
    pub(crate) to: Destination,
    /// How long the first pool may hold the request before that, if that is limited.
    pub(crate) after: Option<Duration>,
}

#[derive(Clone)]
struct Split {
    model: String,
    by: SplitBy,
    shares: Vec<SplitShare>,
}

#[derive(Clone)]
struct SplitShare {
    /// The share of this pool and those before it, 0 to 1.
    end: f64,
    pool: Arc<Pool>,
    /// The name to send, if the route gives one.
    model: Option<String>,
}

impl Destination {
    /// The name that is sent for a request for `model`, if the pool is known to serve it.
    pub(crate) fn known_name<'a>(&'a self, model: Option<&'a Arc<str>>) -> Option<&'a Arc<str>> {
        self.served.as_ref().or_else(|| model.filter(|name| knows(&self.pool, name)))
    }
}

impl Routes {
    pub(crate) fn new(config: &Config, pools: Vec<Arc<Pool>>) -> Self {
        let mut names = BTreeMap::new();
        for pool in &pools {
            let to = |served: Option<&String>| Destination {
                pool: Arc::clone(pool),
                served: served.map(|name| Arc::from(name.as_str())),
            };
            let settings = pool.settings();
            let own = settings.models.iter().chain(&settings.adapters).map(|name| (name, to(None)));
            let aliases = settings.aliases.iter().map(|(name, model)| (name, to(Some(model))));
            for (name, to) in own.chain(aliases) {
                names.entry(name.clone()).or_insert(to);
            }
        }
        let read_prompts = config.pools.iter().any(|pool| pool.pick.reads_prompts());
        let mut routes = Self { pools, splits: Vec::new(), names, read_prompts };
        routes.splits = config.gateway.routes.iter().map(|route| routes.split(route)).collect();
        routes
    }

    fn split(&self, route: &Route) -> Split {
        let total: f64 = route.pools.iter().map(|share| f64::from(share.weight)).sum();
        let mut sum = 0.0;
        let mut shares = Vec::new();
        for share in route.pools.iter().filter(|share| share.weight > 0) {
            let Some(pool) = self.named(&share.pool) else { continue };
            sum += f64::from(share.weight);
            let (end, pool, model) = (sum / total, Arc::clone(pool), share.model.clone());
            shares.push(SplitShare { end, pool, model });
        }
        Split { model: route.model.clone(), by: route.by, shares }
    }

    fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| *pool.name == *name)
    }

    /// The destinations of a request for `model`. A request without a name goes to the only pool.
    ///
    /// A split keeps requests with the same `key` together, and leaves `None` to chance. `visible`
    /// says which names an error may list.
    pub(crate) fn plan(
        &self,
        model: Option<&str>,
        key: impl FnOnce(SplitBy) -> Option<String>,
        visible: impl Fn(&str) -> bool,
    ) -> Result<RoutePlan, Refusal> {
        let Some(model) = model else {
            let [only] = self.pools.as_slice() else {
                return Err(Refusal::NoModel { known: self.known(visible) });
            };
            let first = Destination { pool: Arc::clone(only), served: None };
            let own = self.all().into_iter().next().map(|listed| listed.name);
            return Ok(self.plan_from(first, own.as_deref(), own.clone()));
        };
        let first = self.splits.iter().find(|split| split.model == model).and_then(|split| {
            let point = key(split.by).map_or_else(rand::random, |key| point(model, &key));
            split.at(point)
        });
        let first =
            first.or_else(|| self.names.get(model).cloned()).or_else(|| self.reported(model));
        match first {
            Some(first) => Ok(self.plan_from(first, Some(model), None)),
            None => {
                let known = self.known(visible);
                Err(Refusal::UnknownModel { model: model.to_owned(), known })
            }
        }
    }

    fn plan_from(
        &self,
        first: Destination,
        requested: Option<&str>,
        model: Option<String>,
    ) -> RoutePlan {
        let fallback = first.pool.settings().fallback.as_ref().and_then(|fallback| {
            let pool = self.named(&fallback.pool)?;
            let to = sent_to(pool, requested.unwrap_or_default(), fallback.model.as_deref());
            Some(FallbackRoute { to, after: fallback.after })
        });
        RoutePlan { first, fallback, model }
    }

    /// The pool whose replicas report this name, or one that accepts any name because it has no
    /// names yet.
    fn reported(&self, model: &str) -> Option<Destination> {
        let to = |pool: &Arc<Pool>| Destination { pool: Arc::clone(pool), served: None };
        let knows =
            |pool: &&Arc<Pool>| reported_names(pool).iter().any(|listed| listed.name == model);
        let accepts_any =
            |pool: &&Arc<Pool>| pool.settings().models.is_empty() && pool.models.all().is_empty();
        self.pools.iter().find(knows).or_else(|| self.pools.iter().find(accepts_any)).map(to)
    }

    /// Every name that clients may send, once: those of splits, then each pool's.
    pub(crate) fn all(&self) -> Vec<ListedModel> {
        let mut all: Vec<ListedModel> = Vec::new();
        let mut add = |listed: ListedModel| {
            if all.iter().all(|known| known.name != listed.name) {
                all.push(listed);
            }
        };
        for split in &self.splits {
            let first = split.at(0.0).and_then(|to| to.served);
            let root = first.map_or_else(|| split.model.clone(), |name| name.to_string());
            add(ListedModel { root, ..ListedModel::plain(&split.model) });
        }
        for pool in &self.pools {
            let settings = pool.settings();
            let reported = pool.models.all();
            let length = |name: &str| {
                reported.iter().find(|model| model.id == name).and_then(|model| model.max_model_len)
            };
            for name in &settings.models {
                add(ListedModel { max_model_len: length(name), ..ListedModel::plain(name) });
            }
            for (name, model) in &settings.aliases {
                let max_model_len = length(model);
                add(ListedModel { root: model.clone(), max_model_len, ..ListedModel::plain(name) });
            }
            for name in &settings.adapters {
                let known = reported.iter().find(|model| model.id == *name);
                let parent = known.and_then(|model| model.parent.clone());
                let parent = parent.or_else(|| settings.models.first().cloned());
                add(ListedModel { parent, ..ListedModel::plain(name) });
            }
            reported_names(pool).into_iter().for_each(&mut add);
        }
        all
    }

    fn known(&self, visible: impl Fn(&str) -> bool) -> String {
        let all = self.all();
        let names = all.iter().map(|listed| listed.name.as_str()).filter(|name| visible(name));
        let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
        if names.is_empty() { "none yet".to_owned() } else { names.join(", ") }
    }
}

/// A name in the list of models.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ListedModel {
    pub(crate) name: String,
    /// The name by which replicas know it.
    pub(crate) root: String,
    /// The base model of an adapter.
    pub(crate) parent: Option<String>,
    pub(crate) max_model_len: Option<u64>,
}

impl ListedModel {
    fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), root: name.to_owned(), ..Self::default() }
    }
}

/// The names that only the replicas report: adapters, or all names if none are configured.
fn reported_names(pool: &Pool) -> Vec<ListedModel> {
    let any = pool.settings().models.is_empty();
    let reported = pool.models.all();
    let reported = reported.iter().filter(|model| any || model.parent.is_some());
    reported
        .map(|model| ListedModel {
            parent: model.parent.clone(),
            max_model_len: model.max_model_len,
            ..ListedModel::plain(&model.id)
        })
        .collect()
}

/// Whether the pool's replicas know a name, by the configuration or their own report.
fn knows(pool: &Pool, name: &str) -> bool {
    let settings = pool.settings();
    settings.models.iter().chain(&settings.adapters).any(|known| known == name)
        || pool.models.all().iter().any(|model| model.id == name)
}

/// `pool` as the destination of a request for `requested`. The name that is sent is `model`, or the
/// requested one if the pool knows it, or else the pool's first model.
fn sent_to(pool: &Arc<Pool>, requested: &str, model: Option<&str>) -> Destination {
    let served = match model {
        Some(model) => Some(model.to_owned()),
        None if knows(pool, requested) => None,
        None => {
            let settings = pool.settings();
            let first = settings.aliases.get(requested).or(settings.models.first());
            first.cloned().or_else(|| pool.models.all().first().map(|model| model.id.clone()))
        }
    };
    let served = served.filter(|name| name != requested).map(Arc::from);
    Destination { pool: Arc::clone(pool), served }
}

impl Split {
    /// The destination at this point. It depends on the names that the pool knows now, since
    /// replicas may report one at any time.
    fn at(&self, point: f64) -> Option<Destination> {
        let share = self.shares.iter().find(|share| point < share.end).or(self.shares.last())?;
        Some(sent_to(&share.pool, &self.model, share.model.as_deref()))
    }
}

/// The point of a key between 0 and 1: the same in every gateway and every version.
fn point(model: &str, key: &str) -> f64 {
    let hash = Sha256::new().chain_update(model).chain_update([0]).chain_update(key).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
