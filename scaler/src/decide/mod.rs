//! The decision: pure functions of state, inputs, policy and time.
//!
//! No socket, clock or file: the running scaler, `forebay replay` and the tests call the same
//! [`decide()`]. Time is given in milliseconds since the epoch and never goes back.
//!
//! `decide()` is in `count.rs`, which names its steps in their order. The other files, by step:
//!
//! - the input (`inputs.rs`): the merged load (`load.rs`), the condition of each replica
//!   (`condition.rs`), and the proposals (`proposal.rs`) that `triggers/` makes before the decision;
//! - the memory (`state.rs`): learned throughput (`capacity.rs`), durations of starts (`cold_start.rs`),
//!   arrivals and times of day (`forecast.rs`), means (`window.rs`); `snapshot.rs` keeps the learned
//!   part over a restart;
//! - the demand (`demand.rs`), with the queue played as a fluid (`backlog.rs`);
//! - the gates (`count.rs`);
//! - the limits: `behavior` (`behavior.rs`), and the bounds (`count.rs`);
//! - the result with its reasons (`explain.rs`).
//!
//! `policy.rs` has the rules that the configuration sets for all steps.

pub mod backlog;
pub mod behavior;
pub mod capacity;
pub mod cold_start;
pub mod condition;
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

pub use condition::Condition;
pub use count::decide;
pub use explain::{Decision, Figures, Why};
pub use inputs::{Inputs, Override, ReplicaFacts};
pub use load::{Freshness, GatewayProcess, Ledger, Load};
pub use policy::Policy;
pub use proposal::{Problem, Proposal};
pub use state::{Order, State};
pub use triggers::{Reading, ReplicaCounts, Triggers, Wanted};
