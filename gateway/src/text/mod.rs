//! Text that is read in place: JSON, server-sent events, and ropes of slices; and short texts that
//! are written on the stack.
//!
//! An edit of a body or an answer copies nothing: it is the slice before, the new text, and the
//! slice after. Pure; uses no other room.

pub(crate) mod json;
pub(crate) mod rope;
pub(crate) mod sse;
pub(crate) mod stack;
