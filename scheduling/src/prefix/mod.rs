//! The contents that the endpoints' prefix caches should have, as far as the gateway can know.
//!
//! - `landmarks`: the blocks of a prompt that are kept
//! - [`index`]: which endpoints should hold which blocks
//! - [`correction`]: how far the index can be trusted, by what replicas report
//!
//! An endpoint is a number here, with the number of its process. Pure, and bounded in memory.

pub mod correction;
pub mod index;
mod landmarks;
