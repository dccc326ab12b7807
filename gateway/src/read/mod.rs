//! Reading a request: its body, the fields that matter, the edits.

pub(crate) mod body;
pub(crate) mod body_memory;
pub(crate) mod context;
pub(crate) mod edit;
pub(crate) mod multipart;
pub(crate) mod request_id;
pub(crate) mod scan;
