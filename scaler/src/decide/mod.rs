//! The decision: pure functions of state, inputs, policy and time.
//!
//! No socket, clock or file: the running scaler, `forebay replay` and the tests call the same
//! [`decide()`]. Time is milliseconds since the epoch and never goes back.

pub mod backlog;
pub mod behavior;
pub mod capacity;
pub mod cold_start;
pub mod count;
mod demand;
pub mod explain;
pub mod forecast;
pub mod inputs;
pub mod load;
pub mod policy;
pub mod proposal;
pub mod snapshot;
pub mod state;
pub mod triggers;
pub mod window;

pub use count::decide;
pub use explain::{Decision, Figures, Why};
pub use inputs::{Inputs, Override, ReplicaFacts, Standing};
pub use load::{Ledger, Load, Word};
pub use policy::Policy;
pub use proposal::{Problem, Proposal};
pub use state::State;
pub use triggers::{Reading, Replicas, Triggers, Wanted};
