//! Policies that choose an endpoint for a request.
//!
//! A policy is a function in a file of its own beside this one. It sees the endpoints that can take
//! the request as [`Suitable`], which is the same for every policy, and decides which of them is
//! best. What it keeps between requests is an argument, and so is chance. [`Picker`] has all of it,
//! and calls the policy that the pool is configured with.
//!
//! The candidates are kept: the caller reports each change of an endpoint, and what changes with
//! time alone (a full queue, silence) when its time has come. So a pick costs the logarithm of the
//! number of endpoints. It costs more only for a request that failed before, by the endpoints that
//! failed it.

mod candidate;
mod candidates;
mod choice;
mod consistent_hash;
mod expected;
mod given;
mod knowledge;
mod learned;
mod least_load;
mod load_order;
mod picker;
mod power_of_two;
mod prefix_affinity;
mod ranking;
mod requirements;
mod ring;
mod round_robin;
mod suitable;
mod work_queue;

pub use candidate::{Candidate, EndpointId};
pub use candidates::Candidates;
pub use choice::{CacheReport, CachedTokens, Choice, Usage};
pub use given::Given;
pub use learned::Learned;
pub use picker::Picker;
pub use requirements::Requirements;
pub use suitable::Suitable;

#[cfg(test)]
mod tests;
