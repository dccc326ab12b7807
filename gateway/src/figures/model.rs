//! Requests and tokens of a pool by model and tenant, for bills and for pools with several models.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use metrics::{Counter, Label, counter, describe_counter};
use parking_lot::RwLock;

use crate::answer::meter::Tokens;
use crate::answer::outcome::Outcome;

const REQUESTS: &str = "forebay_model_requests_total";
const TOKENS: &str = "forebay_model_tokens_total";

/// The most pairs of model and tenant that one pool shows. Later pairs are counted together, without
/// names, so that sums stay right.
const MOST_PAIRS: usize = 1000;

pub(super) fn describe() {
    describe_counter!(
        REQUESTS,
        "Requests ended, by pool, model (none if the pool does not know it), tenant and outcome"
    );
    describe_counter!(
        TOKENS,
        "Tokens, by pool, model, tenant and kind: prompt, cached (those of the prompt that were in a \
         prefix cache), generated"
    );
}

/// The figures of one pool's models, each looked up once.
pub(crate) struct ModelFigures {
    pool: Arc<str>,
    pairs: RwLock<Pairs>,
}

/// Pairs of a model, by the name that the replicas know, and a tenant. Both names are empty for the
/// pairs without names.
#[derive(Default)]
struct Pairs {
    by_model: BTreeMap<Arc<str>, BTreeMap<Arc<str>, PairCounters>>,
    count: usize,
}

/// The counters of one pair. Each is shown once it counts something.
struct PairCounters {
    labels: [Label; 3],
    requests: [OnceLock<Counter>; 5],
    tokens: [OnceLock<Counter>; 3],
}

impl ModelFigures {
    pub(crate) fn new(pool: &str) -> Self {
        Self { pool: pool.into(), pairs: RwLock::default() }
    }

    /// Counts a request that has ended. `model`: as the replicas know it, if they do.
    pub(crate) fn ended(
        &self,
        model: Option<&Arc<str>>,
        tenant: &Arc<str>,
        outcome: Outcome,
        tokens: &Tokens,
    ) {
        let model = model.map_or("", |model| model);
        if let Some(known) = self.pairs.read().get(model, tenant) {
            return known.count(outcome, tokens);
        }
        let mut pairs = self.pairs.write();
        let named = pairs.count < MOST_PAIRS || pairs.get(model, tenant).is_some();
        let pair = if named { (model, &**tenant) } else { ("", "") };
        pairs.get_or_add(&self.pool, pair).count(outcome, tokens);
    }
}

impl Pairs {
    fn get(&self, model: &str, tenant: &str) -> Option<&PairCounters> {
        self.by_model.get(model)?.get(tenant)
    }

    fn get_or_add(&mut self, pool: &Arc<str>, (model, tenant): (&str, &str)) -> &PairCounters {
        let [model, tenant] = [model, tenant].map(Arc::<str>::from);
        let tenants = self.by_model.entry(Arc::clone(&model)).or_default();
        tenants.entry(Arc::clone(&tenant)).or_insert_with(|| {
            self.count += 1;
            PairCounters {
                labels: [
                    Label::new("pool", Arc::clone(pool)),
                    Label::new("model", model),
                    Label::new("tenant", tenant),
                ],
                requests: Default::default(),
                tokens: Default::default(),
            }
        })
    }
}

impl PairCounters {
    fn count(&self, outcome: Outcome, tokens: &Tokens) {
        let (name, place) = (outcome.name(), outcome as usize);
        self.add(&self.requests[place], REQUESTS, ("outcome", name), 1);
        let kinds = [
            ("prompt", tokens.prompt.unwrap_or(0)),
            ("cached", tokens.cached.unwrap_or(0)),
            ("generated", tokens.generated),
        ];
        for (counter, (kind, count)) in self.tokens.iter().zip(kinds) {
            if count > 0 {
                self.add(counter, TOKENS, ("kind", kind), count);
            }
        }
    }

    fn add(
        &self,
        counter: &OnceLock<Counter>,
        name: &'static str,
        (key, value): (&'static str, &'static str),
        count: u64,
    ) {
        let new = || {
            let own = Label::from_static_parts(key, value);
            let labels: Vec<_> = self.labels.iter().cloned().chain([own]).collect();
            counter!(name, labels)
        };
        counter.get_or_init(new).increment(count);
    }
}

#[cfg(test)]
mod tests {
    use metrics::with_local_recorder;

    use super::*;
    use crate::figures::test_recorder::Registered;

    #[test]
    fn a_pair_has_counters_of_its_own_and_those_beyond_the_bound_share_theirs() {
        let recorder = Registered::default();
        with_local_recorder(&recorder, || {
            let figures = ModelFigures::new("p");
            let [model, team] = ["m", "team"].map(Arc::<str>::from);
            let tokens =
                Tokens { prompt: Some(7), cached: Some(0), generated: 2, ..Tokens::default() };
            for _ in 0..2 {
                figures.ended(Some(&model), &team, Outcome::Completed, &tokens);
            }
            figures.ended(None, &team, Outcome::ClientError, &Tokens::default());
            for at in 2..MOST_PAIRS + 3 {
                let tenant = Arc::from(format!("t{at}"));
                figures.ended(Some(&model), &tenant, Outcome::Completed, &Tokens::default());
            }
            figures.ended(Some(&model), &team, Outcome::Completed, &Tokens::default());
        });
        let count = |labels: &str| recorder.count(labels);
        assert_eq!(count("forebay_model_requests_total p m team completed"), Some(3));
        assert_eq!(count("forebay_model_tokens_total p m team prompt"), Some(14));
        assert_eq!(count("forebay_model_tokens_total p m team generated"), Some(4));
        assert_eq!(count("forebay_model_tokens_total p m team cached"), None);
        assert_eq!(count("forebay_model_requests_total p  team client_error"), Some(1));
        assert_eq!(count("forebay_model_requests_total p m t999 completed"), Some(1));
        assert_eq!(count("forebay_model_requests_total p m t1000 completed"), None);
        assert_eq!(count("forebay_model_requests_total p   completed"), Some(3));
        assert_eq!(recorder.lookups(), MOST_PAIRS + 1 + 2, "each counter is looked up once");
    }
}
