//! Model → pool, and the name that the pool's replicas know it by.
//!
//! A route's split goes before all; then what the configuration lists for each pool; then what
//! replicas told of themselves. Pure: nothing here waits, and chance is the caller's.

pub(crate) mod local_answers;
pub(crate) mod models;

use std::collections::HashMap;
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
    names: HashMap<String, To>,
}

/// A pool, with the name to send there where it is another than the client's.
#[derive(Clone)]
pub(crate) struct To {
    pub(crate) pool: Arc<Pool>,
    pub(crate) served: Option<String>,
}

/// Where a request goes.
pub(crate) struct Way {
    pub(crate) first: To,
    pub(crate) fallback: Option<Fallback>,
    /// The model's own name, for a request that did not give one.
    pub(crate) model: Option<String>,
}

/// Where it goes when the first pool can't serve it in time.
pub(crate) struct Fallback {
    pub(crate) to: To,
    /// How long it is held before.
    pub(crate) after: Option<Duration>,
}

#[derive(Clone)]
struct Split {
    model: String,
    by: SplitBy,
    shares: Vec<Share>,
}

#[derive(Clone)]
struct Share {
    /// Of all, what goes to this one and those before it, 0 to 1.
    end: f64,
    pool: Arc<Pool>,
    /// The name to send, where the route gives one.
    model: Option<String>,
}

impl To {
    /// The name that is sent for a request for `asked`, where the pool is known to serve it.
    pub(crate) fn known_name<'a>(&'a self, asked: Option<&'a str>) -> Option<&'a str> {
        self.served.as_deref().or_else(|| asked.filter(|name| knows(&self.pool, name)))
    }
}

