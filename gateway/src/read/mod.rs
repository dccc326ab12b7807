//! Reading a request: its body within bounds, the fields that the gateway needs, and their edits.
//!
//! A body is read whole, once, and never copied for a try. Scanning and editing are pure; taking a
//! body from a connection is not. Uses `text`, `answer`, `net` and `tenant`.
//!
//! `body` reads the bytes within `body_memory`; `scan` reads the fields of JSON, `multipart` those
//! of a form; `edit` changes them. `prompt` hashes the content that the model will see. `head` is a
//! request's head with the headers that the gateway writes into it, among them the `request_id`;
//! `known_headers` are those that mean something to the gateway, and `trace` is the request's place in its
//! trace. `context` has the facts that later
//! steps share; `client_timeout` is how long the client waits. `continuable` decides which answers may be
//! continued on another replica, and writes the request for it.

pub(crate) mod body;
pub(crate) mod body_memory;
pub(crate) mod client_timeout;
pub(crate) mod context;
pub(crate) mod continuable;
pub(crate) mod edit;
pub(crate) mod head;
pub(crate) mod known_headers;
pub(crate) mod multipart;
pub(crate) mod prompt;
pub(crate) mod request_id;
pub(crate) mod scan;
pub(crate) mod trace;
