//! The contents that the endpoints' prefix caches should have, as far as the gateway can know.
//!
//! - `landmarks`: the blocks of a prompt that are kept
//! - [`index`]: which endpoints should hold which blocks
//! - `cache`: one cache, as the index sees it
//! - `seeded`: how its keys are hashed
//! - `conversations`: how many go on at each endpoint
//! - [`correction`]: how far the index can be trusted, by what replicas report
//!
//! An endpoint is a number here, with the number of its process. Pure, and bounded in memory.

mod cache;
mod conversations;
pub mod correction;
pub mod index;
mod landmarks;
mod seeded;
