//! Model → pool. Pure.

use std::sync::Arc;

use crate::pool::Pool;
use crate::refusal::Refusal;

/// The pools in the configuration's order.
#[derive(Clone)]
pub(crate) struct Routes {
    pools: Vec<Arc<Pool>>,
}

impl Routes {
    pub(crate) fn new(pools: Vec<Arc<Pool>>) -> Self {
        Self { pools }
    }

    pub(crate) fn pools(&self) -> &[Arc<Pool>] {
        &self.pools
    }

    /// The pool that serves `model`. Without a name: the pool, where there is just one.
    pub(crate) fn pool(&self, model: Option<&str>) -> Result<&Arc<Pool>, Refusal> {
        let Some(model) = model else {
            return match self.pools.as_slice() {
                [only] => Ok(only),
                _ => Err(Refusal::NoModel { known: self.known() }),
            };
        };
        let mut untold = None;
        for pool in &self.pools {
            let names = pool.models();
            if names.iter().any(|name| name == model) {
                return Ok(pool);
            }
            // It takes any name until its first replica has told its own.
            if names.is_empty() {
                untold.get_or_insert(pool);
            }
        }
        untold.ok_or_else(|| Refusal::UnknownModel { model: model.to_owned(), known: self.known() })
    }

    fn known(&self) -> String {
        let names: Vec<_> = self
            .pools
            .iter()
            .flat_map(|pool| pool.models())
            .map(|name| format!("`{name}`"))
            .collect();
        if names.is_empty() { "none yet".to_owned() } else { names.join(", ") }
    }
}
