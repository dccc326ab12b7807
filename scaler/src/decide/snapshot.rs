//! What is learned of a pool, to be kept over a restart: small, versioned, plain JSON.
//!
//! Replicas and gateways tell everything else.

use serde::{Deserialize, Serialize};

use super::capacity::Capacity;
use super::cold_start::ColdStarts;
use super::forecast::Season;
use super::inputs::Override;
use super::state::State;

/// Another version is not read.
const VERSION: u32 = 1;

/// One pool's learned figures, and a person's order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    version: u32,
    #[serde(rename = "override", default)]
    order: Override,
    cold_starts: ColdStarts,
    capacity: Capacity,
    season: Season,
}

/// Why a snapshot is not used. What was in it is learned anew.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    /// It is no JSON, or not of this shape.
    #[error("it can't be read: {0}")]
    Broken(String),
    /// Another Forebay wrote it.
    #[error("it has version {0}, this Forebay reads {VERSION}")]
    Version(u64),
}

/// The snapshot as text.
#[must_use]
pub fn save(state: &State, order: Override) -> String {
    let snapshot = Snapshot {
        version: VERSION,
        order,
        cold_starts: state.cold_starts.clone(),
        capacity: state.capacity.clone(),
        season: state.season.clone(),
    };
    serde_json::to_string(&snapshot).expect("numbers and names only")
}

/// Takes over what was learned; returns the order that stood.
///
/// # Errors
/// [`Unusable`]; the state is then as it was.
pub fn restore(state: &mut State, text: &str) -> Result<Override, Unusable> {
    let broken = |error: serde_json::Error| Unusable::Broken(error.to_string());
    let value: serde_json::Value = serde_json::from_str(text).map_err(broken)?;
    match value["version"].as_u64() {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(Unusable::Version(version)),
        None => return Err(Unusable::Broken("it has no version".to_owned())),
    }
    let snapshot: Snapshot = serde_json::from_value(value).map_err(broken)?;
    state.cold_starts = snapshot.cold_starts;
    state.capacity = snapshot.capacity;
    state.season = snapshot.season;
    Ok(snapshot.order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::inputs::ReplicaFacts;

    #[test]
    fn what_was_learned_comes_back() {
        let mut state = State::default();
        let replica = ReplicaFacts { ready_ms: Some(43_000), ..ReplicaFacts::asked(1_000) };
        state.cold_starts.observe(&[replica], 43_000);
        for quarter in 0..200 {
            state.season.observe(900.0, quarter * 900_000);
        }
        let text = save(&state, Override::Fixed(3));
        let mut back = State::default();
        assert_eq!(restore(&mut back, &text), Ok(Override::Fixed(3)));
        assert_eq!(back.cold_starts.quantiles(), state.cold_starts.quantiles());
        assert_eq!(back.capacity, state.capacity);
        assert_eq!(save(&back, Override::Fixed(3)), text);
        assert!(text.len() < 16_384, "{} bytes", text.len());
    }

    #[test]
    fn what_is_broken_or_of_another_version_is_refused_and_changes_nothing() {
        let good = save(&State::default(), Override::None);
        for (case, text, want) in [
            ("no JSON", "{\"version\":1,".to_owned(), "it can't be read"),
            ("nothing", String::new(), "it can't be read"),
            ("no version", "{}".to_owned(), "it has no version"),
            ("a later one", good.replace("\"version\":1", "\"version\":2"), "it has version 2"),
            ("another shape", "{\"version\":1,\"capacity\":[]}".to_owned(), "it can't be read"),
        ] {
            let error = restore(&mut State::default(), &text).expect_err(case).to_string();
            assert!(error.contains(want), "{case}: {error}");
        }
    }
}
