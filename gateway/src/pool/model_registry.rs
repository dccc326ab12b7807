//! The models of a pool: the names that its replicas list on `/v1/models`, and which of them are LoRA
//! adapters.
//!
//! Every request reads, and a replica's list changes once in minutes. So readers get a snapshot that
//! is swapped whole; a `DashMap` would cost them more (see `tenant/registry.rs`). It is built anew
//! only when a list appears that no replica had, or one leaves with its last replica.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;

/// One name that replicas list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct ServedModel {
    pub(crate) id: String,
    /// The model that this one, an adapter, belongs to.
    pub(crate) parent: Option<String>,
    /// Tokens of prompt and answer together.
    pub(crate) max_model_len: Option<u64>,
}

type List = Arc<[ServedModel]>;

/// The lists of a pool's replicas. The last one's list is kept while none runs.
#[derive(Default)]
pub(crate) struct ModelRegistry {
    lists: Mutex<Lists>,
    all: ArcSwap<Vec<ServedModel>>,
}

/// Each list once: most replicas of a pool have the same.
#[derive(Default)]
struct Lists {
    replicas: HashMap<SocketAddr, List>,
    distinct: HashMap<List, Holders>,
    /// The number of lists so far.
    count: u64,
}

/// The replicas with one list.
struct Holders {
    replicas: usize,
    /// The list's number, in the order of their first reports.
    number: u64,
}

impl ModelRegistry {
    /// Whether this is the list of the replica.
    pub(crate) fn has(&self, address: SocketAddr, models: &[ServedModel]) -> bool {
        self.lists.lock().has(address, models)
    }

    /// Takes a replica's list.
    pub(crate) fn set(&self, address: SocketAddr, models: Vec<ServedModel>) {
        let mut lists = self.lists.lock();
        if lists.set(address, models) {
            self.all.store(Arc::new(lists.union()));
        }
    }

    /// Forgets a replica, with the names that it alone had. Those of the last replica stay.
    pub(crate) fn remove(&self, address: SocketAddr) {
        let mut lists = self.lists.lock();
        if lists.remove(address) && !lists.replicas.is_empty() {
            self.all.store(Arc::new(lists.union()));
        }
    }

    /// Every model, each name once.
    pub(crate) fn all(&self) -> Arc<Vec<ServedModel>> {
        self.all.load_full()
    }
}

impl Lists {
    fn has(&self, address: SocketAddr, models: &[ServedModel]) -> bool {
        self.replicas.get(&address).is_some_and(|known| **known == *models)
    }

    /// Takes a replica's list; true if there are other lists than before.
    fn set(&mut self, address: SocketAddr, models: Vec<ServedModel>) -> bool {
        if self.has(address, &models) {
            return false;
        }
        let gone = self.remove(address);
        let (list, new) = match self.distinct.get_key_value(models.as_slice()) {
            Some((known, _)) => (Arc::clone(known), false),
            None => (List::from(models), true),
        };
        let number = self.count;
        let holders =
            self.distinct.entry(Arc::clone(&list)).or_insert(Holders { replicas: 0, number });
        holders.replicas += 1;
        self.count += u64::from(new);
        self.replicas.insert(address, list);
        new || gone
    }

    /// Forgets a replica; true if its list has gone with it.
    fn remove(&mut self, address: SocketAddr) -> bool {
        let Some(list) = self.replicas.remove(&address) else { return false };
        let Some(holders) = self.distinct.get_mut(&list) else { return false };
        holders.replicas -= 1;
        let gone = holders.replicas == 0;
        if gone {
            self.distinct.remove(&list);
        }
        gone
    }

    /// The models of all lists, each name once, the oldest list first.
    fn union(&self) -> Vec<ServedModel> {
        let mut lists: Vec<_> = self.distinct.iter().collect();
        lists.sort_unstable_by_key(|(_, holders)| holders.number);
        let mut known = HashSet::new();
        let models = lists.into_iter().flat_map(|(list, _)| list.iter());
        models.filter(|model| known.insert(&model.id)).cloned().collect()
    }
}

/// Reads the answer to `GET /v1/models`.
pub(crate) fn parse(body: &[u8]) -> Option<Vec<ServedModel>> {
    let body: Value = serde_json::from_slice(body).ok()?;
    let models = body["data"].as_array()?.iter().filter_map(|model| {
        Some(ServedModel {
            id: model["id"].as_str()?.to_owned(),
            parent: model["parent"].as_str().map(str::to_owned),
            max_model_len: model["max_model_len"].as_u64(),
        })
    });
    Some(models.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vLLM 0.32 answers with an adapter, its permissions left out.
    const TWO: &[u8] = br#"{"object":"list","data":[
        {"id":"tiny","object":"model","created":1795454719,"owned_by":"vllm","root":"/model","parent":null,"max_model_len":2048,"permission":[]},
        {"id":"ad1","object":"model","created":1795454719,"owned_by":"vllm","root":"/lora1","parent":"tiny","max_model_len":null,"permission":[]}]}"#;

    #[test]
    fn an_adapter_is_known_by_its_parent() {
        let models = parse(TWO).expect("a list");
        let of = |at: usize| (models[at].id.as_str(), models[at].parent.as_deref());
        assert_eq!((of(0), of(1)), (("tiny", None), ("ad1", Some("tiny"))));
        assert_eq!(models[0].max_model_len, Some(2048));
        assert_eq!(parse(b"{}"), None);
        assert_eq!(parse(b"no"), None);
    }

    #[test]
    fn a_name_leaves_with_the_last_replica_that_lists_it_unless_that_is_the_last_of_all() {
        let registry = ModelRegistry::default();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let ids = || registry.all().iter().map(|model| model.id.clone()).collect::<Vec<_>>();
        let both = parse(TWO).expect("a list");
        registry.set(address(1), both[..1].to_vec());
        registry.set(address(2), both.clone());
        assert_eq!(ids(), ["tiny", "ad1"]);
        registry.remove(address(2));
        assert_eq!(ids(), ["tiny"]);
        registry.set(address(1), both);
        registry.remove(address(1));
        assert_eq!(ids(), ["tiny", "ad1"], "the pool sleeps");
        registry.set(address(1), Vec::new());
        assert!(ids().is_empty(), "the first replica since then lists nothing");
    }

    #[test]
    fn replicas_with_the_same_list_change_nothing_for_readers() {
        let registry = ModelRegistry::default();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let both = parse(TWO).expect("a list");
        registry.set(address(0), both.clone());
        let before = registry.all();
        (1..1000).for_each(|port| registry.set(address(port), both.clone()));
        (0..999).for_each(|port| registry.remove(address(port)));
        assert!(Arc::ptr_eq(&before, &registry.all()), "nothing is built anew");
        let lists = registry.lists.lock();
        assert_eq!((lists.replicas.len(), lists.distinct.len()), (1, 1));
    }
}
