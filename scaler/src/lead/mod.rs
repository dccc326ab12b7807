//! Leadership: the election of the scaler that decides, and the state that the next one takes over.
//!
//! At any time at most one scaler leads. What was learned is saved seldom and never delays a decision.
//! May use the decision core (`decide`) and nothing above.

pub(crate) mod config_map;
pub(crate) mod leader;
pub(crate) mod readiness;
pub(crate) mod store;
