//! Text that is read in place: JSON, server-sent events, and ropes of slices.
//!
//! Offsets instead of copies: an edit of a body or an answer is a slice before, new text, a slice
//! after. Pure; uses nothing of the other rooms.

pub(crate) mod json;
pub(crate) mod rope;
pub(crate) mod sse;
