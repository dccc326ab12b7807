//! A request as it is read: its body within bounds, the fields that matter, the edits.
//!
//! A body is read whole, once, and never copied for a try. Reading and editing are pure; taking a body
//! from a connection is not. Uses `text`, `answer`, `net` and `tenant`.

pub(crate) mod body;
pub(crate) mod body_memory;
pub(crate) mod context;
pub(crate) mod edit;
pub(crate) mod multipart;
pub(crate) mod request_id;
pub(crate) mod scan;
