//! Which held request is next, and which endpoint it gets.
//!
//! - [`queue`]: the requests that a pool holds, in the order of their release
//! - [`pick`]: policies that choose an endpoint for a request
//! - [`prompt`]: the content of a prompt, as hashes of its blocks
//! - [`prefix`]: what endpoints remember of prompts
//! - [`models`]: which endpoint knows which model
//! - [`retry_budget`]: the bound on retries in a failing pool
//! - [`cold_wait`]: whether a request can outlast a cold start
//!
//! Pure: no sockets, no clock, no tasks. Time comes in as an argument. The gateway calls this code
//! under its pool's lock, and `forebay replay` calls the same code in simulated time.

pub mod cold_wait;
pub mod models;
pub mod pick;
pub mod prefix;
pub mod prompt;
pub mod queue;
pub mod retry_budget;
