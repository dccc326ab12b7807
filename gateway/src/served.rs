//! What a pool's replicas tell of themselves on `/v1/models`: the names they know, and which of
//! them are LoRA adapters.

use std::collections::BTreeMap;
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
}

impl Served {
    pub(crate) fn tell(&self, address: SocketAddr, models: Vec<ServedModel>) {
        let mut told = self.told.lock();
        if told.get(&address) != Some(&models) {
            told.insert(address, models);
            self.gather(&told);
        }
    }

    /// A replica is gone, and the names that it alone had with it. Those of the last one stay.
    pub(crate) fn gone(&self, address: SocketAddr) {
        let mut told = self.told.lock();
        if told.remove(&address).is_some() && !told.is_empty() {
            self.gather(&told);
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
    }
}
