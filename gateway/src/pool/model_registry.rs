//! What a pool's replicas tell of themselves on `/v1/models`: the names they know, and which of
//! them are LoRA adapters.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;

/// One name that replicas know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServedModel {
    pub(crate) id: String,
    /// The model that this one, an adapter, is for.
    pub(crate) parent: Option<String>,
    /// Tokens of prompt and answer together.
    pub(crate) max_model_len: Option<u64>,
}

/// What the replicas of a pool told last; kept while none runs.
#[derive(Default)]
pub(crate) struct Served {
    told: Mutex<BTreeMap<SocketAddr, Vec<ServedModel>>>,
    all: ArcSwap<Vec<ServedModel>>,
    who: ArcSwap<Who>,
}

/// Which replicas know which names.
#[derive(Debug, Default)]
pub(crate) struct Who {
    /// All that have told anything.
    told: HashSet<SocketAddr>,
    names: HashMap<String, Knowing>,
}

#[derive(Debug, Default)]
struct Knowing {
    replicas: HashSet<SocketAddr>,
    /// Some were started with it, so that others will know it too.
    own: bool,
}

impl Who {
    /// Whether a request for this name may go there: the replica told of it, or none has. One that
    /// has told nothing yet is taken to know what replicas are started with, and no adapter.
    pub(crate) fn knows(&self, address: SocketAddr, name: Option<&str>) -> bool {
        let Some(known) = name.and_then(|name| self.names.get(name)) else { return true };
        known.replicas.contains(&address) || (known.own && !self.told.contains(&address))
    }
}

impl Served {
    /// True if that is news.
    pub(crate) fn tell(&self, address: SocketAddr, models: Vec<ServedModel>) -> bool {
        let mut told = self.told.lock();
        let news = told.get(&address) != Some(&models);
        if news {
            told.insert(address, models);
            self.gather(&told);
            self.who.store(Arc::new(who(&told)));
        }
        news
    }

    /// A replica is gone, and the names that it alone had with it. Those of the last one stay.
    pub(crate) fn gone(&self, address: SocketAddr) {
        let mut told = self.told.lock();
        if told.remove(&address).is_some() {
            if !told.is_empty() {
                self.gather(&told);
            }
            self.who.store(Arc::new(who(&told)));
        }
    }

    fn gather(&self, told: &BTreeMap<SocketAddr, Vec<ServedModel>>) {
        let mut all: Vec<ServedModel> = Vec::new();
        for model in told.values().flatten() {
            if all.iter().all(|known| known.id != model.id) {
                all.push(model.clone());
            }
        }
        self.all.store(Arc::new(all));
    }

    /// Every name, each once.
    pub(crate) fn models(&self) -> Arc<Vec<ServedModel>> {
        self.all.load_full()
    }

    pub(crate) fn who(&self) -> Arc<Who> {
        self.who.load_full()
    }
}

fn who(told: &BTreeMap<SocketAddr, Vec<ServedModel>>) -> Who {
    let mut who = Who { told: told.keys().copied().collect(), names: HashMap::new() };
    for (address, models) in told {
        for model in models {
            let known = who.names.entry(model.id.clone()).or_default();
            known.replicas.insert(*address);
            known.own |= model.parent.is_none();
        }
    }
    who
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
    fn names_go_with_the_last_replica_that_had_them_but_not_with_the_last_of_all() {
        let served = Served::default();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let ids = || served.models().iter().map(|model| model.id.clone()).collect::<Vec<_>>();
        let both = parse(TWO).expect("a list");
        served.tell(address(1), both[..1].to_vec());
        served.tell(address(2), both.clone());
        assert_eq!(ids(), ["tiny", "ad1"]);
        served.gone(address(2));
        assert_eq!(ids(), ["tiny"]);
        served.tell(address(1), both);
        served.gone(address(1));
        assert_eq!(ids(), ["tiny", "ad1"], "the pool sleeps");
        assert!(served.who().knows(address(3), Some("ad1")), "nobody says who has it");
    }

    #[test]
    fn a_name_goes_to_replicas_that_told_of_it_and_an_unknown_name_to_any() {
        let served = Served::default();
        let address = |port| SocketAddr::from(([127, 0, 0, 1], port));
        let both = parse(TWO).expect("a list");
        assert!(served.tell(address(1), both[..1].to_vec()));
        assert!(served.tell(address(2), both.clone()));
        assert!(!served.tell(address(2), both), "as before");
        let who = served.who();
        let knows = |name| [1, 2, 3].map(|port| who.knows(address(port), name));
        assert_eq!(knows(Some("ad1")), [false, true, false]);
        assert_eq!(knows(Some("tiny")), [true; 3], "the third will tell of it");
        assert_eq!(knows(Some("other")), [true; 3]);
        assert_eq!(knows(None), [true; 3]);
    }
}