impl Routes {
    pub(crate) fn new(config: &Config, pools: Vec<Arc<Pool>>) -> Self {
        let mut names = HashMap::new();
        for pool in &pools {
            let to =
                |served: Option<&String>| To { pool: Arc::clone(pool), served: served.cloned() };
            let settings = pool.settings();
            let own = settings.models.iter().chain(&settings.adapters).map(|name| (name, to(None)));
            let aliases = settings.aliases.iter().map(|(name, model)| (name, to(Some(model))));
            for (name, to) in own.chain(aliases) {
                names.entry(name.clone()).or_insert(to);
            }
        }
        let mut routes = Self { pools, splits: Vec::new(), names };
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
            shares.push(Share { end, pool, model });
        }
        Split { model: route.model.clone(), by: route.by, shares }
    }

    fn named(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| *pool.name == *name)
    }

    /// Where a request for `model` goes. Without a name: the pool, where there is just one.
    ///
    /// `key` is what a split keeps together, `None` for chance; `visible` says which names may be
    /// told.
    pub(crate) fn way(
        &self,
        model: Option<&str>,
        key: impl FnOnce(SplitBy) -> Option<String>,
        visible: impl Fn(&str) -> bool,
    ) -> Result<Way, Refusal> {
        let Some(model) = model else {
            let [only] = self.pools.as_slice() else {
                return Err(Refusal::NoModel { known: self.known(visible) });
            };
            let first = To { pool: Arc::clone(only), served: None };
            let own = self.all().into_iter().next().map(|listed| listed.name);
            return Ok(self.way_from(first, own.as_deref(), own.clone()));
        };
        let first = self.splits.iter().find(|split| split.model == model).and_then(|split| {
            let point = key(split.by).map_or_else(rand::random, |key| point(model, &key));
            split.at(point)
        });
        let first = first.or_else(|| self.names.get(model).cloned()).or_else(|| self.told(model));
        match first {
            Some(first) => Ok(self.way_from(first, Some(model), Some(model.to_owned()))),
            None => {
                let known = self.known(visible);
                Err(Refusal::UnknownModel { model: model.to_owned(), known })
            }
        }
    }

    fn way_from(&self, first: To, asked: Option<&str>, model: Option<String>) -> Way {
        let fallback = first.pool.settings().fallback.as_ref().and_then(|fallback| {
            let pool = self.named(&fallback.pool)?;
            let to = sent_to(pool, asked.unwrap_or_default(), fallback.model.as_deref());
            Some(Fallback { to, after: fallback.after })
        });
        Way { first, fallback, model }
    }

    /// The pool whose replicas told of this name, or the one that takes any until they have.
    fn told(&self, model: &str) -> Option<To> {
        let to = |pool: &Arc<Pool>| To { pool: Arc::clone(pool), served: None };
        let knows = |pool: &&Arc<Pool>| told_names(pool).iter().any(|listed| listed.name == model);
        let untold = |pool: &&Arc<Pool>| {
            pool.settings().models.is_empty() && pool.served.models().is_empty()
        };
        self.pools.iter().find(knows).or_else(|| self.pools.iter().find(untold)).map(to)
    }

    /// Every name that clients may send, each once: those of splits, then each pool's.
    pub(crate) fn all(&self) -> Vec<Listed> {
        let mut all: Vec<Listed> = Vec::new();
        let mut add = |listed: Listed| {
            if all.iter().all(|known| known.name != listed.name) {
                all.push(listed);
            }
        };
        for split in &self.splits {
            let first = split.at(0.0).and_then(|to| to.served);
            let root = first.unwrap_or_else(|| split.model.clone());
            add(Listed { root, ..Listed::plain(&split.model) });
        }
        for pool in &self.pools {
            let settings = pool.settings();
            let told = pool.served.models();
            let length = |name: &str| {
                told.iter().find(|model| model.id == name).and_then(|model| model.max_model_len)
            };
            for name in &settings.models {
                add(Listed { max_model_len: length(name), ..Listed::plain(name) });
            }
            for (name, model) in &settings.aliases {
                let max_model_len = length(model);
                add(Listed { root: model.clone(), max_model_len, ..Listed::plain(name) });
            }
            for name in &settings.adapters {
                let known = told.iter().find(|model| model.id == *name);
                let parent = known.and_then(|model| model.parent.clone());
                let parent = parent.or_else(|| settings.models.first().cloned());
                add(Listed { parent, ..Listed::plain(name) });
            }
            told_names(pool).into_iter().for_each(&mut add);
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

/// A name as the list of models has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Listed {
    pub(crate) name: String,
    /// The name that replicas know.
    pub(crate) root: String,
    /// The model that an adapter is for.
    pub(crate) parent: Option<String>,
    pub(crate) max_model_len: Option<u64>,
}

impl Listed {
    fn plain(name: &str) -> Self {
        Self { name: name.to_owned(), root: name.to_owned(), ..Self::default() }
    }
}

/// Names that only the replicas tell: adapters, and all of them where none are configured.
fn told_names(pool: &Pool) -> Vec<Listed> {
    let any = pool.settings().models.is_empty();
    let told = pool.served.models();
    let told = told.iter().filter(|model| any || model.parent.is_some());
    told.map(|model| Listed {
        parent: model.parent.clone(),
        max_model_len: model.max_model_len,
        ..Listed::plain(&model.id)
    })
    .collect()
}

/// Whether the pool's replicas know a name, by its configuration or their own word.
fn knows(pool: &Pool, name: &str) -> bool {
    let settings = pool.settings();
    settings.models.iter().chain(&settings.adapters).any(|known| known == name)
        || pool.served.models().iter().any(|told| told.id == name)
}

/// `pool` for a request for `asked`: sent as `model`, or as asked where the pool knows that name, or
/// else as the pool's first model.
fn sent_to(pool: &Arc<Pool>, asked: &str, model: Option<&str>) -> To {
    let served = match model {
        Some(model) => Some(model.to_owned()),
        None if knows(pool, asked) => None,
        None => {
            let settings = pool.settings();
            let first = settings.aliases.get(asked).or(settings.models.first());
            first.cloned().or_else(|| pool.served.models().first().map(|told| told.id.clone()))
        }
    };
    To { pool: Arc::clone(pool), served: served.filter(|name| name != asked) }
}

impl Split {
    /// By what is known of its pools now: replicas may tell of the model at any time.
    fn at(&self, point: f64) -> Option<To> {
        let share = self.shares.iter().find(|share| point < share.end).or(self.shares.last())?;
        Some(sent_to(&share.pool, &self.model, share.model.as_deref()))
    }
}

/// Where a key falls, 0 to 1: the same in every gateway and every version.
fn point(model: &str, key: &str) -> f64 {
    let hash = Sha256::new().chain_update(model).chain_update([0]).chain_update(key).finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&hash[..8]);
    u64::from_be_bytes(first) as f64 / u64::MAX as f64
}

#[cfg(test)]
mod tests;
