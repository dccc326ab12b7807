//! The learned figures of a pool, kept over a restart: small, versioned, plain JSON.
//!
//! Everything else comes from replicas and gateways.

use serde::{Deserialize, Serialize};

use super::capacity::Capacity;
use super::cold_start::ColdStarts;
use super::forecast::Season;
use super::inputs::Override;
use super::state::State;

/// Other versions are not read.
const VERSION: u32 = 1;

/// One pool's learned figures, and an operator's override.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Snapshot {
    version: u32,
    #[serde(rename = "override", default)]
    operator_override: Override,
    cold_starts: ColdStarts,
    capacity: Capacity,
    season: Season,
}

/// The reason why a snapshot is not used. Its figures are learned anew.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Unusable {
    /// It is not JSON, or not of this shape.
    #[error("it can't be read: {0}")]
    Broken(String),
    /// Another Forebay wrote it.
    #[error("it has version {0}, this Forebay reads {VERSION}")]
    Version(u64),
}

/// The snapshot as text.
#[must_use]
pub fn save(state: &State, operator_override: Override) -> String {
    let snapshot = Snapshot {
        version: VERSION,
        operator_override,
        cold_starts: state.learned.cold_starts.clone(),
        capacity: state.learned.capacity.clone(),
        season: state.learned.season.clone(),
    };
    serde_json::to_string(&snapshot).expect("numbers and names only")
}

/// Restores the learned figures into `state`; returns the override that stood.
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
    state.learned.cold_starts = snapshot.cold_starts;
    state.learned.capacity = snapshot.capacity;
    state.learned.season = snapshot.season;
    Ok(snapshot.operator_override)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::inputs::ReplicaFacts;
    use forebay_config::Millis;

    #[test]
    fn what_was_learned_comes_back() {
        let mut state = State::default();
        let replica = ReplicaFacts {
            ready_at: Some(Millis::from_secs(43)),
            ..ReplicaFacts::requested(Millis::from_secs(1))
        };
        state.learned.cold_starts.observe(&[replica], Millis::from_secs(43));
        for quarter in 0..200 {
            state.learned.season.observe(900.0, Millis::from_secs(quarter * 900));
        }
        let text = save(&state, Override::Fixed(3));
        let mut back = State::default();
        assert_eq!(restore(&mut back, &text), Ok(Override::Fixed(3)));
        assert_eq!(back.learned.cold_starts.quantiles(), state.learned.cold_starts.quantiles());
        assert_eq!(back.learned.capacity, state.learned.capacity);
        assert_eq!(save(&back, Override::Fixed(3)), text);
        assert!(text.len() < 16_384, "{} bytes", text.len());
    }

    #[test]
    fn a_snapshot_of_an_earlier_release_is_read_and_written_as_it_was() {
        let text = concat!(
            r#"{"version":1,"override":{"fixed":3},"#,
            r#""coldStarts":{"total":[43.5],"scheduled":[1.5],"started":[2.5],"healthy":[39.5],"#,
            r#""firstToken":[0.5]},"capacity":{"buckets":[{"step":6,"concurrency":8.5,"#,
            r#""workPerSecond":900.5,"ttftSeconds":null,"seconds":30.5}],"mix":{"accepted":9.5,"#,
            r#""estimatedPrompt":800.5,"completed":7.5,"prompt":700.5,"generated":300.5}},"#,
            r#""season":{"rates":[{"rate":1.5,"days":2}]}}"#,
        );
        let mut state = State::default();
        assert_eq!(restore(&mut state, text), Ok(Override::Fixed(3)));
        assert_eq!(save(&state, Override::Fixed(3)), text);
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
