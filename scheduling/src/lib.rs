//! Which held request is next, and which endpoint it gets.
//!
//! - [`queue`]: the requests that a pool holds, in the order of their release
//! - [`pick`]: policies that choose an endpoint for a request
//! - [`prompt`]: the content of a prompt, as hashes of its blocks
//! - [`prefix`]: what endpoints remember of prompts
//! - [`models`]: which endpoint knows which model
//! - [`room`]: how many requests an endpoint can take
//! - [`retry_budget`]: the bound on retries in a failing pool
//! - [`objective`]: from when on a request can't meet its pool's objective
//! - [`eta`]: when a held request will start, and whether that is in time
//!
//! Pure: no sockets, no clock, no tasks. Time comes in as an argument. The gateway calls this code
//! under its pool's lock, and `forebay replay` calls the same code in simulated time.

pub mod eta;
pub mod models;
pub mod objective;
pub mod pick;
pub mod prefix;
pub mod prompt;
pub mod queue;
pub mod retry_budget;
pub mod room;
